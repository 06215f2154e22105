"""`unlearnbench cache` shows what lies in the cache, `cache clean` frees it."""

import os
import re
import time

import pytest
import torch
from filelock import FileLock

from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cache import entries, in_use

DAY = 24 * 3600


@pytest.fixture
def filled(tmp_path):
    """A cache with three kinds; the first of each was last used ten days ago."""
    root = tmp_path / "cache"
    for kind in ("base", "prior-a-x", "unlearned"):
        for number in range(2):
            made = ArtifactStore(root).get(kind, {"number": number}, lambda: ({"w": torch.zeros(5000)}, {}))
            then = time.time() - (1 - number) * 10 * DAY - 1  # before any run of a test
            os.utime(root / kind / made.key[:24] / "artifact.json", (then, then))
    return root


def left(root):
    return [entry.kind for entry in sorted(entries(root), key=lambda entry: entry.kind)]


def test_it_shows_a_table_by_kind_and_the_limit(command, filled, monkeypatch):
    monkeypatch.setenv("UNLEARNBENCH_CACHE_LIMIT", "1.5M")
    work = ArtifactStore(filled).workspace("base", {"number": 3})
    work.mkdir()
    (work / "checkpoint.safetensors").write_bytes(b"x" * 1_000_000)
    before = sorted(filled.rglob("*"))
    status, out, err = command("cache")
    assert (status, err) == (0, "")
    head, *rows, empty, last = out.splitlines()
    assert re.split(r"  +", head) == ["kind", "number", "size", "made in", "longest unused", "last used"]
    cells = {name: more for name, *more in (re.split(r"  +", row) for row in rows)}
    assert next(iter(cells)) == "base (unfinished)" and list(cells)[-1] == "total"
    assert {*list(cells)[1:-1]} == {"base", "prior-a-x", "unlearned"}
    assert cells["base (unfinished)"][:3] == ["1", "1.0 MB", "-"]
    assert cells["base"][0] == "2" and cells["base"][2] == "0s"
    assert cells["total"][0] == "7" and cells["total"][2] == "over 0s"
    used = [time.localtime(entry.used / 1e9) for entry in entries(filled) if entry.kind == "unlearned"]
    assert cells["unlearned"][3:] == [time.strftime("%Y-%m-%d %H:%M", one) for one in used]
    assert not empty
    assert re.fullmatch(rf"{filled}: 1\.1 MB of at most 1\.5 MB \(UNLEARNBENCH_CACHE_LIMIT sets the limit\)", last)
    assert sorted(filled.rglob("*")) == before


def test_a_kind_alone(command, filled, monkeypatch):
    monkeypatch.setenv("UNLEARNBENCH_CACHE_LIMIT", "none")
    _, out, _ = command("cache", "--kind", "unlearned", "--kind", "prior-*")
    assert re.findall(r"^\S+", out, re.MULTILINE)[1:-1] == ["prior-a-x", "unlearned", "total"]
    assert "without a limit" in out.splitlines()[-1]


@pytest.mark.parametrize("words", [["cache"], ["cache", "clean"], ["cache", "clean", "--kind", "base", "--dry-run"]])
def test_a_cache_that_is_not_there_yet(command, tmp_path, words):
    expected = f"there is no cache yet: the first run makes {tmp_path / 'cache'}\n"
    assert command(*words) == (0, expected, "")
    assert not (tmp_path / "cache").exists()


CLEANED = {
    "everything": ([], []),
    "a kind": (["--kind", "unlearned"], ["base", "base", "prior-a-x", "prior-a-x"]),
    "two kinds": (["--kind", "unlearned", "--kind", "prior-*"], ["base", "base"]),
    "what is old": (["--unused-for", "7"], ["base", "prior-a-x", "unlearned"]),
    "what is old of a kind": (["--kind", "base", "--unused-for", "7.5"], ["base", *["prior-a-x", "unlearned"] * 2]),
    "nothing": (["--unused-for", "30"], ["base", "prior-a-x", "unlearned"] * 2),
}


@pytest.mark.parametrize("case", CLEANED)
def test_it_frees_what_it_is_asked_for(command, filled, case):
    options, stay = CLEANED[case]
    before = sorted(filled.rglob("*"))
    number = 6 - len(stay)
    status, planned, _ = command("cache", "clean", *options, "--dry-run")
    assert (status, sorted(filled.rglob("*"))) == (0, before)
    status, out, err = command("cache", "clean", *options)
    assert (status, err, left(filled)) == (0, "", sorted(stay))
    if number:
        assert re.fullmatch(rf"freed [\d.]+ kB \({number} entr(y|ies)\) in {filled}\n", out)
        assert planned == out.replace("freed", "would free")
    else:
        assert planned == out == f"there is nothing to free in {filled}\n"


def test_what_a_run_in_progress_uses_stays(command, filled):
    with in_use(filled):
        ArtifactStore(filled).get("base", {"number": 0}, lambda: 1 / 0)
        status, planned, _ = command("cache", "clean", "--dry-run")
        status, out, _ = command("cache", "clean")
    assert (status, left(filled)) == (0, ["base"])
    assert re.fullmatch(
        rf"freed [\d.]+ kB \(5 entries\) in {filled}; [\d.]+ kB \(1 entry\) stay, in use by a run in progress\n", out
    )
    assert planned == out.replace("freed", "would free")


def test_what_another_process_makes_stays(command, filled):
    with FileLock(entries(filled)[0].path.with_suffix(".lock")):
        _, out, _ = command("cache", "clean")
    assert "(5 entries)" in out and "(1 entry) stay" in out


def test_a_kind_that_is_not_there_is_one_sentence(command, filled):
    status, out, err = command("cache", "clean", "--kind", "unlearnd")
    assert (status, out, len(left(filled))) == (2, "", 6)
    assert err == (
        f"unlearnbench: the cache {filled} holds nothing of kind 'unlearnd' (did you mean unlearned?): it holds base, "
        "prior-a-x, unlearned\n"
    )


@pytest.mark.parametrize("words", [["cache"], ["run", "--methods", "original", "--classes", "0", "--dry-run"]])
def test_a_limit_that_is_not_a_size_is_one_sentence(command, monkeypatch, words):
    monkeypatch.setenv("UNLEARNBENCH_CACHE_LIMIT", "50")
    status, _, err = command(*words)
    assert status == 2
    assert err == "unlearnbench: UNLEARNBENCH_CACHE_LIMIT takes a size such as 50G or 500M, or none, not '50'\n"


def test_what_the_system_refuses_is_said(command, filled, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("unlearnbench.store.cache.remove_at_once", refuse)
    status, out, err = command("cache", "clean")
    assert (status, err) == (1, "")
    freed, refused = out.splitlines()
    assert freed == f"freed 0.0 kB (0 entries) in {filled}"
    assert re.fullmatch(r"6 entries could not be removed, such as \S+ \(Permission denied\)", refused)


def test_a_file_in_the_caches_place_is_one_sentence(command, tmp_path):
    (tmp_path / "cache").write_text("")
    for words in (["cache"], ["cache", "clean"]):
        status, _, err = command(*words)
        assert (status, err.count("\n"), "UNLEARNBENCH_CACHE" in err) == (2, 1, True)
