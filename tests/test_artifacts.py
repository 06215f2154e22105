import json
import multiprocessing
import os

import pytest
import torch

from unlearnbench.artifacts import ArtifactStore, default_cache
from unlearnbench.errors import UsageError


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
    with pytest.warns(UserWarning, match="checksum fails"):
        again = store.get("base", {}, build)
    assert build.calls == 2
    assert again.tensors["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_note_is_noticed(tmp_path, damage):
    build, store = Builder(), ArtifactStore(tmp_path)
    store.get("base", {}, build)
    next(tmp_path.glob("base/*/artifact.json")).write_text(damage)
    with pytest.warns(UserWarning, match="damaged"):
        store.get("base", {}, build)
    assert build.calls == 2


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
    with pytest.warns(UserWarning, match="note was changed"):
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
