"""Plugins: discovery, loading and lookup.

Built-ins are files in the two plugin folders, third-party plugins are entry points (groups `unlearnbench.methods` and
`unlearnbench.metrics`), single files are given by `--plugin FILE`. A file may declare several. Their names are read
without importing anything; a plugin is imported when it is used, and a failing import does not affect others.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from unlearnbench.errors import PluginError, UsageError, one_line, spell_error, suggest
from unlearnbench.plugins.declared import Name
from unlearnbench.plugins.guard import process_state_kept
from unlearnbench.plugins.sources import module_file, read_source, source_digest
from unlearnbench.plugins.spec import Kind, MethodSpec, MetricSpec
from unlearnbench.store.hashing import file_digest

Load = Callable[[], ModuleType]


@dataclass
class Plugin:
    """A plugin by name; `spec` imports it."""

    name: str
    kind: Kind
    origin: str  # its file or package, for messages
    path: Path | None  # its source file; None until it is imported
    load_module: Load = field(repr=False)
    module: str = ""  # dotted module name of an installed plugin
    parses: bool = True  # a file that does not is listed as one plugin of its name

    @property
    def spec(self) -> MethodSpec | MetricSpec:
        """The plugin's declaration; the first use imports it.

        Raises:
            PluginError: it fails to import or does not declare this name.
        """
        if isinstance(self._outcome, PluginError):
            raise self._outcome
        return self._outcome

    @cached_property
    def _outcome(self) -> MethodSpec | MetricSpec | PluginError:
        try:
            with process_state_kept():
                module = self.load_module()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # any error, even SystemExit, concerns only this plugin
            failure = PluginError(spell_error(error))
            failure.__cause__ = error
            return failure
        if self.path is None:
            self.path = Path(str(module.__file__))
        spec = getattr(getattr(module, self.name, None), "__unlearnbench__", None)
        wanted = MethodSpec if self.kind == "method" else MetricSpec
        if not isinstance(spec, wanted):
            return PluginError(f"{self.origin} declares no @{self.kind} function called {self.name}")
        return spec

    @property
    def reason(self) -> str:
        """Why it cannot be used; empty if it can."""
        return str(self._outcome) if isinstance(self._outcome, PluginError) else ""

    @property
    def declared(self) -> Mapping[str, Any]:
        """The keywords of its declaration: read from its file, or by importing it.

        Raises:
            PluginError: as `spec`, if it has to be imported.
        """
        with suppress(OSError):  # importing reports the error
            if self.path is not None and (read := read_source(self.path).keywords.get((self.kind, self.name))):
                return read
        return vars(self.spec)

    @property
    def source_hash(self) -> str:
        """SHA-256 of the plugin's source, its helpers included."""
        if self.path is None:
            _ = self.spec
        assert self.path is not None
        return source_digest(self.path, self.module)


class Registry:
    """All plugins by kind and name."""

    def __init__(self, files: Sequence[Path] = ()) -> None:
        """Find built-in plugins, entry points, and the plugins in the given files.

        Raises:
            UsageError: a file does not exist, or two plugins have the same name.
        """
        self._plugins: dict[Name, Plugin] = {}
        for kind in typing.get_args(Kind):
            for plugin in (*_builtins(kind), *_entry_points(kind)):
                self._add(plugin)
        for path in dict.fromkeys(files):
            for plugin in _from_file(path):
                self._add(plugin)

    def _add(self, plugin: Plugin) -> None:
        known = self._plugins.setdefault((plugin.kind, plugin.name), plugin)
        same_file = known.path is not None and plugin.path is not None and known.path.resolve() == plugin.path
        if known is not plugin and not same_file:
            raise UsageError(
                f"two {plugin.kind}s are called {plugin.name}, in {known.origin} and in {plugin.origin}: rename one"
            )

    def plugins(self, kind: Kind) -> list[Plugin]:
        """Return the plugins of a kind, sorted by name."""
        return sorted((p for (k, _), p in self._plugins.items() if k == kind), key=lambda plugin: plugin.name)

    def files(self, kind: Kind) -> list[list[Plugin]]:
        """Return the plugins of a kind grouped by file, in the order of each file."""
        found: dict[Path | str, list[Plugin]] = {}
        for plugin in self._plugins.values():
            if plugin.kind == kind:
                found.setdefault(plugin.path or plugin.origin, []).append(plugin)
        return list(found.values())

    def _spec(self, kind: Kind, name: str) -> MethodSpec | MetricSpec:
        plugin = self._plugins.get((kind, name))
        if plugin is None:
            for found in self._plugins.values():
                if not found.parses:
                    raise UsageError(f"there is no {kind} {name!r}, and {found.origin} does not parse: {found.reason}")
            names = [p.name for p in self.plugins(kind)]
            raise UsageError(f"there is no {kind} {name!r}{suggest(name, names)}: choose from {', '.join(names)}")
        try:
            return plugin.spec
        except PluginError as error:
            raise UsageError(f"{kind} {name} cannot be used ({plugin.origin}): {error}") from error

    def method(self, name: str) -> MethodSpec:
        """Return a method by name.

        Raises:
            UsageError: it is unknown (with a suggestion) or fails to import (with the reason).
        """
        spec = self._spec("method", name)
        assert isinstance(spec, MethodSpec)
        return spec

    def metric(self, name: str) -> MetricSpec:
        """Return a metric by name; raises as `method` does."""
        spec = self._spec("metric", name)
        assert isinstance(spec, MetricSpec)
        return spec

    def select_methods(self, text: str) -> list[MethodSpec]:
        """Return the methods of `--methods`: `all`, a group such as `paper`, or names separated by commas.

        `all` is every unlearning method and reference, without gold standards, controls and broken plugins.
        References come first.

        Raises:
            UsageError: a name is unknown or empty, or nothing is selected.
        """
        specs: dict[str, MethodSpec] = {}
        for item in (part.strip() for part in text.split(",")):
            if not item:
                raise UsageError(f"--methods {text!r} has an empty name: write all, or names separated by commas")
            members = [spec for spec in self._sound_methods() if item in spec.groups or _in_all(item, spec)]
            for spec in members or [self.method(item)]:
                specs[spec.name] = spec
        return sorted(specs.values(), key=lambda spec: spec.role != "reference")

    def controls(self) -> list[MethodSpec]:
        """Return the methods with a known outcome that need no training: references and controls."""
        return [spec for spec in self._sound_methods() if spec.role in ("reference", "control")]

    def select_metrics(self, text: str) -> list[MetricSpec]:
        """Return the metrics of `--metrics`: `all` except optional ones, a group, or names separated by commas.

        Raises:
            UsageError: a name is unknown.
        """
        specs: dict[str, MetricSpec] = {}
        for item in (part.strip() for part in text.split(",")):
            members = [s for s in self._sound_metrics() if item in s.groups or (item == "all" and not s.optional)]
            specs |= {spec.name: spec for spec in members or [self.metric(item)]}
        return list(specs.values())

    def _sound_metrics(self) -> list[MetricSpec]:
        specs = (_sound(plugin) for plugin in self.plugins("metric"))
        return [spec for spec in specs if isinstance(spec, MetricSpec)]

    def _sound_methods(self) -> list[MethodSpec]:
        specs = (_sound(plugin) for plugin in self.plugins("method"))
        return [spec for spec in specs if isinstance(spec, MethodSpec)]

    def source_hashes(self) -> dict[str, str]:
        """Return {"method:NAME", "metric:NAME": hash} without importing any plugin file."""
        return {
            f"{kind}:{name}": plugin.source_hash
            for (kind, name), plugin in self._plugins.items()
            if plugin.path is not None
        }

    def source_hash(self, kind: Kind, name: str) -> str:
        """Return the SHA-256 of one plugin's source, importing it if its file is unknown otherwise."""
        return self._plugins[kind, name].source_hash


def _in_all(item: str, spec: MethodSpec) -> bool:
    return item == "all" and spec.role in ("method", "reference")


def _sound(plugin: Plugin) -> MethodSpec | MetricSpec | None:
    """Return the spec of a plugin, None if it does not import (`list` shows the reason)."""
    try:
        return plugin.spec
    except PluginError:
        return None


def _builtins(kind: Kind) -> list[Plugin]:
    package = f"unlearnbench.{kind}s"
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    return [
        plugin
        for folder in folders
        for path in sorted(Path(folder).glob("*.py"))
        if not path.name.startswith("_")
        for plugin in _builtin(path, kind, partial(importlib.import_module, f"{package}.{path.stem}"))
    ]


def read_builtins() -> None:
    """Parse the built-in plugins, so that forked processes need not; nothing is imported."""
    for kind in typing.get_args(Kind):
        for plugin in _builtins(kind):
            with suppress(OSError):  # whoever asks for it says so
                _ = plugin.source_hash


def _builtin(path: Path, kind: Kind, load: Load) -> list[Plugin]:
    """Return the plugins of a file in a plugin folder; one of the file's name if they cannot be read."""
    with suppress(OSError):
        if plugins := _declared_in(path, kind, load):
            return plugins
    return [Plugin(path.stem, kind, str(path), path, load)]


def _entry_points(kind: Kind) -> list[Plugin]:
    plugins, loads = [], dict[str, Load]()
    for entry in importlib.metadata.entry_points(group=f"unlearnbench.{kind}s"):
        owner = entry.dist.name if entry.dist else "an installed package"
        load = loads.setdefault(entry.module, _once(partial(importlib.import_module, entry.module)))
        origin = f"{owner} ({entry.value})"
        plugins.append(Plugin(entry.name, kind, origin, module_file(entry.module), load, entry.module))
    return plugins


class _Loader(SourceFileLoader):
    """Loads a user's file and leaves no bytecode next to it."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write nothing."""


def _from_file(path: Path) -> list[Plugin]:
    """Return the plugins of a file given by --plugin.

    Raises:
        UsageError: it is not a Python file, cannot be read, or declares no plugin or a name twice.
    """
    path = _plugin_path(path)

    def load() -> ModuleType:
        name = f"unlearnbench_plugin_{path.stem}_{file_digest(path)[:8]}"
        if name in sys.modules:
            return sys.modules[name]
        loader = _Loader(name, str(path))
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    try:
        plugins = _declared_in(path, "method", load)
    except OSError as error:
        raise UsageError(f"--plugin {path} cannot be read: {error.strerror or error}") from error
    if not plugins:
        words = "the file declares no function under @method or @metric: 'unlearnbench new method NAME' writes one"
        raise UsageError(f"--plugin {path}: {words}")
    return plugins


def _declared_in(path: Path, kind: Kind, load: Load) -> list[Plugin]:
    """Return the plugins declared in a file; a file that does not parse gives one broken plugin of this kind.

    Raises:
        OSError: it cannot be read.
        UsageError: it declares a name twice.
    """
    source, load = read_source(path), _once(load)
    if not source.parses:
        return [Plugin(path.stem, kind, str(path), path, load, parses=False)]
    for (declared, name), times in Counter(source.names).items():
        if times > 1:
            raise UsageError(f"{path}: {times} {declared}s of the file are called {name}: rename one")
    return [Plugin(name, declared, str(path), path, load) for declared, name in source.names]


def _once(load: Load) -> Load:
    """Return a function that loads a module as `load` does, but only once: later calls raise the same error.

    So a broken file with several plugins is executed once.
    """
    failures: list[BaseException] = []

    def load_once() -> ModuleType:
        if failures:
            raise failures[0]
        try:
            return load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failures.append(error)
            raise

    return load_once


def _plugin_path(path: Path) -> Path:
    """Return the absolute path of a file given by --plugin, links resolved."""
    shown = one_line(str(path), 300)
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"--plugin {shown}: there is no such file") from error
    if found.is_dir():
        raise UsageError(f"--plugin {shown}: it is a folder: name the Python file in it")
    if not found.is_file() or path.suffix != ".py":
        raise UsageError(f"--plugin {shown}: it is not a .py file")
    return found
