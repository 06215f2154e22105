"""Shared fixtures: a tiny dataset and harness for unit tests, one trained cache for end-to-end tests, fake records."""

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import ROOT, sharing
from unlearnbench.cost.meter import Meter
from unlearnbench.datasets import load_dataset
from unlearnbench.models.codec import PIXELS
from unlearnbench.models.denoiser import untrained
from unlearnbench.models.kept import Kept
from unlearnbench.plugins.registry import Registry
from unlearnbench.report.figures.drawing import FIGURES
from unlearnbench.report.figures.style import set_style
from unlearnbench.store.artifacts import ArtifactStore, software
from unlearnbench.store.cell import Cell, Target
from unlearnbench.store.hashing import canonical_json
from unlearnbench.store.records import Record, ResultStore
from unlearnbench.unlearn.context import Context
from unlearnbench.unlearn.harness import Harness

INFINITE = "a number that JSON can spell and no float can hold"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background: children would be deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # small tensors run no faster on two
if sharing.WORKER:
    sharing.pin(sharing.OWN)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Two workers for the suite, or much of it; none for a single file, which would only wait for their imports."""
    if len(config.args) == 1 and Path(config.args[0].split("::")[0]).is_file():
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    return min(2, len(sharing.CORES))


def pytest_sessionstart(session):
    """Make what belongs to digits while the workers are at tests that do without it."""
    cache = os.environ.get("UNLEARNBENCH_CACHE")
    if cache and not sharing.WORKER and getattr(session.config.option, "numprocesses", None):
        code = f"from tests.cells import prepare_digits; prepare_digits({cache!r})"
        maker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        session.config.add_cleanup(maker.kill)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    with sharing.turn():
        return (yield)


@pytest.fixture
def alone():
    """The test has all cores, and no other one runs meanwhile."""
    with sharing.alone():
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The artifact cache of end-to-end tests; the base model in it is trained once per session."""
    chosen = os.environ.get("UNLEARNBENCH_CACHE")
    base = tmp_path_factory.getbasetemp()
    folder = Path(chosen) if chosen else (base.parent if sharing.WORKER else base) / "cache"
    os.environ["UNLEARNBENCH_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def registry():
    return Registry()


@pytest.fixture(scope="session")
def tiny():
    """The digits dataset with a denoiser of a few thousand weights and a short protocol."""
    digits = load_dataset("digits")
    unet = {**digits.base.network, "block_out_channels": [8, 8], "norm_num_groups": 4}
    return replace(
        digits,
        base=replace(digits.base, network=unet, steps=4, batch=8),
        judge=replace(digits.judge, epochs=1),
        rejecting=replace(digits.rejecting, epochs=1),
        extractor=replace(digits.extractor, epochs=1),
        protocol=replace(digits.protocol, steps=2, forget_samples=6, retain_samples=2, batch_size=5),
    )


@pytest.fixture
def make_harness(tiny, registry, tmp_path):
    """Return a factory of harnesses around a randomly initialised tiny model."""

    def make(method="safemax", *, streams=None, forget_class=3, target=None, seed=0, dtype=torch.float32, **changes):
        torch.manual_seed(7)
        base = untrained(tiny, PIXELS).to(dtype).eval().requires_grad_(False)
        kept = Kept.make(PIXELS, tiny.load(None, None).train, mirrors=False, device=torch.device("cpu"))
        fields = {
            "dataset": tiny, "kept": kept, "base": base, "base_digest": "base",
            "method": method, "source_hash": "source", "seed": seed,
            "target": Target(*target) if target else Target((forget_class,)),
            "device": torch.device("cpu"),
            "streams": registry.method(method).streams if streams is None else frozenset(streams),
            "store": ArtifactStore(tmp_path / "artifacts"), "meter": Meter(), "software": software(),
            "device_identity": {"type": "cpu", "uuid": "1"},
            "progress": lambda what, done, total: None,
        }  # fmt: skip
        if (train := changes.pop("train", None)) is not None:
            changes["kept"] = Kept.make(PIXELS, train, mirrors=False, device=torch.device("cpu"))
        return Harness(**{**fields, **changes})

    return make


@pytest.fixture
def make_context(make_harness):
    return lambda *args, **kwargs: Context(make_harness(*args, **kwargs))


def reading(folder):
    """Read a folder of records."""
    return ResultStore(folder).read()


def fake_record(
    method="alpha", forget_class=0, *, title=None, role="method", seed=0, status="ok", fid=5.0, ua=90.0, settings=None,
    overrides=None, dataset="digits", device="device-1", source_hash="m1", started="2026-01-01T00:00:00Z", images=None,
    rte=2.0, phases=None, truth=None, more=None, **fields,
):  # fmt: skip
    """Return a record as a run would write it, with made-up numbers.

    Args:
        phases: {phase: what its cost has besides, or instead}.
        truth: of a control.
        more: {metric: what its entry has besides, or instead}; a new name is like UA.
        fields: further fields of the record.
    """
    entry = {"n": 100, "source": "", "source_hash": "x1", "reason": None, "headline": True}
    metrics = {
        "fake_fid": {
            **entry,
            "value": fid,
            "title": "FID",
            "unit": "",
            "better": "lower",
            "format": ".2f",
            "shows": "retention",
        },
        "fake_ua": {
            **entry,
            "value": ua,
            "title": "UA",
            "unit": "%",
            "better": "higher",
            "format": ".1f",
            "shows": "forgetting",
        },
    }
    for name, changes in (more or {}).items():
        metrics[name] = {**metrics.get(name, {**metrics["fake_ua"], "headline": False, "title": name}), **changes}
    cost = {
        phase: {"seconds": seconds, "memory_bytes": {"rss_peak": 10**9 + k}, "reused": False}
        for k, (phase, seconds) in enumerate({"prior": 1.0, "forget": rte, "sample": 3.0, "judge": 0.5}.items())
    }
    for phase, more in (phases or {}).items():
        cost[phase] = {"memory_bytes": {"rss_peak": 10**9}, "reused": False, **cost.get(phase, {}), **more}
    ok = status == "ok"
    return Record(
        cell=Cell(dataset, "protocol-1", method, settings or {"steps": 10}, forget_class, seed, seed, seed),
        method={
            "title": title or method.title(), "paper": "", "role": role, "overrides": overrides or {},
            "source_hash": source_hash, **({"truth": truth} if truth else {}),
        },
        status=status,
        reason=None if ok else "it broke",
        metrics=metrics if ok else {},
        cost=cost if ok else {},
        wall_seconds=7.0,
        protocol={"name": "protocol-1", "steps": 25, "eta": 0.0, "guidance": 0.5, "reference": "training images"},
        dataset={
            **load_dataset("digits").to_json(), "title": "Digits", "extractor": "64-d features", "tuning_classes": [],
        },
        judge={"test_accuracy": 0.99, "n": 360} if ok else {},
        artifacts={"base": {"key": "k", "sha256": "s"}} if ok else {},
        images=images or {},
        provenance={
            "device": {"type": "cpu", "name": "A CPU", "uuid": device}, "packages": {"torch": "2.9"},
            "started_utc": started,
        },
        **fields,
    )  # fmt: skip


def cifar_shapes(blocks=3, classes=10):
    """Return {name: shape} of a CIFAR ResNet's weights as a file names them."""
    norms, shapes, before = {"bn1": 16}, {"conv1.weight": (16, 3, 3, 3)}, 16
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (width, before, 3, 3), f"{name}.conv2.weight": (width, width, 3, 3)}
            norms |= {f"{name}.bn1": width, f"{name}.bn2": width}
            before = width
    for name, width in norms.items():
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, "linear.weight": (classes, 64), "linear.bias": (classes,)}


def cifar_weights(blocks=3, classes=10, seed=0):
    """Return random weights of a CIFAR ResNet; a variance is above 0."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(shape, generator=generator) + 0.5
        if name.endswith(("running_var", "bn1.weight", "bn2.weight"))
        else 0.1 * torch.randn(shape, generator=generator)
        for name, shape in cifar_shapes(blocks, classes).items()
    }


def write(path, text):
    """Write a file, and the folders around it, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def signed(value):
    """Return the line of a record's JSON with the checksum of what it says now; the text INFINITE becomes 1e999."""
    text = unsigned(value)
    return f'{{"checksum":"{hashlib.sha256(text.encode()).hexdigest()}",{text[1:]}'


def unsigned(value, **fields):
    """Return the same without a checksum."""
    value = {name: field for name, field in {**value, **fields}.items() if name != "checksum"}
    return canonical_json(value).replace(f'"{INFINITE}"', "1e999")


def stated(board):
    """Return what a board says of all its tables, and in the caption of each."""
    return "; ".join([*(f"{name}: {words}" for name, words in board.setup), board.caption("")])


def draw_all(board):
    """Return {name: figure} of every figure that a board has numbers for."""
    set_style()
    drawn = {name: make(board, None, ()) for name, make in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}
