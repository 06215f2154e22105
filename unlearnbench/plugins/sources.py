"""A plugin's source, parsed and never executed: its declarations and its identity.

The identity covers its file and the helpers it imports. Comments, docstrings and layout do not count; nor do the
standard library, installed packages and the harness, as records have their versions; nor where a method's settings are
searched and which were found (`search`, `tuned`), as a cell has every setting.
"""

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from unlearnbench.plugins.declared import Name, declared_keywords, declared_names, decorator_name
from unlearnbench.store.hashing import digest

HARNESS = "unlearnbench"
INSTALLED = {"site-packages", "dist-packages"}
UNCOUNTED = {"search", "tuned"}  # keywords of @method


def source_digest(path: Path, module: str = "") -> str:
    """Return the SHA-256 of a plugin's syntax tree and of those of its helpers, as 64 hex digits.

    The keywords `search` and `tuned` of a method's decorator are left out.
    Helpers are the modules that it, or another helper, imports from its folder, from elsewhere on Python's path, or
    from its own package, except the standard library and installed packages. Missing ones are left out.

    Args:
        path: of its file.
        module: the dotted name of its module, if any.
    """
    folders = [] if module else [str(path.parent)]  # for helpers of a single file
    own, found = module.partition(".")[0], {path: ["", read_source(path).digest]}
    todo = [(module, path)]
    while todo:
        name, file = todo.pop()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for target, names in read_source(file).imports_within(package):
            for spec in _specs(target, names, folders):
                helper = _file(spec)
                if helper is None or helper in found or (_is_installed(helper) and spec.name.split(".")[0] != own):
                    continue
                found[helper] = [spec.name, read_source(helper).digest]
                todo.append((spec.name, helper))
    return digest(sorted(found.values()))


def module_file(name: str) -> Path | None:
    """Return the file of a module by its dotted name, without importing anything; None if it is not found."""
    found = list(_walk(name, _find(name.partition(".")[0])))
    return _file(found[-1]) if found and found[-1].name == name else None


class Source:
    """A Python file, parsed once; properties are computed on first use."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._tree: ast.Module | None
        try:
            self._tree = ast.parse(content)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            self._tree = None

    @property
    def parses(self) -> bool:
        """Whether it is valid Python."""
        return self._tree is not None

    @functools.cached_property
    def names(self) -> Sequence[Name]:
        """The kind and name of every declared plugin, in the order of the file."""
        return declared_names(self._tree) if self._tree else ()

    @functools.cached_property
    def keywords(self) -> Mapping[Name, Mapping[str, Any]]:
        """The keywords of each declaration, without those that are known only by importing."""
        return declared_keywords(self._tree) if self._tree else {}

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of its syntax tree; of its bytes where it is not valid Python, or nested too deeply."""
        if self._tree:
            with suppress(RecursionError):
                return digest(_plain(self._tree))
        return hashlib.sha256(self._content).hexdigest()

    def imports_within(self, package: str) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield (dotted name of a module, names taken from it); relative imports are resolved within `package`."""
        parts = package.split(".") if package else []
        for node in ast.walk(self._tree) if self._tree else ():
            if isinstance(node, ast.Import):
                yield from ((alias.name, ()) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level <= len(parts):  # deeper relative imports fail
                around = parts[: len(parts) - node.level + 1] if node.level else []
                target = ".".join([*around, *([node.module] if node.module else [])])
                yield target, [alias.name for alias in node.names]


def read_source(path: Path) -> Source:
    """Return a file's source, cached until the file changes.

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=4096)
def _read(path: Path, *_: int) -> Source:
    return Source(path.read_bytes())


def _plain(node: Any) -> Any:
    """Return a syntax tree as JSON that is the same in every Python version, without empty fields and docstrings."""
    if isinstance(node, list):
        return [_plain(member) for member in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _has_docstring(node):
        fields["body"] = node.body[1:]
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        fields["decorator_list"] = [_without_values(decorator) for decorator in node.decorator_list]
    return [type(node).__name__, {name: _plain(value) for name, value in fields.items()}]


def _without_values(decorator: ast.expr) -> ast.expr:
    """Return a decorator; that of a method without the keywords that do not count."""
    if not isinstance(decorator, ast.Call) or decorator_name(decorator) != "method":
        return decorator
    kept = [keyword for keyword in decorator.keywords if keyword.arg not in UNCOUNTED]
    return ast.Call(decorator.func, decorator.args, kept)


def _has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _specs(target: str, names: Sequence[str], folders: list[str]) -> Iterator[ModuleSpec]:
    """Yield the specs of a module, its parent packages, and those of `names` that are modules.

    The harness and the standard library are left out.
    """
    top = target.partition(".")[0]
    if top == HARNESS or top in sys.stdlib_module_names:
        return
    for first in (_find(top, folders), _find(top)):
        found = list(_walk(target, first))
        yield from found
        if found and found[-1].name == target:
            yield from (inner for name in names if (inner := _inside(found[-1], name)) is not None)


def _find(name: str, folders: list[str] | None = None) -> ModuleSpec | None:
    """Return the spec of a top-level module or package, in given folders or on Python's path."""
    try:
        return importlib.util.find_spec(name) if folders is None else PathFinder.find_spec(name, folders)
    except (ImportError, ValueError, AttributeError):
        return None


def _walk(name: str, spec: ModuleSpec | None) -> Iterator[ModuleSpec]:
    """Yield the specs of a module's packages and of the module itself, as far as they exist."""
    for part in [*name.split(".")[1:], ""]:
        if spec is None:
            return
        yield spec
        spec = _inside(spec, part) if part else None


def _inside(package: ModuleSpec, name: str) -> ModuleSpec | None:
    places = package.submodule_search_locations
    return None if places is None else _find(f"{package.name}.{name}", list(places))


def _file(spec: ModuleSpec) -> Path | None:
    return Path(spec.origin) if spec.has_location and spec.origin and spec.origin.endswith(".py") else None


def _is_installed(file: Path) -> bool:
    return not INSTALLED.isdisjoint(file.parts) or file.is_relative_to(Path(ast.__file__).parent)
