"""A run of sleeping cells on a real Slurm with two nodes, against one: `cluster [CELLS] [ROUNDS]`."""

import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from tests.cluster.place import Place, output_of
from tests.cluster.slurm import Slurm, why_not

SECONDS = 13.0  # of sleep: with its process and the loading of its model, a cell takes about 15


def main(cells=6, rounds=3):
    if reason := why_not():
        sys.exit(reason)
    last = int(cells) - 1
    with tempfile.TemporaryDirectory() as name:
        slurm = Slurm(Path(name) / "slurm")
        try:
            slurm.start()
            found = {1: [], 2: []}
            for k in range(int(rounds)):
                for workers in (1, 2) if k % 2 else (2, 1):
                    folder = Path(name) / f"round-{k}-{workers}"
                    folder.mkdir()
                    place = Place(folder, slurm, workers=workers)
                    output_of(place.run(f"0-{last}", "--rerun", "always", seconds=SECONDS))
                    found[workers].append(measured(place))
        finally:
            slurm.stop()
    report(found, int(cells))


def measured(place):
    """Return the seconds of a run's phases from its journals: (cell phase, before the first cell, between cells)."""
    run = place.newest
    journals = [run.attempts(part)[-1].lines for part in run.parts]
    parts = [[line for line in lines if line["what"] in ("start", "begin", "end")] for lines in journals]
    phase = max(part[-1]["at"] for part in parts) - min(part[1]["at"] for part in parts)
    before = [part[1]["at"] - part[0]["at"] for part in parts]
    steps = [pair for part in parts for pair in pairwise(part)]
    between = [after["at"] - now["at"] for now, after in steps if now["what"] == "end"]
    return phase, median(before), median(between)


def report(found, cells):
    for workers, runs in found.items():
        phase, before, between = (median(column) for column in zip(*runs, strict=True))
        print(f"nodes: {workers}; {cells} cells in {phase:.1f} s, {phase * workers / cells:.2f} s of a node each")
        print(f"  before the first cell {before:.1f} s, between cells {between:.3f} s (medians, n={len(runs)})")
    pairs = [one[0] / (2 * two[0]) for one, two in zip(found[1], found[2], strict=True)]
    print(f"efficiency of the cell phase: median {median(pairs):.1%}, min {min(pairs):.1%}, max {max(pairs):.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
