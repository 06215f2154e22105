"""Unlearned models as folders: what is written, when it is not, and that sampling draws what the record judged."""

import base64
import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from safetensors import SafetensorError

from tests.conftest import fake_record
from tests.server import run_command
from unlearnbench.cli import commands as cli
from unlearnbench.datasets import WEIGHTS, load_dataset
from unlearnbench.errors import UsageError
from unlearnbench.models.checkpoints import SCHEDULE
from unlearnbench.models.codec import PIXELS
from unlearnbench.models.denoiser import untrained
from unlearnbench.models.diffusion import evaluating, predict_noise, to_uint8
from unlearnbench.models.saved import CARD, FACTS, draw, image_grid, open_model
from unlearnbench.models.unet import build_unet
from unlearnbench.models.weights import NotInWeights, weights_of
from unlearnbench.run.execution import Execution
from unlearnbench.run.model_card import card
from unlearnbench.run.saving import is_saved, publish, stage, staging
from unlearnbench.run.stale import needed
from unlearnbench.store.cell import sample_seeds
from unlearnbench.store.records import DeviceModel, ResultStore, records_digest

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")


def quiet(what, done, total):
    """Show no progress."""


def record_of(artifact=None, **fields):
    record = fake_record("alpha", 3, title="Alpha", **fields)
    artifacts = {**record.artifacts, **({"model": artifact} if artifact else {})}
    return replace(record, artifacts=artifacts, protocol=load_dataset("digits").protocol.to_json())


@pytest.fixture
def context(make_context):
    context = make_context()
    context.watching.remove()  # as the harness does when a method is done
    return context


@pytest.fixture
def unlearned(context):
    """A tiny model whose weights a method has moved."""
    model = context.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    return model


@pytest.fixture
def weights(context, unlearned):
    """Return a function that returns the model's weights as they are now."""
    return lambda: weights_of(unlearned, context.base, 3, 10)


@pytest.fixture
def staged(tiny, weights):
    """Return a function that stages the model in a folder."""
    return lambda folder: stage(folder, weights(), tiny, 3)


@pytest.fixture
def saved(tmp_path, staged):
    """The folder of models, and the record of the one in it."""
    record = record_of(staged(staging(tmp_path, record_of().cell)))
    publish(tmp_path, record)
    return tmp_path, record


def predicted(model):
    x = torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(1))
    with evaluating(model):
        return predict_noise(model, x, torch.tensor([5, 500, 999]), torch.tensor([3, 10, 0]))


def network_in(folder):
    return UNet2DModel.from_pretrained(folder, subfolder="unet")


class TestTheFolder:
    def test_from_pretrained_reads_the_very_model(self, saved, unlearned):
        models, record = saved
        assert torch.equal(predicted(network_in(models / record.cell.id)), predicted(unlearned))

    def test_it_is_whole_and_nothing_else_is_left(self, saved):
        models, record = saved
        assert [path.name for path in models.iterdir() if path.name != "artifacts"] == [record.cell.id]
        found = {str(path.relative_to(models / record.cell.id)) for path in models.rglob("*") if path.is_file()}
        assert {"unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json", CARD, FACTS} <= found

    def test_before_it_is_settled_there_is_no_folder_of_its_name(self, tmp_path, staged):
        cell = record_of().cell
        staged(staging(tmp_path, cell))
        assert not (tmp_path / cell.id).exists()
        publish(tmp_path, record_of(status="failed"))
        assert not [path for path in tmp_path.iterdir() if cell.id in path.name]

    def test_saving_again_replaces_it(self, saved, unlearned, staged):
        models, record = saved
        (models / record.cell.id / "stray").write_text("")
        with torch.no_grad():
            unlearned.network.class_embedding.weight.zero_()
        publish(models, record_of(staged(staging(models, record.cell))))
        assert not (models / record.cell.id / "stray").exists()
        assert torch.equal(predicted(network_in(models / record.cell.id)), predicted(unlearned))

    def test_staging_changes_neither_the_model_nor_the_random_state_of_the_cell(self, tmp_path, unlearned, staged):
        unlearned.train()
        before = torch.get_rng_state()
        staged(staging(tmp_path, record_of().cell))
        assert unlearned.training
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("way", ["forward", "hook", "part"])
    def test_what_weights_do_not_hold_is_noticed(self, tmp_path, unlearned, weights, way):
        if way == "forward":
            whole = unlearned.forward
            unlearned.forward = lambda x, t, y: whole(-x, t, y)
        elif way == "hook":
            unlearned.network.conv_in.register_forward_hook(lambda part, args, result: 2 * result)
        else:
            unlearned.network.conv_out = torch.nn.Sequential(unlearned.network.conv_out)
        with pytest.raises(NotInWeights):
            weights()
        unsaved = record_of({"reason": "hooks"})
        assert is_saved(tmp_path, unsaved), "a cell whose model no folder can hold must not run for ever"

    def test_an_unwritable_folder_is_one_sentence(self, tmp_path, staged):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="--save-models"):
            staged(staging(tmp_path / "file", record_of().cell))

    def test_a_full_disk_is_one_sentence_and_leaves_nothing(self, tmp_path, staged, monkeypatch):
        def refuse(self, folder, **_):
            folder.mkdir(parents=True)
            (folder / "half").write_text("")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr(UNet2DModel, "save_pretrained", refuse)
        models, cell = tmp_path / "models", record_of().cell
        with pytest.raises(UsageError, match=r"\(No space left on device\): free space or .*--save-models"):
            staged(staging(models, cell))
        assert list(models.iterdir()) == []

    def test_two_runs_of_one_cell_do_not_meet(self, tmp_path, staged):
        cell = record_of().cell
        others = tmp_path / staging(tmp_path, cell).name.replace(str(os.getpid()), str(os.getppid()))
        for folder in (staging(tmp_path, cell), others):
            record = record_of(staged(folder))
        publish(tmp_path, record)
        assert others.is_dir()  # its owner is at work
        assert is_saved(tmp_path, record)


class TestWhichCellsRun:
    def asked(self, record, models):
        dataset = load_dataset("digits")
        device, execution = DeviceModel("cpu", "A CPU"), Execution(Path("cache"), models=models)
        metrics = [SimpleNamespace(name="fake_ua", is_apart=False)]
        return needed(record, execution, sources={}, metrics=metrics, device=device, dataset=dataset)

    def test_a_cell_without_its_folder_runs(self, saved, tmp_path):
        models, record = saved
        assert not self.asked(record, None)
        assert not self.asked(record, models)
        assert self.asked(record, tmp_path / "elsewhere")

    def test_a_folder_of_another_record_does_not_count(self, saved):
        models, record = saved
        assert self.asked(replace(record, wall_seconds=8.0), models)

    def test_a_torn_folder_does_not_count(self, saved):
        models, record = saved
        (models / record.cell.id / FACTS).write_text("{")
        assert self.asked(record, models)

    def test_a_folder_without_weights_does_not_count(self, saved):
        models, record = saved
        (models / record.cell.id / "unet" / WEIGHTS).unlink()
        assert self.asked(record, models)


def facts_of(dataset):
    """Return what is saved with a model of a dataset."""
    denoiser = untrained(dataset, PIXELS)
    return {
        "conditions": dataset.conditions.to_json(), "model": denoiser.title, "noise": denoiser.noise,
        "use": denoiser.usage(3, dataset.null_class, dataset.protocol.sampler),
    }  # fmt: skip


class TestTheCard:
    def test_it_says_what_the_record_knows(self, tiny):
        record = record_of({"sha256": "f00"}, settings={"steps": 17, "reading": "both"})
        text = card(record, facts_of(tiny))
        assert text.startswith("---\nlibrary_name: diffusers\ntags:\n")
        for part in (
            "Alpha", "class 3", record.cell.id, records_digest([record]), "| `steps` | 17 |", "| `reading` | both |",
            "| UA | 90.0 | % | higher | 100 |", "| FID | 5.00 | - | lower | 100 |", "12 steps, guidance w 0.5",
            "label 10 is the null class", "f00", "may come back",
        ):  # fmt: skip
            assert part in text, part

    def test_paper_class_names_and_gaps(self, tiny):
        record = record_of({"sha256": "f00"}, more={"fake_ua": {"value": None, "reason": "too few samples"}})
        record = replace(
            record,
            cell=replace(record.cell, further=(5,), earlier=((0,),)),
            method={**record.method, "paper": "1234.5678"},
            dataset={**record.dataset, "class_names": ["owl", *"bcdef"], "image_shape": [3, 32, 32]},
        )
        text = card(record, facts_of(replace(tiny, image_shape=(3, 32, 32))))
        assert "class 3 (d) and class 5 (f)" in text
        assert "had it forget class 0 (owl)." in text
        assert "[arXiv:1234.5678](https://arxiv.org/abs/1234.5678)" in text
        assert "not measurable: too few samples" in text
        assert "torch.randn(8, 3, 32, 32)" in text


class TestSampling:
    def test_images_start_from_the_evaluations_noise(self, saved):
        models, record = saved
        model = open_model(models / record.cell.id, CPU)
        images = draw(model, [3, 5], 2, seed=None, steps=2, guidance=None, progress=quiet)
        assert images.shape == (2, 2, *SHAPE)
        alone = draw(model, [5], 1, seed=None, steps=2, guidance=None, progress=quiet)
        assert np.array_equal(alone[0, 0], images[1, 0])
        other = draw(model, [5], 1, seed=1, steps=2, guidance=None, progress=quiet)
        assert not np.array_equal(other, alone)

    def test_guidance_changes_the_images(self, saved):
        model = open_model(saved[0] / saved[1].cell.id, CPU)
        assert model.sampler["guidance"] == 0.5
        strong, usual = (
            draw(model, [3], 1, seed=0, steps=2, guidance=guidance, progress=quiet) for guidance in (8.0, None)
        )
        assert not np.array_equal(strong, usual)

    def test_any_unet_with_labels_will_do(self, tmp_path, unlearned):
        unlearned.network.save_pretrained(tmp_path / "foreign" / "unet")
        model = open_model(tmp_path / "foreign", CPU)
        assert (model.class_names, model.null_class) == (tuple(map(str, range(11))), 10)
        assert (model.sampler["steps"], model.sampler["guidance"]) == (50, 0.0)
        assert draw(model, [0], 1, seed=None, steps=1, guidance=None, progress=quiet).shape == (1, 1, *SHAPE)

    @pytest.mark.parametrize(
        ("n", "size"), [(1, (64, 64)), (2, (130, 64)), (5, (196, 130)), (9, (196, 196))], ids=lambda value: str(value)
    )
    def test_one_class_fills_nearly_a_square(self, n, size):
        assert image_grid(np.zeros((1, n, *SHAPE), dtype=np.uint8)).size == size

    def test_classes_are_rows_and_pixels_are_enlarged_as_they_are(self):
        images = np.random.default_rng(0).integers(0, 256, (3, 4, 3, 32, 32), dtype=np.uint8)
        pixels = np.asarray(image_grid(images))
        assert pixels.shape == (3 * 66 - 2, 4 * 66 - 2, 3)
        found = pixels[66 : 66 + 64 : 2, 132 : 132 + 64 : 2].transpose(2, 0, 1)
        assert np.array_equal(found, images[1, 2])
        assert (pixels[64:66] == 255).all()


@pytest.fixture
def sample(monkeypatch, capsys, saved):
    """Return a function that runs `unlearnbench sample` on the saved model: (exit status, stderr)."""
    models, record = saved
    monkeypatch.chdir(models)

    def run(model=record.cell.id, **options):
        given = {"class": "3", "n": "1", "steps": "1", "device": "cpu", "out": "grid.png", **options}
        arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", ["unlearnbench", "sample", model, *arguments])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        return status, capsys.readouterr().err.replace("\n", " ")

    return run


def test_sample_writes_a_picture(sample, tmp_path):
    status, err = sample(out="new/grid.png", **{"class": "0-9"}, n="3")
    assert status == 0, err
    assert Image.open(tmp_path / "new" / "grid.png").size == (3 * 66 - 2, 10 * 66 - 2)


BAD = {
    "absent model": ({"model": "absent"}, "there is no model folder absent"),
    "folder without a model": ({"model": "artifacts"}, "it lacks config.json"),
    "class out of range": ({"class": "10"}, "give a class from 0 to 9"),
    "class without a name": ({"class": "cat"}, "there is no class 'cat'"),
    "no images": ({"n": "0"}, "--n"),
    "guidance that is no number": ({"guidance": "nan"}, "finite"),
    "picture of another kind": ({"out": "grid.jpg"}, "ends in .png"),
    "picture that is a folder": ({"out": "folder.png"}, "is a folder"),
    "picture in a file": ({"out": "file.txt/grid.png"}, "is a file"),
    "unknown device": ({"device": "warp"}, "try --device cpu"),
}


@pytest.mark.parametrize("case", BAD, ids=[name.replace(" ", "-") for name in BAD])
def test_bad_input_of_sample(sample, tmp_path, case):
    options, message = BAD[case]
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "artifacts").mkdir(exist_ok=True)
    status, err = sample(**options)
    assert (status, message in err, "Traceback" in err) == (2, True, False), err
    assert not (tmp_path / "grid.png").exists()


def test_steps_of_ddim_must_divide(sample, saved):
    facts = saved[0] / saved[1].cell.id / FACTS
    written = facts.read_text()
    content = json.loads(written)
    del content["sampler"]["solver"]  # as in folders of earlier versions
    try:
        facts.write_text(json.dumps(content))
        status, err = sample(steps="7")
    finally:
        facts.write_text(written)
    assert (status, "does not divide" in err) == (2, True), err
    assert sample(steps="7")[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / FACTS).write_text("{}"), "save the model again"),
        (lambda folder: (folder / "unet" / WEIGHTS).write_bytes(b"no weights"), f"its unet/{WEIGHTS} cannot be read"),
        (
            lambda folder: (folder / "unet/config.json").write_text('{"_class_name": "VQModel"}'),
            "its _class_name is 'VQModel', but digits needs 'UNet2DModel'",
        ),
        (
            lambda folder: (folder / "scheduler/scheduler_config.json").write_text(
                json.dumps({**SCHEDULE, "_class_name": "DDPMScheduler", "beta_end": 1})
            ),
            "beta_end",
        ),
    ],
    ids=["facts", "weights", "class", "schedule"],
)
def test_a_folder_that_is_broken_is_one_sentence(sample, saved, change, message):
    models, record = saved
    change(models / record.cell.id)
    status, err = sample()
    assert (status, message in err, "Traceback" in err) == (2, True, False), err


def test_a_model_without_labels_has_no_class_to_ask_for(tmp_path, unlearned):
    build_unet({**unlearned.config, "num_class_embeds": None}).save_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match="no class labels"):
        open_model(tmp_path / "bare", CPU)


def test_an_unwritable_folder_stops_a_run_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")
    command = ["unlearnbench", "run", "--methods", "original", "--classes", "0", "--save-models", "file.txt"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "--save-models file.txt" in capsys.readouterr().err.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def run(folder):
    command = ["run", "--methods", "original,safemax,sham_noise", "--classes", "3", "--set", "safemax.steps=2"]
    command += ["--metrics", "ua", "--device", "cpu", "--controls", "none", "--save-models", "models"]
    return run_command(folder, *command)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A run that saves its models: (folder, exit status, output, record of the method)."""
    folder = tmp_path_factory.mktemp("product")
    status, output = run(folder)
    records = ResultStore(folder / "results").read().records
    return folder, status, output, {record.cell.method: record for record in records}


def judged(record):
    """Return the first images of the forget class that the record keeps, (n, 8, 8)."""
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(record.images["forget"]["png"]))))
    return np.stack(np.split(strip, strip.shape[1] // 8, axis=1))


class TestARun:
    def test_it_writes_what_a_folder_can_hold_and_says_what_not(self, finished):
        folder, status, output, records = finished
        assert status == 0, output
        assert [path.name for path in (folder / "models").iterdir()] == [records["safemax"].cell.id]
        assert "sha256" in records["safemax"].artifacts["model"]
        assert not {"model"} & {*records["original"].artifacts, *records["sham_noise"].artifacts}
        facts = json.loads((folder / "models" / records["safemax"].cell.id / FACTS).read_text())
        assert facts["record"] == records_digest([records["safemax"]])

    def test_the_same_command_runs_again_only_what_has_lost_its_folder(self, finished):
        folder, _, _, records = finished
        models = folder / "models"
        (models / records["safemax"].cell.id).rename(folder / "moved")
        status, output = run(folder)
        assert (status, "2 of 3 cells are recorded" in output) == (0, True), output
        fresh, moved = network_in(models / records["safemax"].cell.id), network_in(folder / "moved")
        assert torch.equal(predicted(fresh), predicted(moved))

    def test_samples_are_the_images_that_the_record_judged(self, finished):
        folder, _, _, records = finished
        model = open_model(folder / "models" / records["safemax"].cell.id, CPU)
        expected = judged(records["safemax"])
        found = draw(model, [3], len(expected), seed=None, steps=None, guidance=None, progress=quiet)
        assert np.array_equal(found[0, :, 0], expected)

    def test_the_cards_own_code_draws_them_too(self, finished):
        folder, _, _, records = finished
        record = records["safemax"]
        text = (folder / "models" / record.cell.id / CARD).read_text()
        code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
        seeds = sample_seeds(record.cell, [3] * 8)
        noise = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in seeds])
        code = code.replace('folder = "."', "folder = FOLDER").replace("torch.randn(8, 1, 8, 8)", "NOISE")
        names = {"FOLDER": folder / "models" / record.cell.id, "NOISE": noise}
        exec(code, names)
        difference = to_uint8(names["x"])[:, 0].numpy().astype(int) - judged(record)
        assert np.abs(difference).max() <= 1
