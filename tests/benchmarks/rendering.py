"""Report speed: seconds to render 10,000 records to every format, in a process of its own, imports included.

python -m tests.benchmarks.rendering [methods|sweep|attacks] [ROUNDS]

The records are those of results/digits with other seeds or settings and jittered numbers. `methods`: 12 rows of 10
classes and 83 seeds, and 40 controls. `sweep`: two datasets, each with 100 rows of 10 classes and 5 seeds. `attacks`:
10 rows of 10 classes and 100 seeds, all of them attacked. With `--write DIR` it only writes the records.
"""

import copy
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import signed
from unlearnbench.store.fields import range_of
from unlearnbench.store.hashing import digest
from unlearnbench.store.records import Record, ResultStore

RESULTS = Path(__file__).parents[2] / "results"
SHAPES = ("methods", "sweep", "attacks")
CLASSES = 10
ATTACKS = "robustness"


def varied(record: Record, seed: int, rng: np.random.Generator, dataset: str = "", **settings: Any) -> dict[str, Any]:
    """Return a record as JSON with another seed, dataset and settings, and numbers as another run might have them."""
    value = copy.deepcopy(record.to_json())
    chosen = {**value["cell"]["settings"], **settings}
    value["cell"] |= {"seed": seed, "base_seed": seed, "sampling_seed": seed, "settings": chosen}
    value["cell"] |= {"dataset": dataset or value["cell"]["dataset"]}
    value["cell"] = {k: v for k, v in value["cell"].items() if v or k not in ("base_seed", "sampling_seed")}
    value["method"] |= {"overrides": settings}
    value["artifacts"]["base"]["sha256"] = digest(seed)
    for entry in value["metrics"].values():
        if entry.get("value") is not None:
            low, high = range_of(entry)
            entry["value"] = float(np.clip(entry["value"] * rng.normal(1, 0.02), low, high))
    for cost in value["cost"].values():
        cost["seconds"] *= rng.normal(1, 0.02)
        cost["memory_bytes"] = {probe: int(n * rng.normal(1, 0.01)) for probe, n in cost["memory_bytes"].items()}
        if "repeats" in cost:
            cost["repeats"] = [cost["seconds"] * rng.normal(1, 0.02) for _ in cost["repeats"]]
    value["cell_id"] = Record.from_json({**value, "cell_id": _cell_id(value)}).cell.id
    return value


def _cell_id(value: dict[str, Any]) -> str:
    from unlearnbench.store.cell import Cell

    return Cell.from_json(value["cell"]).id


def records(shape: str) -> Iterator[dict[str, Any]]:
    """Yield the 10,000 records of a shape as JSON."""
    rng = np.random.default_rng(0)
    single = [
        r for r in ResultStore(RESULTS).read().records if r.cell.dataset == "digits" and len(r.cell.target.gone) == 1
    ]
    of: dict[str, list[Record]] = {}
    for record in single:
        if len(of.setdefault(record.cell.method, [])) < CLASSES:
            of[record.cell.method].append(record)
    full = {name: found for name, found in of.items() if len(found) == CLASSES}
    controls = [r for r in single if r.method.get("role") == "control"]
    rows = [found for found in full.values() if found[0].method.get("role") != "control"]
    attacked = [found for found in rows if any(e["shows"] == ATTACKS for e in found[0].metrics.values())]
    if shape == "methods":
        for seed in range(83):
            yield from (varied(record, seed, rng) for found in rows[:12] for record in found)
        yield from (record.to_json() for record in controls[:40])
    elif shape == "attacks":
        for seed in range(100):
            yield from (varied(record, seed, rng) for found in attacked[:10] for record in found)
    else:
        swept = full["safemax"]
        for dataset in ("digits", "digits-again"):
            for seed in range(5):
                yield from (varied(record, seed, rng, dataset) for record in full["original"])
                yield from (
                    varied(record, seed, rng, dataset, decay=float(k // 9), steps=100 + 10 * (k % 9))
                    for k in range(99) for record in swept
                )  # fmt: skip


def write(shape: str, folder: Path) -> None:
    """Write the records of a shape as a store would, without a sync for each."""
    files: dict[Path, list[str]] = {}
    for value in records(shape):
        path = folder / value["cell"]["dataset"] / f"{value['cell']['method']}.jsonl"
        files.setdefault(path, []).append(signed(value) + "\n")
    for path, lines in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))


def measure(shape: str, rounds: int) -> None:
    """Print wall and CPU seconds of `unlearnbench report` over the records of a shape."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(shape, folder / "results")
        command = [sys.executable, "-m", "unlearnbench.cli", "report"]
        command += ["--results", f"{folder}/results", "--out", f"{folder}/out"]
        wall, cpu = [], []
        for _ in range(rounds):
            started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall.append(time.perf_counter() - started)
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        size = sum(path.stat().st_size for path in folder.rglob("*.jsonl")) / 1e6
        spread = f"min {min(wall):.1f}, max {max(wall):.1f}, n={rounds}"
        print(
            f"{shape}: 10,000 records, {size:.0f} MB: median {statistics.median(wall):.1f} s ({spread}), "
            f"{statistics.median(cpu):.1f} CPU seconds"
        )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = [shape for shape in SHAPES if shape in sys.argv] or list(SHAPES)
    if "--write" in sys.argv:
        for shape in chosen:
            write(shape, Path(sys.argv[sys.argv.index("--write") + 1]) / shape)
    else:
        for shape in chosen:
            measure(shape, next((int(text) for text in sys.argv[1:] if text.isdigit()), 3))
