"""Report speed: seconds to render 1,000 records to every format, in a process of its own, imports included.

python -m tests.benchmarks.reporting
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import fake_record
from unlearnbench.store.records import ResultStore

RECORDS, ROUNDS = 1000, 5


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in range(RECORDS):
            settings = {"x": k // 40}
            cell = {"forget_class": k % 10, "seed": k // 10 % 4, "settings": settings, "overrides": settings}
            ResultStore(folder / "results").append(fake_record("alpha", fid=5 + k % 7, ua=90 + k % 10, **cell))
        command = [
            sys.executable,
            "-m",
            "unlearnbench.cli",
            "report",
            "--results",
            f"{folder}/results",
            "--out",
            f"{folder}/out",
        ]
        seconds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
    spread = f"min {min(seconds):.2f}, max {max(seconds):.2f}, n={ROUNDS}"
    print(f"{RECORDS} records: median {statistics.median(seconds):.2f} s ({spread})")


if __name__ == "__main__":
    main()
