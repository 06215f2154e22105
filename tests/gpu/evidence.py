"""Takes evidence on a GPU machine that has no network, in two calls.

    python3 -m tests.gpu.evidence first --out DIR [--profile gpu|tiny [--carried]] [--work DIR] [--only STEP,STEP]
    python3 -m tests.gpu.evidence second --out DIR

It needs what `tests.gpu.prepare` put into `.gpu/`. Each call runs its steps one after another, each in a process of its
own and for so many seconds at most, and packs what there is into DIR/evidence-CALL.tar.gz after every step, so that
whatever ends it takes away the running step alone. A step that fails is reported, and the next one goes on. `tiny` runs
the same steps on a CPU, with small settings, and with what is installed or `--carried`: it tries the kit itself.

Free of anything but the standard library, until the wheels are there.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / ".gpu"
ARCHIVE, JUDGE = CARRIED / "cifar10-jpeg.tar.xz", CARRIED / "judges" / "cifar10-resnet56.safetensors"
COMMIT = CARRIED / "commit.txt"  # what was prepared: where it is installed, there is no git to ask
IMAGES = "cifar10-jpeg"  # names the dataset in records: these are not the images of published numbers
LINKS = {"methods": "../methods", "metrics": "../metrics", "published": "../results/published"}
MINUTES = "{minutes}"  # in a command: the step's time, less what a run takes to end with a report
ENDING_SECONDS = 25.0
PACKING_SECONDS = 10.0  # kept free at the end of a call
LEAST_SECONDS = 10.0  # a step that has less is not begun
GRACE_SECONDS = 5.0  # between the request to end and the kill
CALLS = ("first", "second")
START = subprocess.Popen  # how a step's process is started; the dry run forks it, without the wait for imports


@dataclass(frozen=True)
class Step:
    """A command, and the seconds it may take."""

    name: str
    seconds: float
    command: Sequence[str]
    images: bool = False  # whether it waits for the images


@dataclass(frozen=True)
class Profile:
    """What differs between a GPU and a trial of the kit: sizes alone."""

    device: str
    seconds: Mapping[str, float]  # of each call
    carried: bool  # whether wheels, images and judges come from `.gpu/`
    probe: Sequence[str]
    estimate: Sequence[str]
    digits: Sequence[str]
    folder: Sequence[str]  # options of the image folder's runs: protocol, base model, judge
    base: Sequence[str]  # the first of these runs, which makes base model and judges
    methods: Sequence[str]  # the others
    classes: Sequence[str]  # of these others, one run each


PAPER = (  # as published, but for steps, and for SA's replay images and Fisher matrix
    "--set", "safemax.steps=300", "--set", "salun.steps=300", "--set", "sa.steps=300", "--set",
    "sa.replay_per_class=100", "--set", "sa.fisher_images=100", "--set", "sa.fisher_timesteps=100",
)  # fmt: skip
FAST = ("--metrics", "ua", "--controls", "none", "--set", "safemax.steps=2")
PROFILES = {
    "gpu": Profile(
        device="cuda",
        seconds={"first": 520.0, "second": 240.0},
        carried=True,
        probe=("--size", "paper", "--seconds", "60"),
        estimate=("--protocol", "paper", "--judge", "resnet34-scratch", "--extractor", "own", "--methods", "paper",
                  "--classes", "0"),
        digits=("--methods", "original,paper", "--classes", "0,3", "--repeats", "3", "--controls", "none"),
        folder=("--protocol", "brief", "--base-minutes", "2", "--judge", "cifar-resnet56", "--judge-weights",
                str(JUDGE), "--extractor", "own", "--controls", "none"),
        base=("--methods", "original", "--classes", "3"),
        methods=("--methods", "original,paper", *PAPER),
        classes=("3", "8"),
    ),
    "tiny": Profile(
        device="cpu",
        seconds={"first": 300.0, "second": 120.0},
        carried=False,
        probe=("--size", "tiny", "--seconds", "30"),
        estimate=("--protocol", "smoke", "--image-size", "8", "--methods", "safemax", "--classes", "0", "--base-steps",
                  "2", *FAST),
        digits=("--methods", "safemax", "--classes", "3", "--base-steps", "2", *FAST),
        folder=("--protocol", "smoke", "--image-size", "8", "--base-minutes", "0.01"),
        base=("--methods", "safemax", "--classes", "1", *FAST),
        methods=("--methods", "safemax", *FAST),
        classes=("0",),
    ),
}  # fmt: skip


@dataclass
class Call:
    """One call of the kit: where it works, what it has found, and how much time is left."""

    name: str
    profile: Profile
    work: Path
    out: Path
    began: float = field(default_factory=time.monotonic)
    taken: list[dict[str, object]] = field(default_factory=list)
    running: subprocess.Popen[bytes] | None = None
    unpacking: threading.Thread | None = None
    problem: str = ""  # why there are no images

    @property
    def evidence(self) -> Path:
        """The folder that is packed."""
        return self.work / "evidence"

    @property
    def images(self) -> Path:
        """The folder of images."""
        return self.work / (IMAGES if self.profile.carried else "trial-images")

    @property
    def left(self) -> float:
        """Seconds that steps may still take."""
        return self.profile.seconds[self.name] - PACKING_SECONDS - (time.monotonic() - self.began)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every step."""
        fixed = {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "150", "MPLBACKEND": "Agg"}
        fixed["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the machine's plugins are none of ours
        cache = {"UNLEARNBENCH_CACHE": str(self.work / "cache")}
        given = {
            name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
        }  # it costs time
        if not self.profile.carried:
            return {**fixed, **cache, **given}
        return {**given, **fixed, **cache, "PYTHONPATH": str(self.work / "site")}

    def steps(self) -> list[Step]:
        """Return the call's steps."""
        profile, python = self.profile, sys.executable
        own = [
            python,
            "-P",
            "-c",
            "from unlearnbench.cli.commands import main; main()",
        ]  # not the checkout: what is installed
        device = ["--device", profile.device]
        run = [*own, "run", *device, "--minutes", MINUTES]
        folder = ["--dataset", "imagefolder", "--data-root", str(self.images)]
        brief = [*run, *self.files("images"), *folder, *profile.folder]
        if self.name == "second":
            return [
                Step(f"class-{c}", 225, [*brief, *profile.methods, "--classes", c], images=True)
                for c in profile.classes
            ]
        pytest = [
            python,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "--no-header",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=",
            "tests/gpu",
        ]
        probe = [python, "-m", "tests.gpu.probe", *device, "--out", str(self.evidence / "probe.json"), *profile.probe]
        return [
            Step("tests", 60, pytest),
            Step("probe", 75, probe),
            Step("estimate", 90, [*own, "estimate", *device, *folder, *profile.estimate], images=True),
            Step("digits", 100, [*run, *self.files("digits"), "--dataset", "digits", *profile.digits]),
            Step("base", 170, [*brief, *profile.base], images=True),
        ]

    def files(self, name: str) -> list[str]:
        """Return the options that keep the records of some runs apart, so that only these are rendered again."""
        return ["--results", str(self.evidence / name / "results"), "--out", str(self.evidence / name / "reports")]

    def take(self, step: Step) -> None:
        """Run a step, note how it ended, and pack."""
        if step.images and self.unpacking is not None:
            self.unpacking.join(max(self.left, 0.0))
        limit, began = min(step.seconds, self.left), time.monotonic()
        said, code = "", None
        if step.images and not self.images.is_dir():
            said = f"skipped: {self.problem or 'the images are not unpacked yet'}"
        elif limit < LEAST_SECONDS:
            said = "skipped: no time was left"
        else:
            code = self._run(step, limit)
            said = {None: f"ended after {limit:.0f} s", 0: "ok"}.get(code, f"exit status {code}")
        seconds = round(time.monotonic() - began, 1)
        self.taken.append({"step": step.name, "said": said, "code": code, "seconds": seconds, "limit": round(limit)})
        print(f"{step.name}: {said}, {seconds} s{self._last_words(step) if code else ''}", flush=True)
        self.pack()

    def _run(self, step: Step, limit: float) -> int | None:
        """Return a step's exit status, None where its time was up."""
        minutes = f"{max(limit - ENDING_SECONDS, limit / 2) / 60:.2f}"
        command = [minutes if word == MINUTES else word for word in step.command]
        with self._log(step).open("wb") as log:
            log.write(f"{' '.join(command)}\n".encode())
            log.flush()
            self.running = START(
                command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                return self.running.wait(limit)
            except subprocess.TimeoutExpired:
                self.end()
                return None

    def _log(self, step: Step) -> Path:
        return self.evidence / "logs" / f"{step.name}.log"

    def _last_words(self, step: Step) -> str:
        lines = self._log(step).read_text("utf-8", "replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""

    def end(self) -> None:
        """End the running step: asked first, then killed with its group."""
        running, self.running = self.running, None
        if running is None or running.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(running.pid, number)
            with suppress(subprocess.TimeoutExpired):
                running.wait(GRACE_SECONDS)
                return

    def pack(self) -> None:
        """Write the archive of all evidence so far; the one before stays until the new one is whole."""
        facts = {"call": self.name, "profile": asdict(self.profile), "steps": self.taken}
        (self.evidence / f"steps-{self.name}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        scratch = self.out / f".{self.name}-{time.monotonic_ns()}.tmp"  # a signal may come while another one is open
        with tarfile.open(scratch, "w:gz") as file:
            file.add(self.evidence, "evidence")
        scratch.replace(self.out / f"evidence-{self.name}.tar.gz")


# What steps need


def install(call: Call) -> None:
    """Install the carried wheels into a folder of their own.

    Raises:
        SystemExit: there are none, or pip refuses.
    """
    wheels, site = sorted(CARRIED.glob("wheels/*.whl")), call.work / "site"
    if not wheels:
        raise SystemExit(f"there are no wheels in {CARRIED}: run 'python -m tests.gpu.prepare' where there is network")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    done = subprocess.run([*pip, "--upgrade", "--target", site, *wheels], check=False)
    if done.returncode:
        raise SystemExit("the wheels cannot be installed, so no step can run: see what pip says")
    shutil.rmtree(site / "tests", ignore_errors=True)  # torch-fidelity's wheel brings a top-level package of this name


def unpack(call: Call) -> None:
    """Unpack the images beside the first steps; they appear when they are whole."""
    if call.images.is_dir():
        return
    if not ARCHIVE.is_file():
        call.problem = f"there is no {ARCHIVE}"
        return

    def work() -> None:
        scratch = call.work / "unpacking"
        done = subprocess.run(
            [sys.executable, "-m", "tarfile", "--filter", "data", "-e", ARCHIVE, scratch], capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            call.problem = f"the images cannot be unpacked ({done.stderr.strip()[-200:]})"
        else:
            scratch.rename(call.images)

    call.unpacking = threading.Thread(target=work, daemon=True)
    call.unpacking.start()


def draw_images(folder: Path) -> None:
    """Write a small folder of images, one colour to a class, for a trial of the kit."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        for k, name in enumerate(("blue", "green", "red")):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                pixels[..., 2 - k] += 120
                Image.fromarray(pixels).save(place / f"{number:04}.png")


def versions(site: Path) -> dict[str, str]:
    """Return the version of this package and of all that it needs, by name; `missing` where there is none."""
    found = {"unlearnbench": "missing"}
    for distribution in importlib.metadata.distributions(name="unlearnbench", path=[str(site), *sys.path]):
        words = [requirement for requirement in distribution.requires or [] if "extra ==" not in requirement]
        found |= dict.fromkeys((re.match(r"[\w.-]+", word)[0] for word in words), "missing")
        break
    for name in found:
        for distribution in importlib.metadata.distributions(name=name, path=[str(site), *sys.path]):
            found[name] = distribution.version
            break
    return found


def describe(call: Call) -> None:
    """Write what machine and software this is, and say what is missing."""
    packages = versions(call.work / "site")
    if missing := [name for name, version in packages.items() if version == "missing"]:
        print(f"missing here, so that steps may fail: {', '.join(missing)}", flush=True)
    nvidia = "there is no nvidia-smi"
    with suppress(OSError, subprocess.TimeoutExpired):
        nvidia = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False, timeout=20).stdout
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"python": platform.python_version(), "platform": platform.platform(), "cores": cores, "packages": packages}
    if call.profile.carried and COMMIT.is_file():
        facts["commit"] = COMMIT.read_text(encoding="utf-8").strip()
    text = f"{json.dumps(facts, indent=1)}\n{nvidia}"
    (call.evidence / f"environment-{call.name}.txt").write_text(text, encoding="utf-8")


@contextmanager
def linked() -> Iterator[None]:
    """Make the checkout a whole package for pytest and the probe, which import it from here: plugins are linked in."""
    made = []
    for name, target in LINKS.items():
        link = ROOT / "unlearnbench" / name
        if not link.exists():
            link.symlink_to(target)
            made.append(link)
    try:
        yield
    finally:
        for link in made:
            link.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the evidence of a call and return 0 if every step is ok, else 1."""
    parser = argparse.ArgumentParser(description="Takes evidence on a GPU machine, in two calls.")
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("--out", type=Path, required=True, help="folder for the archive")
    parser.add_argument("--profile", choices=PROFILES, default="gpu")
    parser.add_argument("--work", type=Path, default=Path("/tmp/unlearnbench-gpu"), help="folder to work in")
    parser.add_argument("--carried", action="store_true", help="with tiny: install and unpack what .gpu/ holds")
    parser.add_argument("--only", metavar="STEP,STEP", help="steps to take; default: all of the call")
    asked = parser.parse_args(arguments)
    profile = PROFILES[asked.profile]
    profile = replace(profile, carried=profile.carried or asked.carried)
    call = Call(asked.call, profile, asked.work.absolute(), asked.out.absolute())
    steps = {step.name: step for step in call.steps()}
    chosen = asked.only.split(",") if asked.only else list(steps)
    if unknown := [name for name in chosen if name not in steps]:
        parser.error(f"--only: {call.name} has no step {', '.join(unknown)}; it has {', '.join(steps)}")
    (call.evidence / "logs").mkdir(parents=True, exist_ok=True)
    call.out.mkdir(parents=True, exist_ok=True)

    def stop(number: int, _: FrameType | None) -> None:
        call.end()
        call.pack()
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if call.profile.carried:
        install(call)
        unpack(call)
    elif not call.images.is_dir():
        draw_images(call.images)
    describe(call)
    with linked() if call.profile.carried else nullcontext():
        for name in chosen:
            call.take(steps[name])
    return int(any(step["code"] != 0 for step in call.taken))


if __name__ == "__main__":
    sys.exit(main())
