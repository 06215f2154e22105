"""Steps of SAFEMax, SalUn and SA with one backward pass per loss term against both terms as one batch.

    python -m tests.benchmarks.passes [--small | --big]

Prints the bytes that a step saves for its backward passes, at most at a time, and its seconds, both ways measured in
turn, with the ratio separate / joint as median, min and max. `--small` leaves out the CIFAR-10-shaped network, `--big`
the digits one.
"""

import copy
import statistics
from collections.abc import Callable

import torch

from tests.benchmarks.fisher import BareContext, asked_for, header, in_turn, network, ratio
from unlearnbench.plugins.registry import Registry

SIZES = (("digits", 48, 10, 15), ("CIFAR-10-shaped", 8, 1, 5))  # network, batch of each kind, steps, rounds


class Priors(BareContext):
    """A bare context whose priors are there already: SalUn's mask, SA's replay images and Fisher matrix."""

    def prior(self, name, build, **inputs):
        if name == "replay":
            return {"x0": torch.rand(90, *self._shape) * 2 - 1, "y": torch.arange(90) % 10}
        drawn = {key: torch.rand_like(parameter) for key, parameter in self.model.named_parameters()}
        return {key: value > 0.5 for key, value in drawn.items()} if name == "mask" else drawn


def saved_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes that are saved for backward passes at a time while `run` runs."""
    alive: dict[int, int] = {}
    most = 0

    class Saved:
        def __init__(self, tensor):
            nonlocal most
            self.tensor = tensor
            alive[id(self)] = tensor.nbytes
            most = max(most, sum(alive.values()))

        def __del__(self):
            alive.pop(id(self))

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        run()
    return most


def main():
    header()
    for name, batch, steps, rounds in SIZES:
        if not asked_for(name):
            continue
        model, shape = network(name)
        for method in ("safemax", "salun", "sa"):
            spec = Registry().method(method)

            def run(passes, steps, spec=spec, model=model, shape=shape, batch=batch):
                settings = {**spec.resolve((), {}), "steps": steps, "batch": batch, "passes": passes}
                spec.function(Priors(copy.deepcopy(model).train(), shape), **settings)

            def separate(run=run, steps=steps):
                run("separate", steps)

            def joint(run=run, steps=steps):
                run("joint", steps)

            memory = [
                saved_bytes(lambda run=run, passes=passes: run(passes, 1)) / 2**20 for passes in ("separate", "joint")
            ]
            first, second = in_turn(separate, joint, rounds)
            print(
                f"{name}, {method}, batch {batch} + {batch}: {memory[0]:.1f} and {memory[1]:.1f} MiB saved; "
                f"{statistics.median(first) / steps:.3f} and {statistics.median(second) / steps:.3f} s a step, "
                f"separate / joint {ratio(first, second)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
