"""Cards: what a plugin says of itself in its module's docstring, as one page."""

import inspect

from unlearnbench.errors import PluginError
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import Kind, MetricSpec

BETTER = {"lower": "lower is better", "higher": "higher is better", "neither": "a description, neither way is better"}


def cards(registry: Registry, kind: Kind) -> str:
    """Return a Markdown page with the card of every plugin of a kind that imports."""
    parts = [f"# {kind.capitalize()}s\n"]
    for plugin in registry.plugins(kind):
        try:
            spec = plugin.spec
        except PluginError:
            continue  # `list` shows the reason
        facts = f"{_facts(spec)}\n\n" if isinstance(spec, MetricSpec) else ""
        module = inspect.getmodule(spec.function)
        text = inspect.cleandoc((module and module.__doc__) or "It has no card: write the file's docstring.")
        parts.append(f"## `{plugin.name}`: {spec.title}\n\n{facts}{text}\n")
    return "\n".join(parts)


def _facts(spec: MetricSpec) -> str:
    """Return a sentence of what the metric's declaration says."""
    words = [f"Shows {spec.shows}", BETTER[spec.better]]
    words += [f"in {spec.unit}"] if spec.unit else []
    words += [f"controls are checked against {spec.boundary:g}"] if spec.boundary is not None else []
    words += ["only when named"] if spec.optional else []
    words += [f"source: {spec.source}"] if spec.source else []
    return f"*{', '.join(words)}.*"
