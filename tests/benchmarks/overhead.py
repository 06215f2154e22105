"""What the harness itself takes of a cell: the share of its wall time that lies outside the phases, from real runs.

    python -m tests.benchmarks.overhead [--small | --big]

Runs `unlearnbench run` and reads the records it writes. `--small` is digits, all methods on two classes with the user's
cache, twice: the first run fills the cache, the second is shown. `--big` is a cell of CIFAR-10's shape: 60,000 random
images of 32x32 pixels in a folder and a cache of their own, protocol `smoke` with SAFEMax's settings for it, a base
model trained for one step, and judges with the weights they start from, which take as long as trained ones.

Overhead is the start of the process, what is loaded, and what has no name (records' `outside` but waiting for a turn).
The warm-up is a phase, and shown beside. A cell of `original` draws no sample that the cache has, so nearly all of it
is overhead; the line of all cells is the run's.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
from PIL import Image

from tests.benchmarks.fisher import asked_for, header
from unlearnbench import preparation
from unlearnbench.artifacts import ArtifactStore
from unlearnbench.datasets import Source, load_dataset
from unlearnbench.results import ResultStore

OVERHEAD = ("start", "load", "rest")
COLUMNS = ("wall", *OVERHEAD, "warmup", "phases")
AIMS = {"digits": 5, "CIFAR-10's shape": 1}  # percent
TRAIN, TEST = 5000, 1000  # images per class, as CIFAR-10 has


def run_cells(folder, *options, environment=None):
    """Run `unlearnbench run` with results in a folder, and return the last record of each cell."""
    results = ["--results", str(folder / "results"), "--out", str(folder / "reports")]
    command = [sys.executable, "-c", "from unlearnbench.cli import main; main()", "run", *options, *results]
    subprocess.run([*command, "--rerun", "always"], check=True, stdout=subprocess.DEVNULL, env=environment)
    return ResultStore(folder / "results").read().records


def seconds_of(record):
    """Return the seconds of one cell by column; those of reused products were spent in other cells."""
    own = {phase: cost["seconds"] - cost["reused_seconds"] for phase, cost in record.cost.items()}
    outside = {name: record.outside[name] for name in OVERHEAD}
    warmup = own.pop("warmup")
    return {"wall": record.wall_seconds, **outside, "warmup": warmup, "phases": sum(own.values())}


def show(title, records):
    """Print a line per cell and one for all of them."""
    cells = [(f"{record.cell.method} forgets {record.cell.forget_class}", seconds_of(record)) for record in records]
    if len(cells) > 1:
        cells.append(("all cells", {name: sum(seconds[name] for _, seconds in cells) for name in COLUMNS}))
    print(f"\n{title}, seconds; the aim is {AIMS[title]} %\n")
    print(f"| {'cell':20} | {' | '.join(f'{name:>6}' for name in COLUMNS)} | overhead | with warm-up |")
    print(f"| {'-' * 20} | {' | '.join(['-----:'] * len(COLUMNS))} | -------: | -----------: |")
    for name, seconds in cells:
        overhead = sum(seconds[part] for part in OVERHEAD)
        share, with_warmup = (100 * part / seconds["wall"] for part in (overhead, overhead + seconds["warmup"]))
        numbers = " | ".join(f"{seconds[column]:6.2f}" for column in COLUMNS)
        print(f"| {name:20} | {numbers} | {share:6.2f} % | {with_warmup:10.2f} % |", flush=True)


def digits():
    with TemporaryDirectory() as name:
        options = ("--methods", "all", "--classes", "0,1")
        run_cells(Path(name), *options)
        show("digits", run_cells(Path(name), *options))


def write_images(root):
    """Write random images of ten classes, as many as CIFAR-10 has."""
    random = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("test", TEST)):
        for label in range(10):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for k, pixels in enumerate(random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)):
                Image.fromarray(pixels).save(folder / f"{k}.bmp")


def cifar10_shaped():
    with TemporaryDirectory() as name:
        root, cache = Path(name) / "noise", Path(name) / "cache"
        write_images(root)
        dataset = load_dataset(Source("imagefolder", "smoke", root, base_steps=1))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with mock.patch.object(preparation, "fit_classifier"):  # judges keep the weights they start from
            preparation.prepare(dataset, ArtifactStore(cache), device, lambda what, done, total: None)
        options = ("--dataset", "imagefolder", "--data-root", str(root), "--protocol", "smoke", "--base-steps", "1")
        environment = {**os.environ, "UNLEARNBENCH_CACHE": str(cache)}
        records = run_cells(Path(name), *options, "--methods", "safemax", "--classes", "0", environment=environment)
        show("CIFAR-10's shape", records)


def main():
    header()
    if asked_for("digits"):
        digits()
    if asked_for("CIFAR-10-shaped"):
        cifar10_shaped()


if __name__ == "__main__":
    main()
