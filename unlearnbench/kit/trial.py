"""A method on trial: run on the embedded digits, with a small denoiser of random weights, under observation.

The method gets a context like the runner's. The streams it uses, the time of its work, and the random generators it
draws from are recorded; `conformance` judges them.
"""

import inspect
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unlearnbench.cost.meter import Meter
from unlearnbench.datasets import Dataset, Images, Source, Split, load_dataset
from unlearnbench.errors import spell_error
from unlearnbench.kit.gradients import GradientWatch
from unlearnbench.models.autoencoder import untrained_codec
from unlearnbench.models.denoiser import CPU, Denoiser, ready, small_recipe, untrained
from unlearnbench.models.diffusion import evaluating, predict_noise
from unlearnbench.models.kept import Kept
from unlearnbench.plugins.registry import Plugin
from unlearnbench.plugins.spec import STREAMS, MethodSpec
from unlearnbench.store.artifacts import ArtifactStore, Tensors, software
from unlearnbench.store.cell import Scalar, Target
from unlearnbench.unlearn.context import Context, counted
from unlearnbench.unlearn.guides import unlearned_model
from unlearnbench.unlearn.harness import Harness
from unlearnbench.unlearn.streams import Counts

STEPS = 8  # of a setting called `steps`, in place of thousands
FORGET_CLASS = 3
SECONDS = 40.0  # of processor time, for all runs of a method together: a busy machine is not the method's fault
PATIENCE = 10  # limit by the clock, as a multiple of SECONDS, for a method that waits
TICK = 0.2  # seconds between two looks at the time
PACKAGE = str(Path(__file__).resolve().parents[1])


class Watched(Context):
    """A context that separates the method's work before its first step from that inside its steps."""

    def __init__(self, harness: Harness) -> None:
        super().__init__(harness)
        self.given = self.model
        self.counts, self.prepared = harness.counts, Counts()
        self.early: Counts | None = None  # what was done before the first step, priors apart
        self.budget = self.taken = self.stepped = 0  # steps requested and taken; optimiser steps inside them

    @property
    def own(self) -> Counts:
        """Counts of the method's work so far, without priors."""
        return self.counts.since(self.prepared)

    def steps(self, n: int) -> Iterator[int]:
        """Yield as the context does, and count the steps and the optimiser's inside them."""
        if self.early is None:
            self.early = self.own
        self.budget += max(n, 0)
        for step in super().steps(n):
            self.taken += 1
            before = self.own.optimizer_steps
            try:
                yield step
            finally:
                self.stepped += self.own.optimizer_steps - before

    def prior(self, name: str, build: Callable[..., Tensors], *, shared: bool = False, **inputs: Any) -> Tensors:
        """Return what the context does; its work does not count as the method's own."""
        before = self.counts.copy()
        tensors = super().prior(name, build, shared=shared, **inputs)
        self.prepared.add(self.counts.since(before))
        return tensors


class TouchedStreams(frozenset[str]):
    """All streams; records which of them the method used."""

    touched: set[str]

    def __contains__(self, name: object) -> bool:
        self.touched.add(str(name))
        return super().__contains__(name)


class OutOfTime(Exception):
    """The runs of a check take too long."""


def processor_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


class Deadline:
    """The time limit of all runs of a method."""

    def __init__(self) -> None:
        self._spent, self._clock = processor_seconds() + SECONDS, time.monotonic() + PATIENCE * SECONDS

    def has_time_for(self, seconds: float) -> bool:
        """Say whether another `seconds` of processor time fit."""
        return processor_seconds() + seconds <= self._spent and time.monotonic() < self._clock

    def check(self) -> None:
        """Raise OutOfTime when the time is up."""
        if not self.has_time_for(0):
            raise OutOfTime


class Observer(TorchFunctionMode):
    """Records the size of each loss, and each line of a file that drew from torch's global generator.

    The SDK itself may draw from it (`reinitialise`).
    """

    def __init__(self, file: str, deadline: Deadline, step: Callable[[], int]) -> None:
        super().__init__()
        self.file, self.deadline, self.step, self.of_the_sdk = file, deadline, step, False
        self.lines: dict[int, str] = {}
        self.losses: dict[int, float] = {}  # step -> largest absolute loss that was differentiated

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.deadline.check()
        if func in (torch.Tensor.backward, torch.autograd.grad) and isinstance(args[0], Tensor) and args[0].dim() == 0:
            step, size = self.step(), abs(float(args[0].detach()))
            self.losses[step] = max(self.losses.get(step, 0.0), size)
        before = torch.get_rng_state()
        result = func(*args, **(kwargs or {}))
        if not torch.equal(before, torch.get_rng_state()):
            self._blame(getattr(func, "__name__", str(func)))
        return result

    def _blame(self, function: str) -> None:
        """Find the innermost caller in the method's file or the SDK."""
        caller: FrameType | None = sys._getframe(2)
        while caller is not None:
            if caller.f_code.co_filename == self.file:
                self.lines.setdefault(caller.f_lineno, function)
                return
            if caller.f_code.co_filename.startswith(PACKAGE):
                self.of_the_sdk = True
                return
            caller = caller.f_back


@dataclass
class Run:
    """One run of a method, and its results."""

    context: Watched
    harness: Harness
    loaded: list[str]  # an entry per call of the dataset's loader
    error: BaseException | None = None
    returned: object = None
    seconds: float = 0.0
    drew: bool = False  # it used the context's generator, a stream, or torch's global generator
    global_rng: str = ""  # how it used a global generator
    losses: dict[int, float] = field(default_factory=dict)  # of a run that is watched: step -> largest size of a loss
    gradients: GradientWatch | None = None  # of a run that is watched
    prediction: Tensor | None = None  # (K + 1, C, H, W) of the model on fixed inputs, None where it failed
    complaint: str = ""  # why it failed
    base_prediction: Tensor | None = None  # of the base on the same inputs

    @property
    def weights(self) -> Tensors:
        """The weights after the run."""
        return self.context.model.tensors()


class Bench:
    """The embedded dataset and a small denoiser with random weights, for any number of runs of one method."""

    def __init__(self, plugin: Plugin, spec: MethodSpec, folder: Path, model: str) -> None:
        """Make a bench.

        Args:
            plugin: of the method.
            spec: of the method.
            folder: for artifacts.
            model: kind of denoiser.
        """
        digits = load_dataset(Source("digits", model=model))
        base = small_recipe(digits.base)
        self.plugin, self.spec, self.folder = plugin, spec, folder
        self.deadline = Deadline()
        self.dataset = replace(digits, base=base, protocol=replace(digits.protocol, steps=2))
        self.images: Images = digits.load(ArtifactStore(folder), self._progress)
        torch.manual_seed(0)
        self.codec = untrained_codec(self.dataset)
        self.pristine = untrained(self.dataset, self.codec).tensors()
        self.kept = Kept.make(self.codec, self.images.train, mirrors=self.dataset.flip, device=CPU)
        self.expected, _ = self._predict(self.base())
        self.file = inspect.getfile(inspect.unwrap(spec.function))
        self.runs = 0

    def _progress(self, what: str, done: int, total: int) -> None:
        self.deadline.check()

    def base(self) -> Denoiser:
        """Return the base model, untouched, in the memory layout that it has on a GPU."""
        network = ready(untrained(self.dataset, self.codec), self.pristine, CPU)
        return network.to(memory_format=torch.channels_last)

    def settings(self, steps: int) -> dict[str, Scalar]:
        """Return the method's settings on digits, with `steps` in the setting of that name."""
        cut = {"steps": steps} if self.has_steps else {}
        return self.spec.resolve(self.dataset.tunings, cut)

    @property
    def has_steps(self) -> bool:
        """Whether the method has an integer setting called `steps`."""
        return "steps" in self.spec.settings and self.spec.settings["steps"].type is int

    def _harness(self, seed: int, loaded: list[str], priors_of: int | None) -> Harness:
        """Return a harness as the runner makes it; each run has different test images."""
        self.runs += 1
        store = ArtifactStore(self.folder / str(priors_of or self.runs))
        other = self.images.test.images[::-1] ^ np.uint8(self.runs)

        def load(store: ArtifactStore, progress: Any) -> Images:
            loaded.append("load")
            return self.images._replace(test=Split(other, self.images.test.labels))

        dataset: Dataset = replace(self.dataset, load=load)
        streams = TouchedStreams(STREAMS)
        streams.touched = set()
        return Harness(
            dataset=dataset, kept=self.kept, base=self.base(), base_digest="check", method=self.spec.name,
            source_hash=self.plugin.source_hash, streams=streams, seed=seed, target=Target((FORGET_CLASS,)), device=CPU,
            store=store, meter=Meter(),
            device_identity={"type": "cpu", "uuid": "check"}, software=software(), progress=self._progress,
        )  # fmt: skip

    def run(
        self, *, seed: int = 0, steps: int | None = None, watched: bool = False, priors_of: int | None = None
    ) -> Run:
        """Run the method once, as the runner does.

        Args:
            seed: of the cell.
            steps: value of the setting `steps`, STEPS by default.
            watched: record uses of global random generators, losses, and the gradients that optimisers see.
            priors_of: the number of an earlier run, from 1, whose priors may be used again.
        """
        loaded: list[str] = []
        harness = self._harness(seed, loaded, priors_of)
        done = Run(Watched(harness), harness, loaded)
        own, everywhere = done.context.generator.get_state(), _global_states()
        watch = Observer(self.file, self.deadline, lambda: done.context.taken) if watched else None
        done.gradients = GradientWatch(done.context.model) if watched else None
        function: Callable[..., object] = self.spec.function
        began = processor_seconds()
        try:
            with (
                counted(harness, done.context), harness.meter.phase("forget"), watch or nullcontext(),
                done.gradients.watching() if done.gradients else nullcontext(), _stopped_at(self.deadline),
            ):  # fmt: skip
                done.returned = function(done.context, **self.settings(STEPS if steps is None else steps))
            done.context.check_finite()
            if self.spec.inference:
                done.context.model = unlearned_model(self.spec, done.context, done.returned)
        except (Exception, SystemExit) as error:  # the method's error is the result of the run
            done.error = error
        done.seconds = processor_seconds() - began
        now = _global_states()
        moved = [name for name in now if not np.array_equal(now[name], everywhere[name])]
        generator_used = not torch.equal(own, done.context.generator.get_state())
        done.drew = generator_used or any(harness.counts.drawn.values()) or "torch" in moved
        if watch is not None:
            done.global_rng, done.losses = _rng_complaint(watch, moved), watch.losses
        done.base_prediction, _ = self._predict(harness.base)
        done.prediction, done.complaint = self._predict(done.context.model)
        return done

    def again(self, first: Run, *, seed: int = 0, steps: int | None = None, priors_of: int | None = None) -> Run | None:
        """Run once more, None where there is no time for it."""
        if not self.deadline.has_time_for(first.seconds):
            return None
        done = self.run(seed=seed, steps=steps, priors_of=priors_of)
        return None if isinstance(done.error, OutOfTime) else done

    def _predict(self, model: nn.Module) -> tuple[Tensor | None, str]:
        """Return predictions on fixed inputs of every class and the null class, or None and the reason."""
        k = self.dataset.num_classes + 1
        x = torch.randn(k, *self.codec.shape(self.dataset.image_shape), generator=torch.Generator().manual_seed(1))
        try:
            with evaluating(model):
                return predict_noise(model, x, torch.arange(k) * 999 // (k - 1), torch.arange(k)), ""
        except Exception as error:  # a replaced model may raise anything
            return None, spell_error(error)


@contextmanager
def _stopped_at(deadline: Deadline) -> Iterator[None]:
    """Raise OutOfTime inside when the time is up, even in a loop that calls nothing; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    previous = signal.signal(signal.SIGALRM, lambda *_: deadline.check())
    signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _global_states() -> dict[str, Any]:
    """Return the states of the global random generators, to detect their use."""
    python = random.getstate()[1]
    words = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return {
        "Python's random": np.array(python), "torch": torch.get_rng_state().numpy(),
        "numpy.random": np.append(words["key"], words["pos"]),
    }  # fmt: skip


def _rng_complaint(watch: Observer, moved: list[str]) -> str:
    """Return how a run used a global generator, and what to write instead; empty where it did not."""
    words = [
        f"line {line} draws from torch's global generator ({function}): pass generator=ctx.generator"
        for line, function in watch.lines.items()
    ]
    if "torch" in moved and not watch.of_the_sdk and not words:
        words.append("it changes torch's global generator: call no torch.manual_seed, and draw from ctx.generator")
    words += [f"it draws from {name}: draw with torch from ctx.generator" for name in moved if name != "torch"]
    return "; ".join(words)
