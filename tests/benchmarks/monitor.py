"""Whether the NVML monitor's polls slow the cell they watch: the same training steps with and without the monitor.

    python -m tests.benchmarks.monitor [ROUNDS]

The monitor process is the real one, over the fake NVML of tests/cost/test_nvml.py, which reads and writes files where a
driver would answer; the steps train the digits network on all cores, so that every poll takes a core from them. Prints
the ratio with / without as median, min and max (the aim: 1.01 at most), and the CPU time of the monitor, which is what
it can take at worst.
"""

import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import psutil
import torch

from tests.benchmarks.fisher import header, network, ratio
from tests.cost.test_nvml import FakeDevice
from unlearnbench.cost.nvml import PERIOD_SECONDS, NvmlMonitor
from unlearnbench.models.diffusion import Schedule, eps_loss

ROUNDS, STEPS, BATCH = 40, 20, 48


def make_workload():
    """Return a function that trains the digits network for STEPS steps and returns the seconds they took."""
    model, shape = network("digits")
    optimizer, schedule = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True), Schedule.of()
    x0, y, t = torch.randn(BATCH, *shape), torch.arange(BATCH) % 10, torch.arange(BATCH) * 20
    eps = torch.randn_like(x0)

    def work():
        started = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            eps_loss(model, schedule, x0, y, t, eps).mean().backward()
            optimizer.step()
        return time.perf_counter() - started

    return work


def watched(work):
    """Return the seconds of the work while a monitor polls, the polls meanwhile, and the CPU seconds they took."""
    with NvmlMonitor("GPU-1") as monitor:
        (process,) = psutil.Process().children()
        monitor.edge()
        before = process.cpu_times()
        seconds = work()
        after = process.cpu_times()
        monitor.edge()
        assert monitor.polls > 2, monitor.problems
        return seconds, monitor.polls - 2, after.user + after.system - before.user - before.system


def main():
    header()
    rounds, work = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS, make_workload()
    with TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"PYTHONPATH": folder}):
        FakeDevice(Path(folder)).set(processes=[[os.getpid(), 10**9]], used=10**9)
        work()
        found, without = [], []
        for round_number in range(rounds):
            for polled in (True, False) if round_number % 2 else (False, True):
                if polled:
                    found.append(watched(work))
                else:
                    without.append(work())
    seconds, polls, cpu = (list(values) for values in zip(*found, strict=True))
    medians = f"{statistics.median(seconds):.3f} s watched, {statistics.median(without):.3f} s not"
    print(f"{STEPS} steps at batch {BATCH}: {medians}, ratio {ratio(seconds, without, 3)}")
    print(
        f"{sum(polls) / sum(seconds):.1f} polls per second (one every {PERIOD_SECONDS:g} s is asked for), "
        f"{100 * sum(cpu) / sum(seconds):.2f} % of one core"
    )


if __name__ == "__main__":
    main()
