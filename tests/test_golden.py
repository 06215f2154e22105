"""Golden numbers: those of a tiny base model, judge, sampler, method, measurement and attack, within 1e-4.

Code may be moved and written anew under them. Where a number changes on purpose, raise the revision of its part in
`unlearnbench/store/revisions.py` and pin the new numbers under it with `python -m tests.test_golden`. Records that rest
on the part are stale from then on, in this repository and at every user's.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cells import tiny_dataset
from unlearnbench import Term, backward, fit_denoiser, predict_noise, reinitialise, relearning_curve
from unlearnbench.cost.meter import Meter
from unlearnbench.judges.forward import forward_batches
from unlearnbench.measure.attacks import Attacker
from unlearnbench.measure.inputs import EvaluationInputs, losses_by_timestep
from unlearnbench.measure.path import ModelPath
from unlearnbench.measure.prepared import prepare
from unlearnbench.models.base import prepare_base
from unlearnbench.models.diffusion import Schedule
from unlearnbench.models.sampler import sample
from unlearnbench.plugins.spec import NEEDS, NO_OBJECT
from unlearnbench.store.artifacts import ArtifactStore, software
from unlearnbench.store.cell import Cell, Target
from unlearnbench.store.revisions import REVISIONS
from unlearnbench.unlearn.context import Context
from unlearnbench.unlearn.harness import Harness

CPU, TINY = torch.device("cpu"), tiny_dataset()
DATASET = replace(TINY, protocol=replace(TINY.protocol, name="digits-ddim25", solver="ddim"))
CELL = Cell("digits", DATASET.protocol.name, "golden", {}, 3, 0)


def marks(values):
    """Return numbers that stand for an array: its mean, its size, and one that knows the order."""
    x = np.asarray(values, dtype=np.float64).ravel()
    return [float(x.mean()), float(np.abs(x).mean()), float((x * np.cos(np.arange(len(x)))).mean())]


def weights(model):
    return marks(torch.cat([weight.detach().flatten() for weight in model.parameters()]))


def measure_base(prepared, store):
    curve = prepare_base(DATASET, store, CPU, lambda *_: None).facts["loss"]
    return {"weights": weights(prepared.base), "losses": marks([loss for _, loss in curve])}


def measure_judges(prepared, store):
    images = DATASET.load(None, lambda *_: None).test.images[:20]
    rejecting = prepared.rejecting
    return {
        "judge": marks(forward_batches(prepared.judge, images, CPU)),
        "second": marks(prepared.second.svm.decision_function(images.reshape(20, -1) / 255)),
        "rejecting": marks(forward_batches(rejecting.network, images, CPU).softmax(dim=1)),
        "features": marks(prepared.train_features),
    }


def measure_unlearning(prepared, store):
    harness = Harness(
        DATASET, prepared.kept, prepared.base, "base", "golden", "source", frozenset({"forget", "retain"}), 0,
        Target((3,)), CPU, store, Meter(), {"type": "cpu", "uuid": "1"}, software(),
        lambda *_: None,
    )  # fmt: skip
    ctx = Context(harness)
    optimizer = torch.optim.Adam(ctx.model.parameters(), lr=1e-3)
    losses = []
    for _ in ctx.steps(4):
        (x_f, y_f), (x_r, y_r) = ctx.forget.draw(8), ctx.retain.draw(8)
        t, eps = ctx.timesteps(8), ctx.noise_like(x_f)
        forget = Term(ctx.schedule.add_noise(x_f, eps, t), t, y_f, ctx.noise_like(x_f))
        optimizer.zero_grad()
        losses += backward(ctx.model, [forget, ctx.eps_term(x_r, y_r, label_dropout=0.5)], [1, 2], passes="separate")
        optimizer.step()
    made = ctx.sample(torch.tensor([3, 4]))
    unlearned = weights(ctx.model)
    reinitialise(ctx.model)
    fit_denoiser(
        ctx.model, ctx.schedule, ctx.retain.draw, ctx.steps(2), total=2, batch=8, lr=1e-3, cosine=True,
        label_dropout=0.1, ema=0.9, clip=1.0, null_class=ctx.null_class, generator=ctx.generator,
    )  # fmt: skip
    return {
        "losses": marks(losses), "unlearned": unlearned, "retrained": weights(ctx.model), "sampled": marks(made),
        "psi": marks(ctx.schedule.terminal_noise(eps, x_f, t)),
    }  # fmt: skip


def measure_sampler(prepared, store):
    labels, found = torch.tensor([3, 3, 7, 0]), {}
    for name, eta, guidance in (("ddim", 0.0, 0.0), ("ddpm", 1.0, 0.0), ("guided", 0.0, 2.0)):
        sampler = {**DATASET.protocol.sampler, "steps": 5, "eta": eta, "guidance": guidance}
        made = sample(
            prepared.base, Schedule.of(), labels, range(4), DATASET.image_shape, null_class=DATASET.null_class,
            **sampler,
        )  # fmt: skip
        found[name] = marks(made)
    dpm = {**DATASET.protocol.sampler, "solver": "dpm++", "steps": 5}
    found["dpm++"] = marks(prepared.base.draw(labels, range(4), null_class=DATASET.null_class, **dpm))
    x = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    found["predicted"] = marks(predict_noise(prepared.base, x, torch.tensor([10, 900]), torch.tensor([3, 10])).detach())
    return found


def measure_measuring(prepared, store):
    inputs = EvaluationInputs(
        CELL, prepared.base, "", DATASET, prepared, store, {"uuid": "1"}, Meter(), lambda *_: None
    )
    losses = losses_by_timestep(inputs)
    return {
        "forget": marks(inputs.forget_samples), "retain": marks(inputs.retain_samples),
        "probs": marks(inputs.forget_probs), "reference": marks(inputs.reference_features),
        "losses": marks([*losses["forget"], *losses["retain"]]),
    }  # fmt: skip


class Brightness:
    """Sees the forget class in half of all images, which the tiny judge, trained for one epoch, sees in none."""

    def names(self, images, device):
        return np.where(images.mean(axis=(1, 2, 3)) > 127, 3, NO_OBJECT)


def measure_attacks(prepared, store):
    attacker = Attacker(
        CELL, prepared.base, DATASET, replace(prepared, rejecting=Brightness()), lambda *_: None, samples=10
    )
    model = attacker.victim()
    stream = attacker.retained("golden")
    steps = list(attacker.train("golden", model, model.parameters(), lambda: stream.draw(4), steps=2, lr=1e-3))
    curve = relearning_curve(attacker, images=1).detail
    path = ModelPath(CELL, model, DATASET, attacker.prepared, lambda *_: None, is_in_weights=True)
    return {
        "steps": steps, "trained": weights(model), "images": marks(attacker.forget_images(2)[0]),
        "relearned": marks(curve["after"]), "between": marks([path.at(a) for a in (0.0, 0.5, 1.0)]),
    }  # fmt: skip


MEASURES = {part: globals()[f"measure_{part}"] for part in REVISIONS}
PATH = Path(__file__).with_name("golden.json")
PINNED = json.loads(PATH.read_text())  # "PART REVISION" -> name -> marks


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts"))
    return prepare(DATASET, store, CPU, lambda *_: None, tuple(NEEDS)), store


@pytest.mark.parametrize("part", REVISIONS)
def test_numbers_change_with_their_revision_alone(part, ready):
    pinned = PINNED.get(f"{part} {REVISIONS[part]}")
    assert pinned, f"pin the numbers of revision {REVISIONS[part]} of {part}: python -m tests.test_golden"
    found = MEASURES[part](*ready)
    assert found.keys() == pinned.keys()
    for name, numbers in pinned.items():
        assert found[name] == pytest.approx(numbers, rel=1e-4, abs=1e-4 * numbers[1]), (
            f"{name} changed: if that is meant, raise the revision of {part} in unlearnbench/store/revisions.py"
        )


def main():
    """Pin the numbers of every part as they are, each under its revision."""
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(Path(folder))
        prepared = prepare(DATASET, store, CPU, lambda *_: None, tuple(NEEDS))
        found = {f"{part} {REVISIONS[part]}": measure(prepared, store) for part, measure in MEASURES.items()}
    PATH.write_text(json.dumps({**PINNED, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
