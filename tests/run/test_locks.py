import os
import re
import subprocess
import sys

import pytest

from unlearnbench.errors import UsageError
from unlearnbench.run.locks import device_lock


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """The folder of locks, of this test alone, in which nobody waits long for a device."""
    monkeypatch.setattr("unlearnbench.run.locks.TRY_SECONDS", 0.1)
    monkeypatch.setattr("unlearnbench.run.locks._lock_folders", lambda: [tmp_path / "common", tmp_path / "own"])
    return tmp_path / "common"


def held(identity):
    """Say who holds a device; None if nobody does."""
    heard = []

    def waiting(holder):
        heard.append(holder)
        raise TimeoutError

    try:
        with device_lock([identity], waiting):
            return None
    except TimeoutError:
        return heard[0]


GPU = {"type": "cuda", "uuid": "GPU-1"}


@pytest.mark.usefixtures("locks")
class TestTheDevice:
    def test_it_is_held_by_one_run_at_a_time_and_says_who_that_is(self, monkeypatch):
        monkeypatch.setattr(
            "sys.argv", ["/home/me/bin/unlearnbench", "run", "--methods", "all\x1b[31m", "--classes", "0"]
        )
        with device_lock([GPU], pytest.fail):
            assert re.fullmatch(
                rf".+, process {os.getpid()} on .+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d "
                r"\(unlearnbench run --methods all \[31m\)",
                held(GPU),
            )
            assert held({**GPU, "uuid": "GPU-2"}) is None
        assert held(GPU) is None

    def test_a_stale_note_is_not_believed(self, locks):
        locks.mkdir()
        (locks / "cuda-GPU-1.lock").write_text("a run of yesterday")
        assert held(GPU) is None
        with device_lock([GPU], pytest.fail):
            assert "yesterday" not in held(GPU)

    def test_a_run_that_is_killed_lets_go(self, locks):
        code = (
            "import os, pathlib, unlearnbench.run.locks as t; "
            f"t._lock_folders = lambda: [pathlib.Path({str(locks)!r})]; "
            f"lock = t.device_lock([{GPU!r}], print); lock.__enter__(); os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", code], check=False)
        assert "since" in (locks / "cuda-GPU-1.lock").read_text()
        assert held(GPU) is None

    @pytest.mark.parametrize(
        ("mine", "others", "waits"),
        [([0], [1], False), ([0, 1], [2, 3], False), ([0], [0], True), ([0, 1], [1, 2], True), ([3], [0, 3], True)],
    )
    def test_runs_on_cores_apart_do_not_wait_for_each_other(self, monkeypatch, mine, others, waits):
        monkeypatch.setattr("unlearnbench.run.locks.allowed_cores", lambda: mine)
        with device_lock([{"type": "cpu"}], pytest.fail):
            monkeypatch.setattr("unlearnbench.run.locks.allowed_cores", lambda: others)
            assert (held({"type": "cpu"}) is not None) == waits
        assert held({"type": "cpu"}) is None


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "lock is a link", "lock is a folder"])
def test_a_spoilt_folder_of_locks_is_said_and_not_used(locks, kind):
    elsewhere = locks.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "file").write_text("precious")
    if kind == "file":
        locks.write_text("")
    elif kind in ("link", "dangling"):
        locks.symlink_to(elsewhere if kind == "link" else "nowhere")
    else:
        locks.mkdir()
        lock = locks / "cuda-GPU-1.lock"
        lock.mkdir() if kind == "lock is a folder" else lock.symlink_to(elsewhere / "file")
    said = []
    with device_lock([GPU], pytest.fail, said.append):
        assert held(GPU) is not None
    assert len(said) == 1
    assert str(locks) in said[0]
    assert "other users are not waited for" in said[0]
    assert [path.name for path in elsewhere.iterdir()] == ["file"]
    assert (elsewhere / "file").read_text() == "precious"


def test_a_note_is_written_to_no_other_file(locks, tmp_path):
    locks.mkdir()
    (tmp_path / "precious").write_text("precious")
    (locks / "cuda-GPU-1.lock").hardlink_to(tmp_path / "precious")
    with device_lock([GPU], pytest.fail):
        assert held(GPU) == "another run"
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_lock_that_cannot_be_made_is_a_sentence(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("unlearnbench.run.locks._lock_folders", lambda: [tmp_path / "file", tmp_path / "file" / "own"])
    with pytest.raises(UsageError, match=r"cannot be locked .*remove"), device_lock([{"type": "cpu"}], pytest.fail):
        pass
