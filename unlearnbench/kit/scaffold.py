"""`unlearnbench new`: a method file that runs as it is, alone or in a small package."""

import importlib.util
import keyword
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from unlearnbench.errors import UsageError
from unlearnbench.plugins.registry import Registry

TEMPLATES = Path(__file__).with_name("templates")
STAND_IN = "my_method"  # what the templates call the method
METHOD, GUIDE = "method.py.txt", "guide.py.txt"  # one that edits the model, and one of kind inference
METHOD_FILE: Mapping[str, str] = {METHOD: "my_method.py"}
PACKAGE_FILES: Mapping[str, str] = {
    "pyproject.toml.txt": "my_method/pyproject.toml",
    METHOD: "my_method/src/my_method.py",
    "test.py.txt": "my_method/tests/test_my_method.py",
    "README.md.txt": "my_method/README.md",
}


class Written(NamedTuple):
    """The files that were written, and the commands to type next."""

    files: list[Path]
    commands: list[str]


def new_method(name: str, folder: Path, *, package: bool = False, inference: bool = False) -> Written:
    """Write a method that runs as it is; return its files and the commands to type next.

    Args:
        name: of the method, its function and its file.
        folder: to write into; made where it is missing.
        package: write an installable package with an entry point, a test and a README.
        inference: write a method of kind inference.

    Raises:
        UsageError: the name is invalid or taken, or a file exists already; nothing is written then.
    """
    files = {
        template: folder / _named(path, name) for template, path in (PACKAGE_FILES if package else METHOD_FILE).items()
    }
    for path in [folder / name, *files.values()] if package else files.values():
        if path.exists():
            raise UsageError(f"{path} exists already: choose another name, or another folder with --out")
    _check_name(name)
    for template, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = GUIDE if inference and template == METHOD else template
        path.write_text(_named((TEMPLATES / chosen).read_text(encoding="utf-8"), name), encoding="utf-8")
    target = shlex.quote(str(folder / name if package else files[METHOD]))
    run = f"unlearnbench run --methods original,{name} --classes 0-2"
    if package:
        commands = [f"pip install -e {target}[test]", f"unlearnbench check {name}", f"pytest {target}", run]
    else:
        commands = [f"unlearnbench check {target}", f"{run} --plugin {target}"]
    return Written(list(files.values()), commands)


def _named(text: str, name: str) -> str:
    """Return a template's text for a method: its name, its title, its distribution's name."""
    title = name.replace("_", " ").capitalize()
    return text.replace("my-method", name.replace("_", "-")).replace("My method", title).replace(STAND_IN, name)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot name a method: write a Python name in lower case, such as {STAND_IN}")
    for plugin in Registry().plugins("method"):
        if plugin.name == name:
            raise UsageError(f"there is a method {name} already, in {plugin.origin}: choose another name")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise UsageError(
            f"{name} is an installed module's name, which a file {name}.py would hide: choose another name"
        )
