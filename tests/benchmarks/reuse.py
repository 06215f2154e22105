"""What further metrics, seeds and attacks take of a run that is there, since weights and samples are kept.

    python -m tests.benchmarks.reuse [CLASSES]

Runs all methods on classes of digits (default 0) with the user's base model and judges and no weights: first with every
metric but one, then with all, then with another sampling seed, then the papers' three with all attacks. Prints the
seconds of each run, its own start and selection included, and how many cells unlearned in it.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.fisher import header
from unlearnbench.plugins.registry import Registry
from unlearnbench.store.cache import PRODUCTS, default_cache
from unlearnbench.store.records import ResultStore

ADDED = "precision"  # the metric that the first run lacks


def cache_without_products(folder):
    """Return a cache with the user's base models and judges alone."""
    folder.mkdir()
    for kind in default_cache().iterdir():
        if kind.is_dir() and kind.name not in (*PRODUCTS, ".runs") and not kind.name.startswith("prior-"):
            (folder / kind.name).symlink_to(kind)
    return folder


def times_unlearned(cache):
    """Return {key: when it was made} of the weights in a cache."""
    return {path.parent.name: path.stat().st_mtime_ns for path in cache.glob("unlearned/*/payload.safetensors")}


def main():
    classes = sys.argv[1] if len(sys.argv) > 1 else "0"
    names = [spec.name for spec in Registry().select_metrics("all")]
    steps = {
        "all metrics but one": ("--metrics", ",".join(name for name in names if name != ADDED)),
        "one metric more": ("--metrics", "all"),
        "another sampling seed": ("--metrics", "all", "--base-seeds", "0", "--sampling-seeds", "1"),
        "attacks, 3 methods": ("--metrics", "all,attacks", "--methods", "paper"),
    }
    header()
    with TemporaryDirectory() as name:
        folder = Path(name)
        cache = cache_without_products(folder / "cache")
        environment = {**os.environ, "UNLEARNBENCH_CACHE": str(cache)}
        command = [
            sys.executable, "-c", "from unlearnbench.cli.commands import main; main()", "run", "--methods", "all",
            "--classes", classes, "--no-report", "--results", str(folder / "results"),
        ]  # fmt: skip
        first = None
        print(f"\n| {'run':21} | cells | unlearned | seconds | of the first |\n|---|---:|---:|---:|---:|")
        for step, options in steps.items():
            before, began = times_unlearned(cache), time.monotonic()
            subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, env=environment)
            seconds = time.monotonic() - began
            first = first or seconds
            made = sum(before.get(key) != when for key, when in times_unlearned(cache).items())
            cells = len(ResultStore(folder / "results").read().records)
            print(f"| {step:21} | {cells:5} | {made:9} | {seconds:7.0f} | {seconds / first:12.2f} |", flush=True)


if __name__ == "__main__":
    main()
