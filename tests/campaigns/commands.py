"""Fuzzed command lines: none ends in a traceback, all end with status 0, 1 or 2.

Nothing is trained: `run` gets --dry-run, `train` a folder that it cannot use, `check` and `sample` names of nothing.
"""

import tempfile
from collections import Counter
from pathlib import Path

from tests.campaigns import call, inside, main
from tests.conftest import fake_record
from unlearnbench.store.records import ResultStore

TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "0-9",
    "9-0",
    "0,1",
    "0+1",
    "1.5",
    "1e999",
    "nan",
    "inf",
    "-inf",
    "99999999999999999999",
    "all",
    "paper",
    "safemax",
    "original",
    "safemax,",
    "SAFEMAX",
    "sham_noise",
    "ua",
    "fid",
    "digits",
    "cifar10",
    "imagefolder",
    "cat",
    "x.png",
    "x.tex",
    "x.md",
    "results",
    "file.txt",
    "file.txt/x",
    "absent",
    ".",
    "..",
    "/",
    "/proc/self/mem",
    "~",
    "a" * 300,
    "a/" * 200,
    "safemax.steps=2",
    "safemax.steps=x",
    "safemax.decay=0,1",
    "sa.ema=-1",
    "x.y=z",
    "=",
    "safemax.steps=",
    "missing",
    "first",
    "every",
    "none",
    "cpu",
    "cuda:99",
    "meta",
    "warp",
    "\x1b[31m",
    "\u202e",
    "ü",
    "\ud800",
    "日本",
    "--",
    "--help",
    "-",
    "*",
    "'",
    "spartalis2025",
    "method",
    "methods",
    "smoke",
    "own",
    "inception",
    "original.py",
    "mine",
    "class",
    "1\n2",
    "\t",
)
OPTIONS = {
    "run": (
        "--methods --classes --sequence --metrics --set --seeds --base-seeds --sampling-seeds --controls --plugin "
        "--dataset --protocol --data-root --image-size --base --base-steps --base-minutes --judge --judge-weights "
        "--second-judge --second-judge-weights --extractor --inception-weights "
        "--device --devices --batch-size --precision --compile --repeats --rerun --timeout --minutes --results "
        "--out --save-models --stop-if-weak --nonsense"
    ),
    "train": "--dataset --protocol --steps --data-root --image-size --device --minutes --nonsense",
    "sample": "--class --out --n --seed --guidance --steps --device --nonsense",
    "list": "--plugin --cards --nonsense",
    "new": "--package --out",
    "check": "--nonsense",
    "report": "--results --out --nonsense",
    "compare": "--results --out --nonsense",
    "validate": "--results --nonsense",
    "verify": "--results --nonsense",
    "": "--version --help -h --nonsense",
    "nonsense": "--methods",
}
ALWAYS = {"run": ("--dry-run",), "train": ("--out", "file.txt")}  # comes last, and counts
POSITIONAL = {"sample": 1, "list": 1, "new": 2, "check": 1, "compare": 1, "verify": 1, "": 0}
CHECKED = ("", "absent", "nothing.py", "file.txt", "a" * 300, "\x1b[31m", "x y", ".")  # a method would be trained


def line(random):
    """Return a command line."""
    command = random.choice([*OPTIONS, "run", "run", "run"])
    words = [command] if command else []
    if command == "run" and random.random() < 0.7:  # deep enough to meet what comes after parsing
        words += [
            "--methods",
            random.choice(("safemax", "original,esd", "all")),
            "--classes",
            random.choice(("0", "0-1", "0+1")),
        ]
    for _ in range(random.randint(0, POSITIONAL.get(command, 1) + (random.random() < 0.2))):
        words.append(random.choice(CHECKED if command == "check" else TEXTS))
    for name in random.sample(OPTIONS[command].split(), min(random.randint(0, 4), len(OPTIONS[command].split()))):
        texts = [text for text in TEXTS if not text.startswith(("/", ".."))] if name == "--out" else TEXTS
        words += [name, random.choice(texts)] if random.random() < 0.9 else [name]
    if random.random() < 0.1:
        random.shuffle(words)
    words += ALWAYS.get(words[0] if words else "", ()) or ALWAYS.get(command, ())
    return [word for word in words if "\0" not in word]


def campaign(count, random):
    """Run command lines; return how they ended, and each one that ended badly."""
    counts, defects = Counter(), []
    with tempfile.TemporaryDirectory() as folder, inside(folder):
        Path("file.txt").write_text("")
        for c in range(2):
            ResultStore(Path("results")).append(fake_record(forget_class=c))
        for _ in range(count):
            words = line(random)
            answer = call(*words)
            counts[f"status {answer.status}"] += 1
            if not answer.sound:
                defects.append(f"{words!r}: status {answer.status}\n{answer.trace or answer.output}")
    return counts, defects


if __name__ == "__main__":
    main(campaign, 300)
