"""A user of a Slurm: a folder with a cluster file, a plugin and results, and the commands run there."""

import json
import subprocess
import sys
import time
from collections import Counter

from tests import ROOT
from unlearnbench.run.cluster.folder import runs

SECONDS = 200  # no command takes longer
CELL = ("--methods", "sleeps", "--metrics", "nothing", "--controls", "none", "--base-steps", "2")
FILE = "workers: {workers}\nretries: {retries}\nslurm: {{time: {time}, mem: 1500M, signal_delay_s: 20}}\n"


class Place:
    """A folder that a user works in, with a cluster file, the plugin and the results."""

    def __init__(self, folder, slurm, workers=2, retries=2, minutes=10):
        self.folder, self.slurm = folder, slurm
        self.salt = time.time() % 1 / 1000  # seconds, so that no cache has what earlier cells left
        (folder / "slurm.yaml").write_text(FILE.format(workers=workers, retries=retries, time=minutes))
        (folder / "sleepy.py").write_bytes((ROOT / "tests/cluster/sleepy.py").read_bytes())

    def start(self, *arguments, **more):
        environment = {**self.slurm.environment, "NO_COLOR": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT), **more}
        return subprocess.Popen(
            [sys.executable, "-m", "unlearnbench.cli", *arguments], cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, classes, *more, seconds=1.0, **environment):
        return self.start(
            "run", *CELL, "--plugin", "sleepy.py", "--classes", classes, "--set",
            f"sleeps.seconds={seconds + self.salt}",
            "--cluster", "slurm.yaml", "--no-report", *more, **environment,
        )  # fmt: skip

    def cluster(self, verb, *more):
        """Run a command on a run; return what it prints."""
        return output_of(self.start("cluster", verb, *more))

    @property
    def lines(self):
        """How many lines with each status every class has."""
        text = "".join(path.read_text() for path in self.folder.glob("results/*/*.jsonl"))
        found = [json.loads(line) for line in text.splitlines()]
        return Counter((line["cell"]["forget_class"], line["status"]) for line in found)

    @property
    def newest(self):
        return runs(self.folder / "results")[0]

    def await_(self, condition):
        """Return what a function returns, once that is true."""
        end = time.monotonic() + SECONDS
        while not (found := condition()):
            assert time.monotonic() < end, (self.slurm.jobs(), self.cluster("status"))
            time.sleep(0.2)
        return found


def output_of(process, status=0):
    """Wait for a command and return what it printed."""
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == status, output
    assert "Traceback (most" not in output
    return output


def began(run, part, attempts=1):
    """Return the last attempt of a part, once it has begun a cell."""
    found = run.attempts(part)
    return found[-1] if len(found) >= attempts and found[-1].begun else None
