"""The size of the cache: what is listed, what is removed, and what a run in progress keeps."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter

import pytest
import torch
from filelock import FileLock

from unlearnbench.errors import UsageError
from unlearnbench.store import cache
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cache import (
    Running,
    clean,
    entries,
    in_use,
    limit,
    mark_used,
    parse_limit,
    pin,
    running,
    trim,
)  # fmt: skip
from unlearnbench.store.hashing import digest
from unlearnbench.store.scratch import owned

DAY = 24 * 3600
NOBODY = 2**22 + 1  # above the kernel's largest process


def build(floats=1000):
    return {"w": torch.zeros(floats)}, {}


def make(root, kind, number, *, days=0.0, floats=1000):
    """Make an artifact that was last used some days ago; return it and its folder."""
    artifact = ArtifactStore(root).get(kind, {"number": number}, lambda: build(floats))
    folder = root / kind / artifact.key[:24]
    then = time.time() - days * DAY
    os.utime(folder / "artifact.json", (then, then))
    return artifact, folder


def begin_work(root, number, *, days=0.0):
    """Leave the checkpoint of an unfinished artifact."""
    folder = ArtifactStore(root).workspace("base", {"number": number})
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"x" * 500)
    for path in (folder / "checkpoint.safetensors", folder):
        os.utime(path, (time.time() - days * DAY,) * 2)
    return folder


def set_limit(monkeypatch, size):
    monkeypatch.setenv("UNLEARNBENCH_CACHE_LIMIT", f"{size / 1000:.3f}K")


class TestEntries:
    def test_what_lies_there_least_recently_used_first(self, tmp_path):
        before = time.time_ns()
        _, newest = make(tmp_path, "judge", 1)
        _, oldest = make(tmp_path, "base", 1, days=9)
        work = begin_work(tmp_path, 2, days=3)
        found = entries(tmp_path)
        assert [entry.path for entry in found] == [oldest, work, newest]
        assert [entry.kind for entry in found] == ["base", "base", "judge"]
        assert [entry.is_finished for entry in found] == [True, False, True]
        assert [len(entry.key) for entry in found] == [24] * 3
        assert found[0].size == sum(path.stat().st_size for path in oldest.iterdir())
        assert found[1].size == 500
        assert found[0].made >= before - 10**9  # when it was used does not change when it was made
        assert abs(found[0].used / 1e9 - (time.time() - 9 * DAY)) < 60

    def test_a_cache_that_is_not_there_is_empty(self, tmp_path):
        assert entries(tmp_path / "nothing") == []
        freed = trim(tmp_path / "nothing")
        assert (freed.removed, freed.over) == ([], 0)
        assert not (tmp_path / "nothing").exists()

    def test_a_file_in_its_place_is_one_sentence(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="UNLEARNBENCH_CACHE"):
            entries(tmp_path / "file")

    def test_the_note_says_how_long_it_took(self, tmp_path):
        def slow():
            time.sleep(0.05)
            return build()

        ArtifactStore(tmp_path).get("base", {}, slow)
        assert 0.05 <= entries(tmp_path)[0].seconds < 5

    def test_an_artifact_of_an_older_version_is_used_and_its_seconds_are_unknown(self, tmp_path):
        _, folder = make(tmp_path, "base", 1)
        note = json.loads((folder / "artifact.json").read_text())
        del note["seconds"], note["checksum"]
        note["checksum"] = digest(note)
        (folder / "artifact.json").write_text(json.dumps(note))
        assert entries(tmp_path)[0].seconds is None
        assert make(tmp_path, "base", 1)[0].reused

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds": null}', '{"seconds": "x"}', '{"seconds": NaN}'])
    def test_seconds_of_a_damaged_note_are_unknown(self, tmp_path, text):
        _, folder = make(tmp_path, "base", 1)
        (folder / "artifact.json").write_text(text)
        assert entries(tmp_path)[0].seconds is None

    def test_reading_an_artifact_marks_it_as_used(self, tmp_path):
        make(tmp_path, "base", 1, days=9)
        ArtifactStore(tmp_path).get("base", {"number": 1}, build)
        assert time.time() - entries(tmp_path)[0].used / 1e9 < 60

    def test_an_artifact_that_cannot_be_marked_is_used_all_the_same(self, tmp_path, monkeypatch):
        make(tmp_path, "base", 1)

        def refuse(path, *times):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("os.utime", refuse)
        assert ArtifactStore(tmp_path).get("base", {"number": 1}, build).reused

    def test_it_needs_no_torch(self):
        code = "import sys, unlearnbench.store.cache, unlearnbench.cli.cache; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestLimit:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("50G", 50 * 10**9), ("500M", 500 * 10**6), ("1.5TB", 1_500_000_000_000), ("2 GiB", 2 * 2**30),
            ("64k", 64_000), ("1tib", 2**40), ("10Gi", 10 * 2**30), ("none", None), ("None", None),
        ],
    )  # fmt: skip
    def test_a_size_is_read(self, text, size):
        assert parse_limit(text) == size

    @pytest.mark.parametrize("text", ["50", "G", "-1G", "0G", "50 GG", "1,5G", "fifty", "1e3G", "٣G", "nan", "inf"])
    def test_anything_else_is_one_sentence(self, text):
        with pytest.raises(UsageError, match="UNLEARNBENCH_CACHE_LIMIT takes a size such as 50G or 500M, or none"):
            parse_limit(text)

    def test_the_variable_counts(self, monkeypatch, tmp_path):
        monkeypatch.setenv("UNLEARNBENCH_CACHE_LIMIT", " 3G ")
        assert limit(tmp_path, 0) == 3 * 10**9

    @pytest.mark.parametrize(("free", "size", "expected"), [(10**15, 0, 50e9), (20e9, 0, 10e9), (20e9, 30e9, 25e9)])
    def test_the_default_leaves_half_of_a_small_disk(self, monkeypatch, tmp_path, free, size, expected):
        monkeypatch.delenv("UNLEARNBENCH_CACHE_LIMIT", raising=False)
        usage = type(shutil.disk_usage(tmp_path))(2 * int(free), int(free), int(free))
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
        assert limit(tmp_path / "not" / "there", int(size)) == expected


class TestTrim:
    def test_the_least_recently_used_go_until_the_limit_holds(self, tmp_path, monkeypatch):
        folders = [make(tmp_path, kind, days, days=days)[1] for days, kind in enumerate(("a", "b", "a", "b"), start=1)]
        size = entries(tmp_path)[0].size
        set_limit(monkeypatch, 2 * size + 100)
        freed = trim(tmp_path)
        assert [folder.exists() for folder in folders] == [True, True, False, False]
        assert [entry.path for entry in freed.removed] == [folders[3], folders[2]]
        assert freed.over == 0
        assert trim(tmp_path).removed == []
        assert not list(tmp_path.rglob(".*"))
        assert {path.stem for path in tmp_path.rglob("*.lock")} == {path.name for path in folders[:2]}

    def test_without_a_limit_everything_stays(self, tmp_path, monkeypatch):
        make(tmp_path, "a", 1, days=999)
        monkeypatch.setenv("UNLEARNBENCH_CACHE_LIMIT", "none")
        assert trim(tmp_path).removed == []

    def test_what_was_removed_is_made_again(self, tmp_path, monkeypatch):
        first, _ = make(tmp_path, "a", 1, days=1)
        set_limit(monkeypatch, 1)
        trim(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again, _ = make(tmp_path, "a", 1)
        assert (again.reused, again.payload_digest) == (False, first.payload_digest)

    def test_an_artifact_that_is_made_or_read_stays(self, tmp_path, monkeypatch):
        _, folder = make(tmp_path, "a", 1, days=1)
        set_limit(monkeypatch, 1)
        with FileLock(folder.with_suffix(".lock")):
            freed = trim(tmp_path)
        assert folder.exists()
        assert [entry.path for entry in freed.in_use] == [folder]
        assert freed.over == freed.in_use[0].size - 1

    def test_an_artifact_that_was_used_since_it_was_listed_stays(self, tmp_path):
        _, folder = make(tmp_path, "a", 1, days=1)
        due = entries(tmp_path)
        mark_used(folder)
        assert [entry.path for entry in clean(tmp_path, due).in_use] == [folder]
        assert folder.exists()

    def test_old_checkpoints_and_leftovers_go_under_any_limit(self, tmp_path, monkeypatch):
        monkeypatch.setenv("UNLEARNBENCH_CACHE_LIMIT", "none")
        _, folder = make(tmp_path, "base", 1)
        old, recent = begin_work(tmp_path, 2, days=31), begin_work(tmp_path, 3, days=29)
        machine = owned("").split("-")[1]
        dead = folder.parent / f".{folder.name}-{machine}-{NOBODY}-0123abcd"
        alive = folder.parent / f"{owned(f'.{folder.name}')}-0123abcd"
        dead.mkdir(), alive.mkdir()
        locks = [folder.parent / f"{digit * 24}.lock" for digit in "ab"]
        for lock, days in zip(locks, (2, 0), strict=True):
            lock.touch()
            os.utime(lock, (time.time() - days * DAY,) * 2)
        assert [entry.path for entry in trim(tmp_path).removed] == [old]
        assert [path.exists() for path in (old, recent, dead, alive, *locks)] == [False, True, False, True, False, True]
        assert folder.with_suffix(".lock").exists()

    def test_a_checkpoint_that_is_written_stays(self, tmp_path, monkeypatch):
        work = begin_work(tmp_path, 1, days=31)
        with FileLock(work.with_suffix(".lock")):
            trim(tmp_path)
        assert work.exists()

    def test_what_the_system_refuses_is_said(self, tmp_path, monkeypatch):
        _, folder = make(tmp_path, "a", 1, days=1)

        def refuse(path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(cache, "remove_at_once", refuse)
        freed = clean(tmp_path, entries(tmp_path))
        assert (freed.removed, freed.refused) == ([], {folder: "Permission denied"})


class TestOthersFiles:
    """Only what has the layout of an artifact is listed and removed, in whatever folder."""

    def test_they_stay(self, tmp_path, monkeypatch):
        set_limit(monkeypatch, 1)
        root, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
        _, real = make(root, "a", 1, days=1)
        _, linked = make(elsewhere, "kind", 1, days=1)
        key = "0123456789abcdef01234567"
        more = root / "a" / key
        more.mkdir()
        for name in ("artifact.json", "payload.safetensors", "thesis.tex"):
            (more / name).write_text("mine")
        for name in ("letters/a.txt", f"letters/{key[:-1]}/artifact.json", f".git/{key}/artifact.json"):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("mine")
        (root / "letters" / f"{'f' * 24}").symlink_to(linked)  # a link to an artifact, and one to a folder of them
        (root / "kind").symlink_to(elsewhere / "kind")
        (root / "a" / ("e" * 24)).mkdir()  # empty
        os.mkfifo(root / "pipe")
        inside = root / "a" / ("d" * 24)
        inside.mkdir()
        (inside / "payload.safetensors").symlink_to(linked / "payload.safetensors")
        before = {path for path in tmp_path.rglob("*") if real not in (path, *path.parents) and path.suffix != ".lock"}
        assert [entry.path for entry in entries(root)] == [real]
        assert [entry.path for entry in trim(root).removed] == [real]
        clean(root, entries(root))
        after = {path for path in tmp_path.rglob("*") if path.suffix != ".lock"}
        assert after == before


class TestRunsInProgress:
    def test_what_a_run_has_used_or_pinned_stays_until_it_ends(self, tmp_path, monkeypatch):
        set_limit(monkeypatch, 1)
        artifacts = {name: make(tmp_path, "a", name, days=1) for name in ("read", "pinned", "idle")}
        store = ArtifactStore(tmp_path)
        with in_use(tmp_path):
            assert store.get("a", {"number": "read"}, build).reused
            pin(tmp_path, [artifacts["pinned"][0].reference, {"key": "0" * 64, "sha256": ""}])
            made = store.root / "b" / store.get("b", {}, build).key[:24]
            freed = trim(tmp_path)
            assert {name: folder.exists() for name, (_, folder) in artifacts.items()} == {
                "read": True, "pinned": True, "idle": False,
            }  # fmt: skip
            assert made.exists()
            assert len(freed.in_use) == 3
            assert freed.over == sum(entry.size for entry in entries(tmp_path)) - 1
        assert running(tmp_path) == Running()
        trim(tmp_path)
        assert entries(tmp_path) == []

    def test_what_finished_cells_left_is_not_needed_by_their_run(self, tmp_path, monkeypatch):
        set_limit(monkeypatch, 1)
        with in_use(tmp_path) as run:
            base, done, current = (make(tmp_path, kind, kind) for kind in ("base", "unlearned", "samples"))
            run.needs_cells_since((done[1] / "artifact.json").stat().st_mtime_ns + 1)
            later = time.time() + 60
            os.utime(current[1] / "artifact.json", (later, later))
            assert [entry.path for entry in trim(tmp_path).removed] == [done[1]]
            assert base[1].exists() and current[1].exists()

    def test_the_oldest_run_counts(self, tmp_path):
        with in_use(tmp_path):
            first = running(tmp_path)
            time.sleep(0.05)
            with in_use(tmp_path):
                assert running(tmp_path) == first
        assert first != Running()
        assert list((tmp_path / ".runs").iterdir()) == []

    @pytest.mark.parametrize(
        ("machine", "process", "hours", "counts"),
        [("this", NOBODY, 0, False), ("00000000", 1, 0, True), ("00000000", 1, 23, True), ("00000000", 1, 25, False)],
    )
    def test_a_dead_run_does_not_count_and_is_forgotten(self, tmp_path, machine, process, hours, counts):
        (tmp_path / ".runs").mkdir()
        here = owned("").split("-")[1] if machine == "this" else machine
        path = tmp_path / ".runs" / f"run-{here}-{process}-0123abcd"
        path.write_text("5 7")
        os.utime(path, (time.time() - 3600 * hours,) * 2)
        assert running(tmp_path) == (Running(5, 7) if counts else Running())
        assert path.exists() == counts

    def test_a_run_that_was_killed_does_not_count(self, tmp_path):
        code = f"""
import os, signal
from pathlib import Path
from unlearnbench.store.cache import Running, in_use, running
with in_use(Path({str(tmp_path)!r})):
    assert running(Path({str(tmp_path)!r})) != Running()
    os.kill(os.getpid(), signal.SIGKILL)
"""
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        assert len(list((tmp_path / ".runs").iterdir())) == 1
        assert running(tmp_path) == Running()

    def test_a_run_that_has_just_begun_and_not_noted_its_start_counts(self, tmp_path):
        (tmp_path / ".runs").mkdir()
        path = tmp_path / ".runs" / f"{owned('run')}-0123abcd"
        path.touch()
        assert running(tmp_path) == Running(*[path.stat().st_mtime_ns] * 2)

    def test_it_gives_signs_of_life_even_where_it_was_swept(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cache, "REFRESH_SECONDS", 0.01)
        with in_use(tmp_path):
            (path,) = (tmp_path / ".runs").iterdir()
            start = running(tmp_path)
            os.utime(path, (1, 1))
            assert soon(lambda: path.stat().st_mtime > 1)
            path.unlink()
            assert soon(lambda: path.exists() and path.read_text())
            assert running(tmp_path) == start
        assert not path.exists()
        assert not [thread for thread in threading.enumerate() if "refresh" in thread.name]

    def test_a_limit_that_is_not_a_size_ends_it_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setenv("UNLEARNBENCH_CACHE_LIMIT", "much")
        with pytest.raises(UsageError, match="takes a size"), in_use(tmp_path):
            pass
        assert not list(tmp_path.iterdir())

    def test_a_cache_that_cannot_be_written_is_one_sentence(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="UNLEARNBENCH_CACHE"), in_use(tmp_path / "file"):
            pass


def soon(condition):
    """Wait until a condition holds, for at most ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


class TestReaders:
    """An artifact may vanish at any moment: a reader gets a whole one or builds it."""

    @pytest.mark.parametrize("when", ["file_digest", "load_file"])
    def test_one_that_vanishes_while_it_is_read_is_built_again_without_a_warning(self, tmp_path, monkeypatch, when):
        make(tmp_path, "a", 1)
        real = getattr(__import__("unlearnbench.store.artifacts", fromlist=[when]), when)

        def vanish(path):
            shutil.rmtree(path.parent, ignore_errors=True)
            monkeypatch.undo()
            return real(path)

        monkeypatch.setattr(f"unlearnbench.store.artifacts.{when}", vanish)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = ArtifactStore(tmp_path).get("a", {"number": 1}, build)
        assert not found.reused
        assert entries(tmp_path)[0].key == found.key[:24]

    def test_readers_and_a_trimmer_at_the_same_time(self, tmp_path, monkeypatch):
        set_limit(monkeypatch, 1)
        ended, failures, counts = threading.Event(), [], Counter()

        def read(number):
            store = ArtifactStore(tmp_path)
            for turn in range(40):
                try:
                    found = store.get("a", {"number": (number + turn) % 3}, build)
                    assert found.tensors["w"].shape == (1000,)
                    counts[found.reused] += 1
                except BaseException as error:
                    failures.append(error)

        def free():
            while not ended.is_set():
                trim(tmp_path)

        readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
        trimmer = threading.Thread(target=free)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for thread in (*readers, trimmer):
                thread.start()
            for thread in readers:
                thread.join(60)
            ended.set()
            trimmer.join(60)
        assert failures == []
        assert counts[False] > 3  # some were removed
