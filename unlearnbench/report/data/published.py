"""Published numbers: their values, their interpretation here, and their contradictions.

They are data: `SOURCE.csv` holds the printed numbers, `SOURCE.json` their interpretation (metric names, claims as
formulas, tolerances, footnotes).
"""

import csv
import difflib
import importlib.resources
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources.abc import Traversable
from typing import Any

from unlearnbench.errors import UsageError

STATISTICS = ("mean", "std")  # what the papers print below their class rows


@dataclass(frozen=True)
class Row:
    """One printed number."""

    method: str
    forget_class: str  # a class number, or one of STATISTICS
    metric: str  # the source's word
    text: str  # as printed, trailing zeros kept
    unit: str
    setting: str  # "main", or a setting of an ablation

    @property
    def value(self) -> float:
        """The number, in `unit`."""
        return float(self.text)

    @property
    def decimals(self) -> int:
        """Digits printed behind the point."""
        return len(self.text.partition(".")[2])


@dataclass(frozen=True)
class Source:
    """The numbers that one paper printed, with their interpretation."""

    name: str
    facts: Mapping[str, Any]  # SOURCE.json
    rows: tuple[Row, ...]  # SOURCE.csv

    @property
    def methods(self) -> dict[str, str]:
        """{method: title}, in the order of tables."""
        return dict(self.facts["methods"])

    @cached_property
    def metrics(self) -> dict[str, list[Row]]:
        """{metric: its class rows of the main tables}, methods in the order of tables, classes ascending."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.setting == "main" and row.forget_class not in STATISTICS:
                found.setdefault(row.metric, []).append(row)
        order = list(self.methods)
        for rows in found.values():
            rows.sort(key=lambda row: (order.index(row.method), int(row.forget_class)))
        return found

    @property
    def classes(self) -> list[int]:
        """The forget classes of the main tables, ascending."""
        return sorted({int(row.forget_class) for rows in self.metrics.values() for row in rows})

    def title(self, metric: str) -> str:
        """Return the metric's title."""
        return str(self.facts["metrics"][metric]["title"])

    def by_class(self, method: str, metric: str) -> dict[int, float]:
        """Return {forget class: printed value} of the main tables; empty where nothing is printed."""
        return {int(row.forget_class): row.value for row in self.metrics.get(metric, []) if row.method == method}

    def quotient(self, above: Sequence[str], below: Sequence[str]) -> float | None:
        """Return the mean of one printed (method, metric) over that of another, over the classes that both have."""
        terms = [self.by_class(*term) for term in (above, below)]
        common = terms[0].keys() & terms[1].keys()
        means = [statistics.fmean(term[c] for c in common) if common else 0.0 for term in terms]
        return means[0] / means[1] if means[1] else None

    def printed(self, method: str, metric: str, statistic: str) -> Row | None:
        """Return the printed mean or standard deviation over classes."""
        key = (method, metric, statistic, "main")
        return next((r for r in self.rows if (r.method, r.metric, r.forget_class, r.setting) == key), None)


@dataclass(frozen=True)
class Footnote:
    """An inconsistency among the printed numbers, and the (method, metric, class or statistic) it concerns."""

    text: str
    about: frozenset[tuple[str, str, str]]


def load_source(name: str) -> Source:
    """Return a source of published numbers by name.

    Raises:
        UsageError: there is none of this name.
    """
    folder, names = published_folder(), source_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"there is no published source {name!r}{hint}: choose from {', '.join(names)}")
    facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    lines = csv.DictReader(io.StringIO((folder / f"{name}.csv").read_text(encoding="utf-8")))
    rows = tuple(
        Row(line["method"], line["forget_class"], line["metric"], line["value"], line["unit"], line["setting"])
        for line in lines
    )
    return Source(name, facts, rows)


def source_names() -> list[str]:
    """Return the names of all sources, sorted."""
    return sorted(
        path.name.removesuffix(".json") for path in published_folder().iterdir() if path.name.endswith(".json")
    )


def published_folder() -> Traversable:
    """Return the folder of published numbers: part of the package in a wheel, next to it in a checkout."""
    package = importlib.resources.files("unlearnbench")
    installed = package / "published"
    return installed if installed.is_dir() else package.joinpath("..", "results", "published")


def footnotes(source: Source) -> list[Footnote]:
    """Return where the printed numbers contradict or repeat one another, computed from the rows."""
    checks = {"statistic": _wrong_statistics, "count": _counted, "repeats": _repeated}
    return [note for facts in source.facts["footnotes"] for note in checks[facts["check"]](source, facts)]


def _wrong_statistics(source: Source, facts: Mapping[str, Any]) -> list[Footnote]:
    """Return a footnote for every printed mean and standard deviation that does not follow from its class rows."""
    found = []
    for row in source.rows:
        if row.forget_class not in STATISTICS or row.setting != "main":
            continue
        values = list(source.by_class(row.method, row.metric).values())
        number = statistics.fmean(values) if row.forget_class == "mean" else statistics.stdev(values)
        recomputed = f"{number:.{row.decimals}f}"
        if recomputed != row.text:
            text = facts["text"].format(
                method=source.methods[row.method], metric=source.title(row.metric), statistic=row.forget_class,
                printed=row.text, recomputed=recomputed,
            )  # fmt: skip
            found.append(Footnote(text, frozenset({(row.method, row.metric, row.forget_class)})))
    return found


def _counted(source: Source, facts: Mapping[str, Any]) -> list[Footnote]:
    """Return a footnote on the classes of a method that miss its quoted value."""
    method, metric = facts["method"], facts["metric"]
    rows = [row for row in source.metrics[metric] if row.method == method]
    others = [row for row in rows if row.value != facts["value"]]
    text = facts["text"].format(
        method=source.methods[method], metric=source.title(metric), value=facts["value"],
        count=len(rows) - len(others), total=len(rows),
        others=", ".join(f"class {row.forget_class} has {row.text}" for row in others),
    )  # fmt: skip
    return [Footnote(text, frozenset((method, metric, row.forget_class) for row in others))] if others else []


def _repeated(source: Source, facts: Mapping[str, Any]) -> list[Footnote]:
    """Return a footnote on each method and class where an ablation repeats the main tables' rows."""
    main = {(r.method, r.metric, r.forget_class): r.text for r in source.rows if r.setting == "main"}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in source.rows:
        if row.setting == facts["setting"]:
            groups.setdefault((row.method, row.forget_class), []).append(row)
    return [
        Footnote(
            facts["text"].format(
                method=source.methods[method], forget_class=forget_class, setting=facts["setting"],
                values=", ".join(f"{source.title(row.metric)} {row.text}" for row in rows),
            ),
            frozenset((method, row.metric, forget_class) for row in rows),
        )
        for (method, forget_class), rows in groups.items()
        if all(main.get((method, row.metric, forget_class)) == row.text for row in rows)
    ]  # fmt: skip
