"""Sweeps: the settings that vary over a board's rows, as lines of variants."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unlearnbench.report.data.array import Numbers
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Measure, Value, Variant, short
from unlearnbench.store.cell import Seeds, Target
from unlearnbench.store.hashing import canonical_json
from unlearnbench.store.records import Record

Cells = frozenset[tuple[Target, Seeds]]  # (target, replicate)


@dataclass(frozen=True)
class SweepLine:
    """Variants of one method that differ only in one numeric setting, in the order of its values."""

    label: str  # values of the settings by which the lines of the sweep differ
    values: tuple[float, ...]
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Sweep:
    """One swept numeric setting of one method."""

    title: str  # of the method
    setting: str
    others: tuple[str, ...]  # the settings by which the lines differ
    lines: tuple[SweepLine, ...]
    cells: Cells  # of all variants of the method: each should have them all
    numbers: Numbers  # of all rows, over the classes of these cells

    @property
    def values(self) -> list[float]:
        """Every value of the setting, sorted."""
        return sorted({value for line in self.lines for value in line.values})

    def classes(self, row: Variant, measure: Measure) -> list[float | None]:
        """Return a row's number of each forget class of the sweep."""
        return [self.numbers.cell(row, target, measure, interval=False).number for target in self.numbers.targets]

    def mean(self, row: Variant, measure: Measure) -> Value:
        """Return a row's mean over the forget classes of the sweep, with its gap."""
        return replace(self.numbers.mean(row, measure, interval=False), expected=len(self.cells))


def find_sweeps(board: Board) -> list[Sweep]:
    """Return the swept numeric settings of every method, from variants with numbers."""
    by_method: dict[str, list[Record]] = {}
    for record in board.ok_records:
        by_method.setdefault(record.cell.method, []).append(record)
    order = dict.fromkeys(variant.method for variant in board.variants)
    return [sweep for method in order if method in by_method for sweep in _sweeps(board, by_method[method])]


def _sweeps(board: Board, records: Sequence[Record]) -> Iterator[Sweep]:
    """Yield the sweeps of one method; a measured default is one of the values."""
    method, ids = records[-1].cell.method, {canonical_json(dict(record.cell.settings)) for record in records}
    variants = [v for v in board.variants if v.method == method and v.settings in ids]
    settings = {variant: json.loads(variant.settings) for variant in variants}
    named = sorted({name for record in records for name in record.method.get("overrides") or {}})
    swept = [name for name in named if len({canonical_json(s.get(name)) for s in settings.values()}) > 1]
    cells = frozenset((r.cell.target, r.cell.seeds) for r in board.records if r.cell.method == method)
    title = short(records[-1].method.get("title", method))
    numbers = board.numbers.sel(targets={target for target, _ in cells})
    for name in swept:
        if all(_is_number(chosen.get(name)) for chosen in settings.values()):
            others, lines = _lines(settings, name, [other for other in swept if other != name])
            if lines:
                yield Sweep(title, short(name), others, lines, cells, numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _lines(
    settings: Mapping[Variant, Mapping[str, Any]], name: str, others: Sequence[str]
) -> tuple[tuple[str, ...], tuple[SweepLine, ...]]:
    """Return a line per combination of all settings but one that has several values of it, and by what lines differ."""
    groups: dict[str, list[Variant]] = {}
    for variant, chosen in settings.items():
        rest = canonical_json({key: value for key, value in chosen.items() if key != name})
        groups.setdefault(rest, []).append(variant)
    kept = {rest: variants for rest, variants in groups.items() if len(variants) > 1}
    first = {rest: settings[variants[0]] for rest, variants in kept.items()}
    differ = [o for o in others if len({canonical_json(chosen.get(o)) for chosen in first.values()}) > 1]
    lines = []
    for rest in sorted(kept, key=lambda rest: ([_order(first[rest].get(other)) for other in differ], rest)):
        joined = sorted(kept[rest], key=lambda variant: float(settings[variant][name]))
        label = ", ".join(spell(first[rest].get(other)) for other in differ)
        lines.append(SweepLine(label, tuple(float(settings[variant][name]) for variant in joined), tuple(joined)))
    return tuple(map(short, differ)), tuple(lines)


def _order(value: Any) -> tuple[float, str]:
    """Return a key that sorts numbers as numbers, before words."""
    return (float(value), "") if _is_number(value) else (math.inf, str(value))


def spell(value: object) -> str:
    """Return a setting's value in its shortest form: 10, 0.00025, True."""
    return f"{value:.12g}" if _is_number(value) else short(value)
