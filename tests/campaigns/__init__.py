"""Campaigns: what happens to the command line, records, artifacts and runs when much goes wrong, at random."""

import argparse
import io
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from random import Random
from typing import NamedTuple

from unlearnbench.cli import commands as cli


class Answer(NamedTuple):
    """How a command ended."""

    status: int | None  # None where it ended in a traceback
    output: str
    trace: str = ""

    @property
    def sound(self) -> bool:
        """Whether it ended as commands may: done, done with a complaint, or refused in a sentence."""
        return self.status in (0, 1, 2) and "Traceback (most recent" not in self.output


def call(*arguments: str) -> Answer:
    """Run a command line in this process."""
    kept, text = sys.argv, io.StringIO()
    sys.argv = ["unlearnbench", *arguments]
    try:
        with redirect_stdout(text), redirect_stderr(text):
            cli.main()
        return Answer(0, text.getvalue())
    except SystemExit as stop:
        return Answer(stop.code if isinstance(stop.code, int) else 1 if stop.code else 0, text.getvalue())
    except BaseException:
        return Answer(None, text.getvalue(), traceback.format_exc())
    finally:
        sys.argv = kept


@contextmanager
def inside(folder):
    """Stand in a folder."""
    before = os.getcwd()  # noqa: PTH109
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main(campaign: Callable[[int, Random], tuple[Counter, list[str]]], count: int) -> None:
    """Run a campaign from its own command line, print its counts and defects, and exit with 1 if there is a defect."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--count", type=int, default=count, help="how often (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default %(default)s)")
    given = parser.parse_args()
    counts, defects = campaign(given.count, Random(given.seed))
    for what, number in sorted(counts.items()):
        print(f"{number:6} {what}")
    print("\n".join(defects) or "no defect")
    sys.exit(bool(defects))
