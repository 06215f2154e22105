"""What `--jobs 2` saves of a run, and whether it disturbs what is timed: digits cells one by one and two at once.

    python -m tests.benchmarks.jobs [PAIRS]

Runs three methods on two classes, with the user's cache (a first run, not shown, fills it), PAIRS times each way in
turn; the order changes with every pair. Prints the wall time of the whole command and its ratio jobs / serial (below 1:
jobs are faster), and the seconds of `forget` cell by cell: each cell is timed alone either way, so its ratio should be
1. Another run on the device makes this one wait for it, and the wait would count: start it where there is none.
"""

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.fisher import header, ratio
from tests.benchmarks.overhead import run_cells

PAIRS = 3
OPTIONS = ("--methods", "safemax,salun,sa", "--classes", "0,1")
WAYS = {"serial": "1", "jobs": "2"}


def timed_run(jobs):
    """Return the wall seconds of one run, and {cell: its seconds of `forget`}."""
    with TemporaryDirectory() as name:
        started = time.perf_counter()
        records = run_cells(Path(name), *OPTIONS, "--jobs", jobs)
        seconds = time.perf_counter() - started
    cells = {f"{record.cell.method} forgets {record.cell.forget_class}": record for record in records}
    return seconds, {cell: record.cost["forget"]["seconds"] for cell, record in cells.items()}


def spread(seconds):
    """Return the median of some seconds with their least and most."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}, {max(seconds):.2f})"


def main():
    header()
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    timed_run(WAYS["jobs"])
    walls, forgets = {way: [] for way in WAYS}, {way: [] for way in WAYS}
    for pair in range(pairs):
        for way in WAYS if pair % 2 else reversed(WAYS):
            wall, forget = timed_run(WAYS[way])
            walls[way].append(wall)
            forgets[way].append(forget)
    for way, seconds in walls.items():
        print(f"{way}: wall {spread(seconds)} s")
    print(f"jobs / serial: {ratio(walls['jobs'], walls['serial'])}\n")
    print("seconds of forget: median (min, max)\n")
    print("| cell | serial | jobs | jobs / serial |\n| --- | ---: | ---: | ---: |")
    ratios = []
    for cell in forgets["serial"][0]:
        serial, jobs = ([run[cell] for run in forgets[way]] for way in WAYS)
        ratios += [a / b for a, b in zip(jobs, serial, strict=True)]
        print(f"| {cell} | {spread(serial)} | {spread(jobs)} | {ratio(jobs, serial)} |")
    print(f"\nforget of all cells, jobs / serial: {spread(ratios)}, n={len(ratios)}")


if __name__ == "__main__":
    main()
