"""Counts the images that choices of settings send through the model, with a small network of random weights.

A job in a separate process, since methods are run. The counts do not depend on the size of the network.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnbench.cost.meter import Meter
from unlearnbench.datasets import Dataset, Split
from unlearnbench.errors import spell_error
from unlearnbench.models.autoencoder import untrained_codec
from unlearnbench.models.denoiser import CPU, small_recipe, untrained
from unlearnbench.models.kept import Kept
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.space import STEPS
from unlearnbench.plugins.spec import MethodSpec
from unlearnbench.protocols import JobChannel, Progress
from unlearnbench.run.tuning import Loop, Work
from unlearnbench.store.artifacts import ArtifactStore, Tensors, key_of, software
from unlearnbench.store.cell import Scalar, Target
from unlearnbench.store.revisions import of_parts
from unlearnbench.unlearn.context import METHOD, Context, counted
from unlearnbench.unlearn.harness import Harness
from unlearnbench.unlearn.streams import Counts

MANY = 10_000  # steps that a method is asked for, of which it takes a few
REVISION = 2  # of what is counted here
MOST = 64  # steps of a loop in which one may repeat the first


class Counting(Context):
    """A context that ends loops over steps once their work repeats, and draws one sample in place of many."""

    def __init__(self, harness: Harness, purpose: str = METHOD, shared: bool = False, *, whole: bool = True) -> None:
        """Make it as a `Context`; `whole` lets loops run to their end."""
        super().__init__(harness, purpose, shared)
        self.whole = whole
        self.loops: list[Loop] = []
        self.in_loops = 0  # images

    def _images(self) -> int:
        counts = self._harness.counts
        return counts.forward_images + counts.backward_images

    def steps(self, n: int) -> Iterator[int]:
        """Yield the first few steps."""
        images, before, left = list[int](), self._images(), True
        try:
            for step in super().steps(n):
                yield step
                images.append(self._images() - before)
                before += images[-1]
                if not self.whole and len(images) > 1 and (images[-1] == images[0] or len(images) == MOST):
                    break
            left = False
        finally:  # a loop that the method leaves has one round, which repeats where it does not leave
            if not self.whole and images:
                again = not left and len(images) > 1 and images[-1] == images[0]
                self.loops.append(Loop(n / MANY, images[:-1] if again else images, again or left))
                self.in_loops += sum(images)

    def check_finite(self) -> None:
        """Check nothing: the network is untrained."""

    def log(self, **scalars: Tensor | float) -> None:
        """Keep nothing."""

    def sample(self, labels: Tensor, *, dropout: bool = False) -> Tensor:
        """Return copies of one image, and count the others as well."""
        counts = self._harness.counts
        before = counts.copy()
        one = super().sample(labels[:1], dropout=dropout)
        work = counts.since(before)
        for _ in labels[1:]:
            counts.add(work)
        return one.expand(len(labels), *one.shape[1:]).clone()

    def _build(self, name: str, build: Callable[..., Tensors], shared: bool, inputs: Mapping[str, Any]) -> Tensors:
        """Build a prior with a context like this one."""
        context = Counting(replace(self._harness, curves={}), f"prior {name}", shared)
        context.model.eval()
        return build(context, **inputs)


def count_images(
    name: str, trials: Sequence[Mapping[str, Scalar]], dataset: Dataset, target: Target, plugin_files: Sequence[Path],
    cache: Path, channel: JobChannel,
) -> list[Work]:  # fmt: skip
    """Return the work of each choice of a method's settings, from the cache if it was counted before.

    Args:
        name: of the method.
        trials: settings that differ from the published ones, without steps.
        dataset: of the trials.
        target: what is forgotten.
        plugin_files: files that may hold the method.
        cache: folder of artifacts.
        channel: shows progress.
    """
    store, source = ArtifactStore(cache), Registry(plugin_files).source_hash("method", name)
    inputs = {
        "method": name, "source": source, "trials": [dict(settings) for settings in trials], "target": target,
        "dataset": [dataset.name, dataset.content, dataset.digest], "sampler": dataset.protocol.sampler,
        "harness": of_parts(("unlearning", "sampler")), "rehearsal": REVISION,
    }  # fmt: skip
    if (known := store.find("rehearsal", key_of("rehearsal", inputs))) is not None:
        return [Work.from_json(value) for value in known.facts["work"]]
    train, began = dataset.load(store, channel).train, time.monotonic()
    found = _count(Registry(plugin_files).method(name), source, trials, dataset, train, target, channel)
    if not any(work.failure for work in found):  # which may be due to this process
        store.put("rehearsal", inputs, {}, {"work": [asdict(work) for work in found]}, time.monotonic() - began)
    return found


def _count(
    method: MethodSpec, source: str, trials: Sequence[Mapping[str, Scalar]], dataset: Dataset, train: Split,
    target: Target, progress: Progress,
) -> list[Work]:  # fmt: skip
    """Return the work of each choice of a method's settings, on these images."""
    small = replace(dataset, base=small_recipe(dataset.base), compiled=False, precision="fp32")
    torch.manual_seed(0)
    codec = untrained_codec(small)
    base = untrained(small, codec).eval().requires_grad_(False)
    kept = Kept.make(codec, train, mirrors=dataset.flip, device=CPU)
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(
            small, kept, base, "rehearsal", method.name, source, method.streams, 0, target, CPU,
            ArtifactStore(Path(folder)), Meter(), {"type": "cpu", "uuid": "rehearsal"}, software(), _quiet,
        )  # fmt: skip
        found = []
        for number, settings in enumerate(trials):
            progress("rehearse", number, len(trials))
            found.append(_work(method, harness, settings))
        return found


def _quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def _work(method: MethodSpec, harness: Harness, settings: Mapping[str, Scalar]) -> Work:
    """Run a method with one choice of settings; what it raises becomes the reason for no count."""
    has_steps = STEPS in method.settings
    many = {STEPS: MANY} if has_steps else {}
    fresh = replace(harness, counts=Counts(), curves={}, priors={}, meter=harness.meter.fresh())
    try:
        context = Counting(fresh, whole=not has_steps)
        with counted(fresh, context), fresh.meter.phase("forget"):
            method.function(context, **method.resolve((), {**settings, **many}))
    except Exception as error:  # of the method: its trial fails
        return Work(0, failure=f"it fails in a rehearsal with a small network: {spell_error(error)}")
    images = fresh.counts.forward_images + fresh.counts.backward_images
    return Work(images - context.in_loops, context.loops)
