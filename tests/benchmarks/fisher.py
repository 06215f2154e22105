"""SA's Fisher matrix: ours against the reference code's loop over single timesteps, on the same weights and draws.

    python -m tests.benchmarks.fisher [--small | --big]

Prints seconds per image of both, measured in turn, and the ratio literal / ours (above 1: ours is faster) as median,
min and max; `--small` leaves out the CIFAR-10-shaped network, `--big` the digits one. The other benchmarks of methods
take their networks, context and table line from here.
"""

import statistics
import sys
import time

import torch

from unlearnbench.datasets import load_dataset
from unlearnbench.models.diffusion import Schedule
from unlearnbench.models.training import drop_labels
from unlearnbench.models.unet import UNet
from unlearnbench.plugins.registry import Registry
from unlearnbench.unlearn.context import Context

PLUGINS = {plugin.name: plugin for plugin in Registry().plugins("method")}
CHUNK = 50  # timesteps per backward pass (SA's code)
CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "dropout": 0.1,
    "num_class_embeds": 11,
}


def network(name):
    """Return a denoiser for 10 classes with random weights, and the shape of its images."""
    torch.manual_seed(0)
    if name == "digits":
        return UNet.untrained(load_dataset("digits")), (1, 8, 8)
    return UNet.from_config(CIFAR10), (3, 32, 32)


class BareContext(Context):
    """A method's context over random images, without harness: no clock, no log, no cache."""

    null_class, forget_classes, retained_classes = 10, (0,), tuple(range(1, 10))

    def __init__(self, model, shape, mask=None, seed=0):
        torch.manual_seed(seed)
        self.model, self.schedule, self.num_classes = model, Schedule.of(), 10
        self.generator = torch.Generator().manual_seed(seed)
        self._shape, self._mask = shape, mask

    def _stream(self, name):
        return self

    def draw(self, n):
        x0 = torch.rand(n, *self._shape, generator=self.generator) * 2 - 1
        return x0, torch.randint(10, (n,), generator=self.generator)

    def prior(self, name, build, **inputs):
        return self._mask

    def steps(self, n):
        return range(n)

    def log(self, **scalars):
        pass

    def drop_labels(self, y, share):
        return drop_labels(y, share, self.null_class, self.generator)


def in_turn(first, second, rounds):
    """Return the seconds of two functions, run in turn `rounds` times each after a round that warms up.

    Every round changes the order, so that a machine that slows down or speeds up favours neither.
    """
    seconds = {first: [], second: []}
    for round_number in range(rounds + 1):
        for run in (first, second) if round_number % 2 else (second, first):
            started = time.perf_counter()
            run()
            if round_number:
                seconds[run].append(time.perf_counter() - started)
    return seconds[first], seconds[second]


def ratio(over, under, digits=2):
    """Return the ratios of two lists of seconds, pair by pair, as one line: median, min, max and n."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    middle, least, most = (f"{value:.{digits}f}" for value in (statistics.median(ratios), min(ratios), max(ratios)))
    return f"{middle} (min {least}, max {most}, n={len(ratios)})"


def side_by_side(title, literal, ours, rounds):
    """Run two functions in turn; print their seconds and the ratio literal / ours."""
    literal_s, ours_s = in_turn(literal, ours, rounds)
    medians = f"literal {statistics.median(literal_s):.4g} s, ours {statistics.median(ours_s):.4g} s"
    print(f"{title}: {medians}, ratio {ratio(literal_s, ours_s)}", flush=True)


def asked_for(name):
    """Return whether a network is to be measured: both are, unless the command line says --small or --big."""
    return ("--big" if name == "digits" else "--small") not in sys.argv


def header():
    threads, cuda = torch.get_num_threads(), torch.cuda.is_available()
    print(f"torch {torch.__version__}, CPU with {threads} threads{' (a GPU is there, unused)' if cuda else ''}")


def literal_fisher(ctx, *, replay, timesteps):
    """One image: batch-1 forwards, summed over a chunk, one backward per chunk, squared after the last chunk."""
    x0, y = replay["x0"][:1], replay["y"][:1]
    ctx.model.zero_grad()
    steps = list(range(0, 1000, 1000 // timesteps))
    for start in range(0, timesteps, CHUNK):
        part = steps[start : start + CHUNK]
        labels = ctx.drop_labels(y.expand(len(part)), 0.1)
        noise = ctx.noise_like(x0.expand(len(part), *x0.shape[1:]))
        loss = 0.0
        for k, t in enumerate(part):
            alpha, eps = ctx.schedule.alphas_cumprod[t], noise[k : k + 1]
            x_t = alpha.sqrt() * x0 + (1 - alpha).sqrt() * eps
            prediction = ctx.model(x_t, torch.tensor([t]), labels[k : k + 1]).sample
            loss = loss + (eps - prediction).square().sum(dim=(1, 2, 3)).mean(dim=0)
        loss.backward()
    scale = 1000 / timesteps
    return {name: (scale * p.grad) ** 2 for name, p in ctx.model.named_parameters() if p.grad is not None}


def flat(matrix):
    return torch.cat([matrix[name].flatten() for name in sorted(matrix)])


def main():
    header()
    fisher = PLUGINS["sa"].load_module().fisher
    for name, timesteps, rounds in (("digits", 1000, 7), ("CIFAR-10-shaped", 20, 3)):
        if not asked_for(name):
            continue
        model, shape = network(name)
        model.eval()
        x0, y = BareContext(model, shape).draw(1)
        options = {"replay": {"x0": x0, "y": y}, "timesteps": timesteps}
        results = {}

        def literal(model=model, shape=shape, options=options, results=results):
            results["literal"] = literal_fisher(BareContext(model, shape), **options)

        def ours(model=model, shape=shape, options=options, results=results):
            results["ours"] = fisher(
                BareContext(model, shape), images=1, chunk=CHUNK, label_dropout=0.1, unit_range=False, **options
            )

        side_by_side(f"{name}, 1 image x {timesteps} timesteps", literal, ours, rounds)
        literal_matrix, our_matrix = (flat(results[key]) for key in ("literal", "ours"))
        difference = (our_matrix - literal_matrix).norm() / literal_matrix.norm()
        print(f"    relative difference of the two matrices: {float(difference):.1e}")


if __name__ == "__main__":
    main()
