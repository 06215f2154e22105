"""Measures a device in a minute: steps of the paper's methods, the sampler, waits, memory, and the peak.

    python -m tests.gpu.probe --out FILE [--device cuda] [--size paper|tiny] [--seconds N]

FILE is JSON: `facts` of machine and software, and `measurements`, each with its name, unit, n, and median, min and max.
It is written anew after each measurement, so that what was measured is there whatever ends the rest; one that fails
leaves an `error` in its place. Images are random numbers in CIFAR-10's shape, and so are the priors of SalUn and SA:
no step takes longer or shorter for their values.
"""

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.gpu.waits import host_waits
from unlearnbench.cost.meter import Meter
from unlearnbench.cost.nvml import NvmlMonitor
from unlearnbench.datasets import Images, Source, Split, resolve
from unlearnbench.errors import spell_error
from unlearnbench.models.codec import PIXELS
from unlearnbench.models.diffusion import Schedule, half_precision
from unlearnbench.models.flops import PEAK_SIZE, peak_flops
from unlearnbench.models.kept import Kept
from unlearnbench.models.networks import frozen
from unlearnbench.models.sampler import _guided_noise, ddim_step, sample
from unlearnbench.models.training import DenoiserTraining
from unlearnbench.models.unet import UNet
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import MethodSpec
from unlearnbench.run.jobs import resolve_device
from unlearnbench.store.artifacts import ArtifactStore, software
from unlearnbench.store.cell import Target
from unlearnbench.unlearn.context import Context
from unlearnbench.unlearn.harness import Harness

METHODS = ("safemax", "salun", "sa")
CLASSES = 10
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    protocol: str  # of the colour image sets; it brings the network and the base model's recipe
    side: int  # pixels
    images: int  # of the training set
    batch: int | None  # images of each kind per step; None: the method's own
    block: int  # steps that are timed together
    blocks: int
    drawn: int  # images per batch of the sampler
    compiled: bool  # whether torch.compile is tried, which takes half a minute


SIZES = {
    "paper": Size("paper", 32, 10_000, None, 5, 3, 500, compiled=True),
    "tiny": Size("smoke", 8, 200, 4, 1, 1, 4, compiled=False),
}


class Stopwatch(Context):
    """A method's context whose steps are timed, with random priors; nothing is logged, which would stop the clock.

    Attributes:
        seconds: of the first step, then per step of each block.
    """

    def __init__(self, harness: Harness, block: int) -> None:
        super().__init__(harness)
        self.block = block
        self.seconds: list[float] = []

    def steps(self, n: int) -> Iterator[int]:
        """Yield 0 to n - 1."""
        started = now(self._harness.device)
        for step in range(n):
            yield step
            if step % self.block == 0:
                stopped = now(self._harness.device)
                self.seconds.append((stopped - started) / (self.block if step else 1))
                started = stopped

    def log(self, **scalars: Any) -> None:
        """Log nothing."""

    def prior(self, name: str, build: Any, *, shared: bool = False, **inputs: Any) -> dict[str, torch.Tensor]:
        """Return random numbers in the shapes of SalUn's mask, or of SA's replay images and Fisher matrix."""
        if name == "replay":
            y = torch.arange(90, device=self._harness.device) % CLASSES
            return {"x0": torch.rand(90, *self._harness.dataset.image_shape, device=y.device) * 2 - 1, "y": y}
        drawn = {key: torch.rand_like(weight) for key, weight in self.model.named_parameters()}
        return {key: value > 0.5 for key, value in drawn.items()} if name == "mask" else drawn


def now(device: torch.device) -> float:
    """Return the seconds of a clock when all work launched on the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def spread(values: list[float], unit: str, **facts: Any) -> Numbers:
    """Return what a measurement says: median, least and largest of n values."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return {"unit": unit, "n": len(values), "median": middle, "min": least, "max": most, **facts}


@dataclass
class Probe:
    """A device under measurement, and what is known of it so far."""

    device: torch.device
    identity: Mapping[str, Any]
    size: Size
    store: ArtifactStore
    monitor: NvmlMonitor | None  # None where the device is not CUDA
    found: list[Numbers] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make random images and a base model with random weights."""
        draw = np.random.default_rng(0)
        shape = (3, self.size.side, self.size.side)
        pixels = draw.integers(0, 256, (self.size.images, *shape), dtype=np.uint8)
        self.train = Split(pixels, np.arange(self.size.images) % CLASSES)
        self.dataset = resolve(
            Source("cifar10", self.size.protocol, extractor="own"), name="random", title="random images",
            class_names="0123456789", image_shape=shape, flip=True, load=lambda *_: Images(self.train, self.train),
        )  # fmt: skip
        self.kept = Kept.make(PIXELS, self.train, mirrors=True, device=self.device)
        torch.manual_seed(0)
        model = UNet.untrained(self.dataset)
        self.base = frozen(model, model.state_dict(), self.device)
        self.schedule = Schedule.of(device=self.device)

    def context(self, method: MethodSpec, compiled: bool) -> Stopwatch:
        """Return a context for a method."""
        harness = Harness(
            replace(self.dataset, compiled=compiled), self.kept, self.base, "probe", method.name, "probe",
            method.streams, 0, Target((3,)), self.device, self.store, Meter(), self.identity, software(),
            lambda what, done, total: None,
        )  # fmt: skip
        return Stopwatch(harness, self.size.block)

    def run(self, name: str, steps: int, passes: str, bf16: bool = False, compiled: bool = False) -> Stopwatch:
        """Let a method take so many steps and return its context."""
        spec = Registry().method(name)
        batch = {} if self.size.batch is None else {"batch": self.size.batch}
        context = self.context(spec, compiled)
        with half_precision(self.device, bf16):
            spec.function(context, **spec.resolve((), {"steps": steps, "passes": passes, **batch}))
        context.watching.remove()
        self.base._forward_hooks.clear()
        return context

    @contextmanager
    def memory(self) -> Iterator[dict[str, int]]:
        """Fill a dict with the peaks of what happens inside, in bytes, as NVML and torch's allocator count them."""
        peaks: dict[str, int] = {}
        if self.monitor is not None:
            gc.collect()  # what the measurement before held
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.monitor.edge()
        yield peaks
        if self.monitor is not None:
            now(self.device)
            peaks |= self.monitor.edge()
            peaks["torch_reserved"] = torch.cuda.max_memory_reserved(self.device)
            peaks["torch_allocated"] = torch.cuda.max_memory_allocated(self.device)

    # Measurements

    def method(self, name: str, passes: str = "separate", bf16: bool = False, compiled: bool = False) -> Numbers:
        """Time a method's steps, the first apart from the others, and its memory."""
        with self.memory() as peaks:
            first, *later = self.run(name, 1 + self.size.block * self.size.blocks, passes, bf16, compiled).seconds
        missing = {} if self.monitor is None else self.monitor.problems
        facts = {"steps_per_second": 1 / statistics.median(later), "first_step_seconds": first}
        return spread(later, "s per step", **facts, memory_bytes=peaks, memory_missing=missing)

    def waits(self, name: str) -> Numbers:
        """Count the waits of the host in each step of a method."""
        counts = []
        for steps in (2, 4):
            with host_waits(self.device) as waits:
                self.run(name, steps, "separate")
            counts.append(len(waits))
        return {"unit": "waits per step", "n": 2, "median": (counts[1] - counts[0]) / 2}

    def training(self, generator: torch.Generator) -> DenoiserTraining:
        """Return the base model's training at its first step."""
        recipe = self.dataset.base
        torch.manual_seed(recipe.seed)
        model = UNet.untrained(self.dataset)
        placed = frozen(model, model.state_dict(), self.device).requires_grad_(True).train()
        return DenoiserTraining(
            placed, self.schedule, total=100, batch=self.size.batch or recipe.batch, lr=recipe.lr, cosine=recipe.cosine,
            label_dropout=recipe.label_dropout, ema=recipe.ema, clip=recipe.clip, null_class=CLASSES,
            generator=generator, bf16=recipe.precision == "bf16",
        )  # fmt: skip

    def draw(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return n images (n, C, H, W) in [-1, 1] and labels (n,), the same ones every time."""
        images, labels = torch.from_numpy(self.train.images[:n]), torch.from_numpy(self.train.labels[:n])
        return images.to(self.device) / 127.5 - 1, labels.to(self.device)

    def base_training(self) -> Numbers:
        """Time steps of the base model's training, and see whether a second run gives the same losses."""
        seconds, losses = [], []
        for _ in range(2):
            training = self.training(torch.Generator(self.device).manual_seed(0))
            batch = self.draw(training.batch)
            for _ in range(1 + self.size.block * self.size.blocks):
                started = now(self.device)
                training.advance(lambda n, batch=batch: batch)
                seconds.append(now(self.device) - started)
            losses.append(training.losses[: training.step].double())
        later = [value for k, value in enumerate(seconds) if k % (len(seconds) // 2)]
        apart = ((losses[0] - losses[1]).abs() / losses[0].abs()).max().item()
        facts = {"steps_per_second": 1 / statistics.median(later), "first_step_seconds": seconds[0]}
        return spread(later, "s per step", **facts, largest_relative_difference_of_two_runs=apart)

    def sampler(self, precision: str, compiled: bool = False) -> Numbers:
        """Time sampling steps with guidance, one batch through both branches, in fp32, tf32 or bf16."""
        model = torch.compile(self.base) if compiled else self.base
        x = torch.randn(self.size.drawn, *self.dataset.image_shape, device=self.device)
        y = torch.arange(self.size.drawn, device=self.device) % CLASSES
        seconds = []
        with torch.no_grad(), tf32(precision == "tf32"):
            for _ in range(1 + self.size.block):
                started = now(self.device)
                with half_precision(self.device, precision == "bf16"):
                    eps = _guided_noise(model, x, 500, y, 2.0, CLASSES)
                ddim_step(self.schedule, x, eps, 500, 480, 0.0, None)
                seconds.append(now(self.device) - started)
        first, *later = seconds
        speed = self.size.drawn / (50 * statistics.median(later))
        return spread(later, "s per step", batch=self.size.drawn, images_per_second_of_50_steps=speed,
                      first_step_seconds=first)  # fmt: skip

    def sampling(self, bf16: bool) -> Numbers:
        """Time the sampler as a protocol calls it: noise from the host, images back to it."""
        labels, steps, seconds = torch.arange(self.size.drawn) % CLASSES, 10, []
        for _ in range(3):
            started = now(self.device)
            sample(
                self.base, self.schedule, labels, range(self.size.drawn), self.dataset.image_shape, null_class=CLASSES,
                steps=steps, eta=1.0, guidance=2.0, batch_size=self.size.drawn, bf16=bf16,
            )  # fmt: skip
            seconds.append((now(self.device) - started) / steps)
        speed = self.size.drawn / (50 * statistics.median(seconds))
        return spread(seconds, "s per step", batch=self.size.drawn, images_per_second_of_50_steps=speed)

    def peak(self) -> Numbers:
        """Return the operations per second of large products of random matrices."""
        size = PEAK_SIZE.get(self.device.type)
        return {"unit": "FLOP/s", "n": 1, "matrix": size, **peak_flops(self.device)}

    def plan(self) -> Iterator[tuple[str, Callable[[], Numbers]]]:
        """Yield all measurements by name, what matters most first."""
        for name in METHODS:
            for passes in ("separate", "joint"):
                yield f"step of {name}, {passes} passes", partial(self.method, name, passes)
            yield f"step of {name}, bf16", partial(self.method, name, bf16=True)
        yield "step of the base model's training", self.base_training
        for precision in ("fp32", "tf32", "bf16"):
            yield f"sampling step, {precision}", partial(self.sampler, precision)
        for name in METHODS:
            yield f"waits of {name}", partial(self.waits, name)
        for bf16 in (False, True):
            yield f"sampler, {'bf16' if bf16 else 'fp32'}", partial(self.sampling, bf16)
        yield "peak", self.peak
        if self.size.compiled:
            yield "sampling step, bf16, compiled", partial(self.sampler, "bf16", compiled=True)
            yield f"step of {METHODS[0]}, bf16, compiled", partial(self.method, METHODS[0], bf16=True, compiled=True)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32 in convolutions and products, or forbid it."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32 = products.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before


def measure(probe: Probe, facts: Numbers, out: Path, until: float) -> None:
    """Take all measurements for which there is time, and write the file after each."""
    for name, take in probe.plan():
        try:
            found = take() if time.monotonic() < until else {"error": "no time was left"}
        except Exception as error:  # a compiler's, a driver's: the next one may work
            found = {"error": spell_error(error)}
        probe.found.append({"name": name, **found})
        scratch = out.with_name(f".{out.name}")
        scratch.write_text(json.dumps({"facts": facts, "measurements": probe.found}, indent=1), encoding="utf-8")
        scratch.replace(out)
        print(name, json.dumps(probe.found[-1])[:200], flush=True)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Measures a device in a minute.")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--size", choices=SIZES, default="paper", help="tiny is for trying the probe itself")
    parser.add_argument("--seconds", type=float, default=60.0, help="after which no measurement begins")
    asked = parser.parse_args()
    until = time.monotonic() + asked.seconds
    device, monitor = torch.device(asked.device), nullcontext(None)
    if device.type == "cuda":  # the monitor counts from before anything is allocated
        monitor = NvmlMonitor(str(torch.cuda.get_device_properties(device).uuid))
    with monitor as watching, tempfile.TemporaryDirectory() as folder:
        device_info = resolve_device(asked.device)
        facts = {
            "device": device_info["identity"], "software": software(), "python": platform.python_version(),
            "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "size": vars(SIZES[asked.size]),
        }  # fmt: skip
        probe = Probe(
            torch.device(device_info["device"]),
            device_info["identity"],
            SIZES[asked.size],
            ArtifactStore(Path(folder)),
            watching,
        )
        measure(probe, facts, asked.out, until)


if __name__ == "__main__":
    main()
