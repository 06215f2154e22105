import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.cells import tiny_dataset
from unlearnbench.errors import UsageError
from unlearnbench.models import base
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cache import default_cache
from unlearnbench.store.scratch import owned, sweep


class Builder:
    def __init__(self, value=1.0):
        self.calls, self.value = 0, value

    def __call__(self):
        self.calls += 1
        return {"w": torch.full((3,), self.value)}, {"cost": self.calls}


def test_built_once_and_read_back(tmp_path):
    build, store = Builder(), ArtifactStore(tmp_path)
    first, second = store.get("prior", {"a": 1}, build), store.get("prior", {"a": 1}, build)
    assert (build.calls, first.reused, second.reused) == (1, False, True)
    assert torch.equal(first.tensors["w"], second.tensors["w"])
    assert first.payload_digest == second.payload_digest
    assert second.facts == {"cost": 1}


@pytest.mark.parametrize("other", [{"a": 2}, {"a": 1, "b": None}, {"a": "1"}, {"a": 1.5}])
def test_every_input_is_part_of_the_key(tmp_path, other):
    store = ArtifactStore(tmp_path)
    assert store.get("prior", {"a": 1}, Builder()).key != store.get("prior", other, Builder()).key


def test_a_poisoned_payload_is_noticed_and_rebuilt(tmp_path):
    build, store = Builder(), ArtifactStore(tmp_path)
    store.get("base", {}, build)
    payload = next(tmp_path.glob("base/*/payload.safetensors"))
    data = bytearray(payload.read_bytes())
    data[-1] ^= 1  # one bit of the last weight: still a valid file
    payload.write_bytes(data)
    with pytest.warns(UserWarning, match="checksum does not match"):
        again = store.get("base", {}, build)
    assert build.calls == 2
    assert again.tensors["w"].tolist() == [1.0, 1.0, 1.0]


DAMAGES = {
    "torn": lambda path: path.write_text("{"),
    "list": lambda path: path.write_text("[]"),
    "empty object": lambda path: path.write_text("{}"),
    "text": lambda path: path.write_text('"key"'),
    "null": lambda path: path.write_text("null"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "deep object": lambda path: path.write_text('{"key":' * 50_000),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe{"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
}


@pytest.mark.parametrize("name", ["artifact.json", "payload.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_whatever_is_damaged_is_noticed_and_built_again(tmp_path, damage, name):
    build, store = Builder(), ArtifactStore(tmp_path)
    store.get("base", {}, build)
    damage(next(tmp_path.glob(f"base/*/{name}")))
    with pytest.warns(UserWarning, match="damaged") as said:
        assert store.get("base", {}, build).tensors["w"].tolist() == [1.0, 1.0, 1.0]
    assert len(said) == 1
    assert build.calls == 2
    assert store.get("base", {}, build).reused
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "link to a folder", "dangling link", "empty folder"])
def test_whatever_lies_in_an_artifacts_place_gives_way(tmp_path, kind):
    store = ArtifactStore(tmp_path)
    folder = tmp_path / "base" / store.get("base", {}, Builder()).key[:24]
    shutil.rmtree(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("")
    {
        "file": lambda: folder.write_text(""), "link to a folder": lambda: folder.symlink_to(elsewhere),
        "dangling link": lambda: folder.symlink_to("nowhere"), "empty folder": folder.mkdir,
    }[kind]()  # fmt: skip
    with pytest.warns(UserWarning, match="damaged"):
        store.get("base", {}, Builder())
    assert store.get("base", {}, Builder()).reused
    assert (elsewhere / "precious").exists()


def hidden(root):
    """Return what was begun and is not in its place."""
    return [path for path in root.rglob(".*") if path.name.startswith(".")]


def test_memory_that_is_short_is_no_damage(tmp_path, monkeypatch):
    build, store = Builder(), ArtifactStore(tmp_path)
    store.get("base", {}, build)

    def refuse(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("unlearnbench.store.artifacts.file_digest", refuse)
    with pytest.raises(UsageError, match="Too many open files"):
        store.get("base", {}, build)
    monkeypatch.undo()
    assert store.get("base", {}, build).reused


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    code = f"""
import resource, torch
from pathlib import Path
from unlearnbench.models import base
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.errors import UsageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    ArtifactStore(Path({str(tmp_path)!r})).get("base", {{}}, lambda: ({{"w": torch.zeros(1000)}}, {{}}))
except UsageError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == (
        f"the cache {tmp_path} cannot be used (File too large): free space there or set UNLEARNBENCH_CACHE to another "
        f"folder\n"
    )
    assert hidden(tmp_path) == []
    assert not ArtifactStore(tmp_path).get("base", {}, Builder()).reused


@pytest.fixture
def no_locks(monkeypatch):
    """A file system whose locks hold nothing."""
    monkeypatch.setattr("unlearnbench.store.artifacts.FileLock", lambda path: SimpleNamespace(acquire=int, release=int))


@pytest.mark.usefixtures("no_locks")
class TestWithoutLocks:
    def test_the_first_of_several_builders_wins_and_nobody_fails(self, tmp_path):
        everybody, values = threading.Barrier(8), []

        def work(number):
            def build():
                everybody.wait(30)
                return {"w": torch.full((1000,), float(number))}, {}

            values.append(ArtifactStore(tmp_path).get("base", {}, build))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(values) == 8
        assert not any(found.reused for found in values)  # each one spent the time
        assert len({found.payload_digest for found in values}) == 1
        assert hidden(tmp_path) == []

    def test_two_builders_of_a_base_model_share_its_checkpoints_and_its_result(self, tmp_path, monkeypatch):
        monkeypatch.setattr(base, "FIRST_CHECKPOINT_SECONDS", 0.0)
        monkeypatch.setattr(base, "CHECKPOINT_SECONDS", 0.0)
        dataset = tiny_dataset()
        train, device = dataset.load(ArtifactStore(tmp_path / "images"), lambda *_: None).train, torch.device("cpu")
        others = []

        def build(folder, progress):
            return base.base_artifact(dataset, train, "images", ArtifactStore(folder), device, progress)

        def meanwhile(what, done, total):
            if done == 3 and not others:  # another node meets the checkpoint of two steps, finishes, and cleans up
                assert list(tmp_path.glob("shared/base/*.work/checkpoint.safetensors"))
                others.append(build(tmp_path / "shared", lambda *_: None))

        ours, alone = build(tmp_path / "shared", meanwhile), build(tmp_path / "alone", lambda *_: None)
        assert ours.payload_digest == others[0].payload_digest == alone.payload_digest
        assert not list(tmp_path.glob("shared/base/*.work"))

    def test_a_checkpoint_may_vanish_before_it_is_read(self, tmp_path, monkeypatch):
        dataset, path = tiny_dataset(), tmp_path / "checkpoint.safetensors"
        train = dataset.load(ArtifactStore(tmp_path), lambda *_: None).train
        path.touch()
        monkeypatch.setattr(base, "load_file", lambda path: path.unlink() or load_file(path))
        codec = base.trained_codec(dataset, train, "", ArtifactStore(tmp_path), torch.device("cpu"), lambda *_: None)
        _, facts = base.train_denoiser(dataset, train, codec, tmp_path, torch.device("cpu"), lambda *_: None)
        assert facts["steps"] == dataset.base.steps

    def test_what_is_damaged_is_replaced_by_the_second_builder(self, tmp_path):
        store = ArtifactStore(tmp_path)

        def build():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                store.get("base", {}, Builder(2.0))
            next(tmp_path.glob("base/*/payload.safetensors")).write_bytes(b"damaged")
            return Builder(3.0)()

        with pytest.warns(UserWarning, match="checksum does not match"):
            assert store.get("base", {}, build).tensors["w"][0] == 3.0
        assert store.get("base", {}, Builder()).tensors["w"][0] == 3.0

    @pytest.mark.parametrize(
        ("owner", "hours", "stays"),
        [("this", 0, True), ("gone", 0, False), ("other machine", 0, True), ("other machine", 25, False)],
    )
    def test_only_leftovers_are_swept(self, tmp_path, owner, hours, stays):
        name = owned(".abc")
        if owner == "gone":
            name = name.removesuffix(str(os.getpid())) + str(2**22 + 1)  # above the kernel's largest
        if owner == "other machine":
            name = f".abc-00000000-{os.getpid()}"
        scratch = tmp_path / f"{name}-0123abcd"
        scratch.mkdir()
        os.utime(scratch, (time.time() - 3600 * hours,) * 2)
        sweep(tmp_path, ".abc-*")
        assert scratch.exists() == stays


def test_a_failed_build_leaves_nothing_that_looks_whole(tmp_path):
    store = ArtifactStore(tmp_path)

    def fail():
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        store.get("base", {}, fail)
    assert not store.get("base", {}, Builder()).reused


def test_edited_facts_are_noticed(tmp_path):
    build, store = Builder(), ArtifactStore(tmp_path)
    store.get("judge", {}, build)
    note = next(tmp_path.glob("judge/*/artifact.json"))
    note.write_text(note.read_text().replace('"cost": 1', '"cost": 0'))
    with pytest.warns(UserWarning, match="artifact.json was changed"):
        assert store.get("judge", {}, build).facts == {"cost": 2}


def test_an_error_of_the_build_is_not_the_caches(tmp_path):
    def fail():
        raise FileNotFoundError("a file of the plugin's own")

    with pytest.raises(FileNotFoundError, match="of the plugin's own"):
        ArtifactStore(tmp_path).get("base", {}, fail)


def test_leftovers_of_a_killed_writer_are_swept(tmp_path):
    build, store = Builder(), ArtifactStore(tmp_path)
    folder = tmp_path / "base" / store.get("base", {}, build).key[:24]
    leftover = folder.parent / f".{folder.name}-dead"
    leftover.mkdir()
    (leftover / "payload.safetensors").write_bytes(b"half")
    next(folder.glob("payload*")).unlink()
    with pytest.warns(UserWarning):
        store.get("base", {}, build)
    assert not leftover.exists()


def test_the_note_names_the_inputs(tmp_path):
    ArtifactStore(tmp_path).get("base", {"recipe": {"steps": 3}}, Builder())
    note = json.loads(next(tmp_path.glob("base/*/artifact.json")).read_text())
    assert note["inputs"] == {"recipe": {"steps": 3}}


def _race(root, queue):
    queue.put(ArtifactStore(root).get("base", {}, Builder(os.getpid())).tensors["w"][0].item())


def test_two_processes_agree_on_one_artifact(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_race, args=(tmp_path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    values = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(values) == 1


def test_an_unusable_cache_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="UNLEARNBENCH_CACHE"):
        ArtifactStore(tmp_path / "file").get("base", {}, Builder())


def test_the_environment_chooses_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("UNLEARNBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_cache() == tmp_path / "unlearnbench"
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_cache().parts[-3:] == ("Library", "Caches", "unlearnbench")
