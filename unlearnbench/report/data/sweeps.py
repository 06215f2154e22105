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

    label: str  # the other swept settings
    values: tuple[float, ...]
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Sweep:
    """One swept numeric setting of one method."""

    title: str  # of the method
    setting: str
    lines: tuple[SweepLine, ...]
    cells: Cells  # of all variants of the method: each should have them all
    numbers: Numbers  # of all rows, over the classes of these cells

    @property
    def values(self) -> list[float]:
        """Every value of the setting, sorted."""
        return sorted({value for line in self.lines for value in line.values})

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
            lines = tuple(_lines(settings, name, [other for other in swept if other != name]))
            if any(len(line.values) > 1 for line in lines):
                yield Sweep(title, short(name), lines, cells, numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _lines(settings: Mapping[Variant, Mapping[str, Any]], name: str, others: Sequence[str]) -> Iterator[SweepLine]:
    """Yield one line per combination of all settings but one."""
    groups: dict[str, list[Variant]] = {}
    for variant, chosen in settings.items():
        rest = canonical_json({key: value for key, value in chosen.items() if key != name})
        groups.setdefault(rest, []).append(variant)
    chosen_first = {rest: [settings[variants[0]].get(other) for other in others] for rest, variants in groups.items()}
    for rest in sorted(groups, key=lambda rest: ([_order(value) for value in chosen_first[rest]], rest)):
        joined = sorted(groups[rest], key=lambda variant: float(settings[variant][name]))
        label = ", ".join(f"{short(k)}={spell(value)}" for k, value in zip(others, chosen_first[rest], strict=True))
        yield SweepLine(label, tuple(float(settings[variant][name]) for variant in joined), tuple(joined))


def _order(value: Any) -> tuple[float, str]:
    """Return a key that sorts numbers as numbers, before words."""
    return (float(value), "") if _is_number(value) else (math.inf, str(value))


def spell(value: object) -> str:
    """Return a setting's value in its shortest form: 10, 0.00025, True."""
    return f"{value:.12g}" if _is_number(value) else short(value)
