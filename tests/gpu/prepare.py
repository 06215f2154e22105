"""Puts into `.gpu/` what a GPU machine without network lacks, for `tests.gpu.evidence`.

    python -m tests.gpu.prepare [--images FILE] [--judges DIR]

From the root of the checkout, where there is network: wheels of the packages that such a machine does not have and of
this one as it lies here (tracked files, changed or not), the archive of images, and the weights of the judge.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.evidence import ARCHIVE, CARRIED, COMMIT, JUDGE, ROOT

BESIDE = ROOT.parent / "shared" / "data"  # where images and judges are looked for
# What a machine with torch and the usual libraries lacks; the last two are needed by the first.
PACKAGES = ("diffusers", "torch-fidelity", "annotated-types", "importlib_metadata", "zipp")
PYTHON = "3.12"  # of the GPU machine
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MOST = 60 * 2**20  # bytes that travel: `.gpu/` and the tracked files


def wheels(folder: Path) -> None:
    """Download the wheels of other packages and build our own, from a copy, so that nothing is left in the checkout."""
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    only = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    run([*pip, "download", "-q", *only, "-d", str(folder), *PACKAGES])
    with tempfile.TemporaryDirectory() as scratch:
        for path in tracked():
            if path.is_file():  # one that was deleted is still listed
                copy = Path(scratch, path.relative_to(ROOT))
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        run([*pip, "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), scratch])


def tracked() -> list[Path]:
    """Return the files that git knows of."""
    return [ROOT / name for name in git("ls-files", "-z").split("\0") if name]


def git(*arguments: str) -> str:
    """Return what git says of the checkout."""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout


def run(command: Sequence[str]) -> None:
    """Run a command, or stop with a sentence."""
    done = subprocess.run(command, check=False)
    if done.returncode:
        stop(f"{' '.join(command[1:4])} failed with exit status {done.returncode}: see what it says above")


def stop(words: str) -> None:
    """End with exit status 2."""
    print(f"prepare: {words}", file=sys.stderr)
    raise SystemExit(2)


def size(paths: Sequence[Path]) -> int:
    """Return the bytes of files."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def check(images: Path, judges: Path) -> None:
    """Stop if something is missing, before anything is written."""
    if not (ROOT / "pyproject.toml").is_file() or not (ROOT / ".git").exists():
        stop(f"{ROOT} is no checkout of this repository: run 'python -m tests.gpu.prepare' from the root of one")
    if not images.is_file():
        stop(f"there is no {images}: give the archive with train/CLASS/* and test/CLASS/* in it with --images FILE")
    if not (judges / JUDGE.name).is_file():
        stop(f"there is no {judges / JUDGE.name}: give the folder with the judge's weights with --judges DIR")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill `.gpu/` anew, and say what is in it."""
    parser = argparse.ArgumentParser(description="Fills .gpu/ with what a GPU machine without network lacks.")
    parser.add_argument("--images", type=Path, default=BESIDE / ARCHIVE.name, help="archive of images, .tar.xz")
    parser.add_argument("--judges", type=Path, default=BESIDE / "judges", help="folder with the judge's weights")
    asked = parser.parse_args(arguments)
    check(asked.images, asked.judges)
    shutil.rmtree(CARRIED, ignore_errors=True)
    wheels(CARRIED / "wheels")
    shutil.copyfile(asked.images, ARCHIVE)
    JUDGE.parent.mkdir()
    shutil.copyfile(asked.judges / JUDGE.name, JUDGE)
    COMMIT.write_text(git("describe", "--always", "--dirty", "--abbrev=40"), encoding="utf-8")
    carried = sorted(path for path in CARRIED.rglob("*") if path.is_file())
    for path in carried:
        print(f"{size([path]) / 2**20:6.1f} MiB  {path.relative_to(ROOT)}")
    total = size(carried) + size(tracked())
    print(f"{total / 2**20:6.1f} MiB  with the tracked files")
    if total > MOST:
        stop(f"that is more than the {MOST / 2**20:.0f} MiB that may travel: remove what is large in .gpu/")


if __name__ == "__main__":
    main()
