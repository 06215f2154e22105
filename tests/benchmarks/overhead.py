"""What the harness itself takes of a cell: the share of its wall time that lies outside the phases, from real runs.

    python -m tests.benchmarks.overhead [--small | --big | RESULTS]

Reads the records in a results folder, or runs `unlearnbench run` and reads what it writes. `--small` is digits, all
methods on two classes with the user's cache, twice: the first run fills the cache, the second is shown. `--big` is a
cell of CIFAR-10's shape: 60,000 random images of 32x32 pixels in a folder and a cache of their own, protocol `smoke`
with SAFEMax's settings for it, a base model trained for one step, and judges with the weights they start from, which
take as long as trained ones.

Overhead is the start of the process, what is loaded, and what has no name: records' `outside`, but for waits and
repeated timings, which count nowhere here. The warm-up is a phase, and shown apart. `original` does nothing, and its
samples come from the cache, so a good part of its cells is overhead.
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
from unlearnbench.datasets import Source, load_dataset
from unlearnbench.judges import judges
from unlearnbench.measure import prepared as preparation
from unlearnbench.plugins.spec import NEEDS
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.records import ResultStore

OVERHEAD = ("start", "load", "rest")
COLUMNS = ("wall", *OVERHEAD, "warmup", "work")
TRAIN, TEST = 5000, 1000  # images per class, as CIFAR-10 has


def run_cells(folder, *options, environment=None):
    """Run `unlearnbench run` with results in a folder, and return the last record of each cell."""
    results = ["--results", str(folder / "results"), "--out", str(folder / "reports")]
    command = [sys.executable, "-c", "from unlearnbench.cli.commands import main; main()", "run", *options, *results]
    subprocess.run([*command, "--rerun", "always"], check=True, stdout=subprocess.DEVNULL, env=environment)
    return ResultStore(folder / "results").read().records


def seconds_of(record):
    """Return the seconds of one cell by column, those alone that were spent in it."""
    own = {phase: cost["seconds"] - cost["reused_seconds"] for phase, cost in record.cost.items()}
    own["forget"] = record.cost["forget"].get("repeats", [own["forget"]])[0]  # the others are in `outside`
    parts = {name: record.outside[name] for name in OVERHEAD} | {"warmup": own.pop("warmup"), "work": sum(own.values())}
    return {"wall": record.wall_seconds - record.outside.get("repeat", 0.0), **parts}


def show(title, records):
    """Print a line for each method and one for all cells."""
    cells = [(record.cell.method, seconds_of(record)) for record in records]
    print(f"\n{title}\n\nseconds per cell, mean; overhead as a share of all seconds (min and max of the cells)\n")
    print(f"| {'method':8} | cells | {' | '.join(f'{name:>6}' for name in COLUMNS)} | {'overhead':>24} | with warmup |")
    print(f"| -------- | ----: | {' | '.join(['-----:'] * len(COLUMNS))} | {'-' * 23}: | ----------: |")
    for chosen in [*dict.fromkeys(method for method, _ in cells), "all"]:
        group = [seconds for method, seconds in cells if chosen in ("all", method)]
        mean = {name: sum(seconds[name] for seconds in group) / len(group) for name in COLUMNS}
        single = [share(seconds, OVERHEAD) for seconds in group]
        numbers = " | ".join(f"{mean[name]:6.2f}" for name in COLUMNS)
        overhead = f"{share(mean, OVERHEAD):5.2f} % ({min(single):5.2f}, {max(single):5.2f})"
        both = f"{share(mean, [*OVERHEAD, 'warmup']):9.2f} %"
        print(f"| {chosen:8} | {len(group):5} | {numbers} | {overhead:>24} | {both} |", flush=True)


def share(seconds, parts):
    """Return some parts of a cell's wall time in percent of it."""
    return 100 * sum(seconds[part] for part in parts) / seconds["wall"]


def digits():
    with TemporaryDirectory() as name:
        options = ("--methods", "all", "--classes", "0,1")
        run_cells(Path(name), *options)
        show("digits; the aim is 5 %", run_cells(Path(name), *options))


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
        with mock.patch.object(judges, "fit_classifier"):  # judges keep the weights they start from
            preparation.prepare(dataset, ArtifactStore(cache), device, lambda what, done, total: None, tuple(NEEDS))
        options = ("--dataset", "imagefolder", "--data-root", str(root), "--protocol", "smoke", "--base-steps", "1")
        environment = {**os.environ, "UNLEARNBENCH_CACHE": str(cache)}
        records = run_cells(Path(name), *options, "--methods", "safemax", "--classes", "0", environment=environment)
        show("CIFAR-10's shape; the aim is 1 %", records)


def main():
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    for folder in folders:
        show(folder, [record for record in ResultStore(Path(folder)).read().records if record.outside])
    if folders:
        return
    header()
    if asked_for("digits"):
        digits()
    if asked_for("CIFAR-10-shaped"):
        cifar10_shaped()


if __name__ == "__main__":
    main()
