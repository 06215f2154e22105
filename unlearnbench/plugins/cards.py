"""Cards: the docstrings of plugin modules, as one page."""

import inspect
from collections.abc import Sequence

from unlearnbench.plugins.registry import Plugin, Registry
from unlearnbench.plugins.spec import Kind, MethodSpec, MetricSpec

BETTER = {"lower": "lower is better", "higher": "higher is better", "neither": "a description, neither way is better"}


def cards(registry: Registry, kind: Kind) -> str:
    """Return a Markdown page with the card of every file that imports, and its columns."""
    parts = [f"# {kind.capitalize()}s\n"]
    for plugins in registry.files(kind):
        specs = [plugin.spec for plugin in plugins if not plugin.reason]  # `list` shows the reason of the others
        if specs:
            module = inspect.getmodule(specs[0].function)
            text = inspect.cleandoc((module and module.__doc__) or "It has no card: write the file's docstring.")
            parts.append(f"{_heading(plugins[0], specs, text)}\n\n{text}\n")
    return "\n".join(parts)


def _heading(first: Plugin, specs: Sequence[MethodSpec | MetricSpec], text: str) -> str:
    """Return the title of a card and its facts, column by column where there are several."""
    facts = {spec.name: _facts(spec) for spec in specs if isinstance(spec, MetricSpec)}
    if len(specs) == 1:
        (spec,) = specs
        return "\n\n".join([f"## `{spec.name}`: {spec.title}", *facts.values()])
    family = first.path.stem if first.path else first.name
    columns = [f"- `{spec.name}`: {spec.title}. {facts.get(spec.name, '')}".rstrip() for spec in specs]
    return "\n".join([f"## `{family}`: {text.splitlines()[0].partition(':')[0]}\n", *columns])


def _facts(spec: MetricSpec) -> str:
    """Return the facts of a metric's declaration as one sentence."""
    words = [f"Shows {spec.aspect}", BETTER[spec.better]]
    words += [f"in {spec.unit}"] if spec.unit else []
    words += [f"controls are checked against {spec.threshold:g}"] if spec.threshold is not None else []
    words += ["only when named"] if spec.optional else []
    words += [f"source: {spec.source}"] if spec.source else []
    return f"*{', '.join(words)}.*"
