"""Shortened work for estimates: a few of many similar pieces are done, and a clock extrapolates the others.

An estimate runs methods, priors and attacks this way. The clock's times are extrapolated and never recorded.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unlearnbench.datasets import Dataset
from unlearnbench.measure.attacks import LABEL_DROPOUT, Attacker
from unlearnbench.measure.path import ModelPath
from unlearnbench.measure.probe import Probe
from unlearnbench.models.denoiser import Denoiser
from unlearnbench.models.sampler import Start
from unlearnbench.run.at_hand import Look, Missing
from unlearnbench.run.estimate import Rate
from unlearnbench.store.artifacts import Artifact, Tensors, key_of
from unlearnbench.unlearn.context import METHOD, Context
from unlearnbench.unlearn.harness import Harness
from unlearnbench.unlearn.streams import Stream

LEAST_PIECES = 4  # the first is not timed, as first use is slower
ENOUGH_SECONDS = 1.5  # of timed pieces, after which the others are extrapolated
PLENTY_SECONDS = 10.0  # of timed pieces, after which fewer are enough
PERIOD_SECONDS = 60.0  # limit for finding a piece like the first, if the second differs
SAMPLE_SECONDS = 1.0  # of timed sampling
BATCH_SECONDS = 5.0  # of one step of a batch; above this, fewer images are used
GAUGE = 2  # images to predict the time of a batch
PRIOR_SECONDS = 5.0  # a prior that takes longer is built with smaller amounts
AMOUNT_SECONDS = 20.0  # limit for each build with a smaller amount
AMOUNTS = (2, 3, 4)  # the smaller amounts
ATTACK_STEPS = 5  # of the sampler, at most

T = TypeVar("T")
Work = tuple[int, ...]  # optimiser steps, images forward, images backward


class NotKnown(Exception):
    """The time of the whole work cannot be extrapolated; the text says why."""


class TrialClock:
    """A clock, in seconds, that adds the extrapolated time of skipped work."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start without skipped work.

        Args:
            device: does the work.
            clock: the real one.
        """
        self.reckoned = False  # whether anything was extrapolated so far
        self.rate: Rate | None = None  # of the loop that ended last
        self._device, self._clock, self._left_out = device, clock, 0.0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self._clock() + self._left_out

    def settled(self) -> float:
        """Wait for all work launched on the device, and return the time."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return self()

    def reckon(self, began: float, seconds: float) -> None:
        """Set the time since `began` to the seconds of the whole work."""
        self.rewind(began)
        self._left_out += seconds
        self.reckoned = True

    def rewind(self, began: float) -> None:
        """Set the time since `began` to zero."""
        self._left_out -= self.settled() - began

    def few(self, pieces: Iterable[T], total: float, work: Callable[[], Work]) -> Iterator[T]:
        """Yield a few pieces of work, and extrapolate the others.

        The first is counted once, as first use takes longer. Where the second does different work, pieces are yielded
        until one repeats the work of the first: a period. Work with a longer period is missed.

        Args:
            pieces: to take the first few of.
            total: number of pieces; a fraction where the last one is smaller.
            work: returns the work so far, to compare pieces.

        Raises:
            NotKnown: no piece repeated the first within a minute.
        """
        began = first_ended = last_began = self.settled()
        done: list[Work] = []
        before = work()
        for piece in pieces:
            yield piece
            after = work()
            done.append(tuple(b - a for a, b in zip(before, after, strict=True)))
            before = after
            if len(done) == 1:
                first_ended = last_began = self.settled()
            elif len(done) < total and _tell_all(done, self() - first_ended):
                now = self.settled()
                self.rate = _rate(done[1:], now - first_ended, total)
                first = self.rate.seconds if done[1] == done[0] else now - last_began  # without first-use overhead
                self.reckon(first_ended, total * self.rate.seconds - first)
                return
            elif done[1] != done[0]:
                last_began = self.settled()
        if done:
            self.rate = _rate(done, self.settled() - began, total)


def _tell_all(done: list[Work], seconds: float) -> bool:
    """Say whether the pieces so far are enough to extrapolate; `seconds` excludes the first.

    Raises:
        NotKnown: no piece repeated the first in time.
    """
    if done[0] == done[1]:
        return seconds >= (ENOUGH_SECONDS if len(done) >= LEAST_PIECES else PLENTY_SECONDS)
    if done[-1] == done[0]:
        return True
    if seconds > PERIOD_SECONDS:
        raise NotKnown(f"its first step does other work than the next, and none repeated it in {PERIOD_SECONDS:.0f} s")
    return False


def _rate(done: list[Work], seconds: float, total: float) -> Rate:
    return Rate(seconds / len(done), total, sum(work[0] for work in done if work) / len(done))


def sample_some(
    clock: TrialClock, model: Denoiser, labels: Tensor, dataset: Dataset, dropout: bool | None = None
) -> Tensor:
    """Sample one batch for a few steps, and extrapolate the other batches and steps.

    Args:
        clock: to extrapolate on.
        model: noise predictor.
        labels: (N,) classes.
        dataset: says how it is sampled.
        dropout: leave it on; None for the protocol's.

    Returns:
        (N, C, H, W) uint8 on the CPU: the few images, again and again.
    """
    protocol = dataset.protocol
    changed = {} if dropout is None else {"dropout": dropout}

    def draw(n: int, steps: int) -> tuple[Tensor, float]:
        """Return n images after `steps` steps, and the seconds they took."""
        began = clock.settled()
        sampler = {**protocol.sampler, **changed, "steps": steps}
        images = model.draw(labels[:n], range(n), null_class=dataset.null_class, **sampler)
        return images, clock.settled() - began

    began, gauge = clock.settled(), min(GAUGE, len(labels))
    draw(gauge, 1)  # first use
    _, seconds = draw(gauge, 1)
    fitting = max(gauge, int(BATCH_SECONDS * gauge / max(seconds, 1e-9)))
    n = min(len(labels), protocol.batch_size, fitting)
    _, seconds = draw(n, 1)
    steps = _few_steps(protocol.steps, model.schedule.timesteps, seconds)
    images, seconds = draw(n, steps)
    clock.reckon(began, seconds / (n * steps) * len(labels) * protocol.steps)
    return images[torch.arange(len(labels)) % n]


def _few_steps(steps: int, timesteps: int, seconds: float) -> int:
    """Return the number of sampling steps to time, given the seconds of one: two at least, if there are two."""
    divisors = [d for d in range(1, steps + 1) if timesteps % d == 0]
    return max(d for d in divisors if d <= 2 or d * seconds <= SAMPLE_SECONDS)


class TrialStream(Stream):
    """A stream that yields a few batches of an epoch."""

    def __init__(self, stream: Stream, clock: TrialClock, work: Callable[[], Work]) -> None:
        vars(self).update(vars(stream))
        self._clock, self._work = clock, work

    def epoch(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the first few batches, and extrapolate the others."""
        return self._clock.few(super().epoch(batch), len(self) / batch, self._work)


class TrialStore(Look):
    """A read-only cache; missing artifacts are made and kept in memory."""

    def __init__(self, root: Path) -> None:
        """Read a folder."""
        super().__init__(root)
        self.made: dict[str, Artifact] = {}

    def get(
        self, kind: str, inputs: Mapping[str, Any], build: Callable[[], tuple[Tensors, Mapping[str, Any]]]
    ) -> Artifact:
        """Return an artifact of the cache, or of memory."""
        try:
            return super().get(kind, inputs, build)
        except Missing:
            key = key_of(kind, inputs)
            if key in self.made:
                return replace(self.made[key], reused=True)
            tensors, facts = build()
            tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
            self.made[key] = Artifact(kind, key, "", tensors, facts, reused=False)
            return self.made[key]


class _TooLong(BaseException):
    """Ends a prior that takes too long. Not an Exception, which its builder may catch."""


class Trial(Context):
    """A context that shortens the work of a method or a prior."""

    def __init__(
        self, harness: Harness, clock: TrialClock, purpose: str = METHOD, shared: bool = False, rehearsing: bool = False
    ) -> None:
        """Make it as a `Context`.

        Args:
            harness: its resources; its meter has the same clock.
            clock: to extrapolate on.
            purpose: as in `Context`.
            shared: likewise.
            rehearsing: end the method's loops after one step, which makes its priors and loads its kernels.
        """
        super().__init__(harness, purpose, shared)
        self._clock, self._rehearsing = clock, rehearsing
        self._ends = math.inf  # time limit of a prior, by time.monotonic()

    def steps(self, n: int) -> Iterator[int]:
        """Yield the first few steps, and extrapolate the others."""
        steps = super().steps(n)
        return islice(steps, 1) if self._rehearsing else self._clock.few(steps, n, self._work)

    def check_finite(self) -> None:
        """Check nothing: the base may be an untrained network."""

    def log(self, **scalars: Tensor | float) -> None:
        """Keep nothing; logging is not timed."""

    def sample(self, labels: Tensor, *, dropout: bool = False) -> Tensor:
        """Return an image per label, most of them copies, and extrapolate the time of sampling."""
        ends, began = self._ends, time.monotonic()
        self._ends = math.inf  # sampling limits its own time
        images = sample_some(self._clock, self.base, labels, self._harness.dataset, dropout)
        self._ends = ends + time.monotonic() - began
        return self.base.codec.encode(images.to(self._harness.device))

    def _stream(self, name: str) -> Stream:
        stream = super()._stream(name)
        if not isinstance(stream, TrialStream):
            stream = self._streams[name] = TrialStream(stream, self._clock, self._work)
        return stream

    def _work(self) -> Work:
        counts = self._harness.counts
        return counts.optimizer_steps, counts.forward_images, counts.backward_images

    def _build(self, name: str, build: Callable[..., Tensors], shared: bool, inputs: Mapping[str, Any]) -> Tensors:
        """Build a prior with shortened work; if it still takes too long, with smaller values of one of its inputs.

        Raises:
            NotKnown: its work does not grow linearly in any input.
        """

        def attempt(inputs: Mapping[str, Any], limit: float) -> Tensors | None:
            return self._attempt(name, shared, lambda context: build(context, **inputs), limit)

        def with_less(key: str) -> Callable[[int], Tensors | None]:
            return lambda amount: attempt({**inputs, key: amount}, AMOUNT_SECONDS)

        tensors = attempt(inputs, PRIOR_SECONDS)
        if tensors is not None:
            return tensors
        amounts = {key: value for key, value in inputs.items() if type(value) is int and value > AMOUNTS[-1]}
        for key in sorted(amounts, key=lambda key: -amounts[key]):
            tensors = self._grow(with_less(key), amounts[key])
            if tensors is not None:
                return tensors
        raise NotKnown(f"its prior {name} takes long, and its work is not linear in any of its inputs")

    def _grow(self, attempt: Callable[[int], Tensors | None], amount: int) -> Tensors | None:
        """Build a prior with small amounts, and extrapolate linearly to the whole amount.

        Returns:
            The result of the last build, or None where it takes too long too, or its work does not grow linearly.
        """
        began = self._clock.settled()
        tensors: Tensors | None = None
        sizes, times, works = list(AMOUNTS), list[float](), list[Work]()
        for size in sizes:
            then, before = self._clock.settled(), self._work()
            tensors = attempt(size)
            if tensors is None:
                break
            times.append(self._clock.settled() - then)
            works.append(tuple(b - a for a, b in zip(before, self._work(), strict=True)))
            if size == AMOUNTS[-1]:  # another one, for a longer line
                sizes.append(min(amount, size + max(1, int(size * ENOUGH_SECONDS / times[-1]))))
        growth = {
            tuple((b - a) / (more - less) for a, b in zip(*pair, strict=True))
            for (less, more), pair in zip(pairwise(sizes), pairwise(works), strict=False)
        }
        slope = (times[-1] - times[0]) / (sizes[-1] - sizes[0]) if tensors is not None else 0.0
        if len(growth) != 1 or not any(next(iter(growth))) or slope <= 0:
            self._clock.rewind(began)
            return None
        self._clock.reckon(began, times[0] + slope * (amount - sizes[0]))
        return tensors

    def _attempt(self, name: str, shared: bool, build: Callable[[Context], Tensors], limit: float) -> Tensors | None:
        """Build a prior; where that takes longer than `limit` seconds, undo its effects and return None."""
        began = self._clock.settled()
        context = Trial(replace(self._harness, curves={}), self._clock, f"prior {name}", shared)
        context.model.eval()
        context._ends = time.monotonic() + limit

        def check(*_: Any) -> None:
            if time.monotonic() > context._ends:
                raise _TooLong

        hooks = [network.register_forward_pre_hook(check) for network in (context.model, context.base)]
        try:
            return build(context)
        except _TooLong:
            self._clock.rewind(began)
            return None
        finally:
            for hook in (*hooks, context.watching):
                hook.remove()


@dataclass(frozen=True)
class TrialProbe(Probe):
    """A probe with few sampling steps."""

    clock: TrialClock = field(kw_only=True)

    def verdicts(
        self, model: Denoiser, asked: Sequence[int], *, labels: Tensor | None = None, start: Start | None = None,
        **changed: Any,
    ) -> NDArray[np.int64]:  # fmt: skip
        """Return the verdicts on samples with few steps, and extrapolate the time of the others."""
        protocol, began = self.dataset.protocol, self.clock.settled()
        whole = changed.pop("steps", protocol.steps)
        steps = max(d for d in range(1, ATTACK_STEPS + 1) if self.schedule.timesteps % d == 0 and d <= whole)
        few = replace(self, dataset=replace(self.dataset, protocol=replace(protocol, steps=steps)))
        found = Probe.verdicts(few, model, asked, labels=labels, start=start, **changed)
        self.clock.reckon(began, (self.clock.settled() - began) * whole / steps)
        return found


@dataclass(frozen=True)
class TrialPath(TrialProbe, ModelPath):
    """A path with few sampling steps."""


@dataclass(frozen=True)
class TrialAttacker(TrialProbe, Attacker):
    """An attacker with few sampling steps and shortened trainings."""

    def train(
        self, name: str, model: nn.Module, weights: Iterable[Tensor], draw: Callable[[], tuple[Tensor, Tensor]], *,
        steps: int, lr: float, label_dropout: float = LABEL_DROPOUT,
    ) -> Iterator[int]:  # fmt: skip
        """Take the first few steps and extrapolate the others; yield as an attacker does."""
        taken = super().train(name, model, weights, draw, steps=steps, lr=lr, label_dropout=label_dropout)
        for _ in self.clock.few(taken, steps, lambda: ()):
            pass
        yield from range(1, steps + 1)
