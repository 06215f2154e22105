"""What the page shows of a board, as plain values: the templates only lay it out."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from PIL import Image

from unlearnbench.grid import Target
from unlearnbench.report.board import Board
from unlearnbench.report.checks import alarms
from unlearnbench.report.compare import Side, compare_rows, comparison_tables
from unlearnbench.report.cost import PHASES
from unlearnbench.report.figures import PAIRS
from unlearnbench.report.html.charts import Chart, relearning, scatter, shares
from unlearnbench.report.pareto import axes_of
from unlearnbench.report.published import load_source, source_names
from unlearnbench.report.robustness import attacked_part
from unlearnbench.report.tables import all_tables
from unlearnbench.report.values import Measure, Variant
from unlearnbench.report.writers import Table, interval_text
from unlearnbench.results import Record

PLACES = {
    "summary": "summary", "pareto": "tradeoffs", "cost": "cost", "robustness": "attacks", "relearning": "attacks",
    "controls": "controls", "validation": "controls", "settings": "appendix",
}  # fmt: skip
SHOWN_PHASES = [phase for phase in PHASES if phase != "attack"]  # which only some cells have, and dwarfs the others
MOST_PICTURE_BYTES = 3_000_000  # of one page, so that it can be sent by mail
MOST_VALUES = 5  # of one fact that differs between records
LONG = 24  # letters of a word that needs a broad column
MOST_NAMES = 20  # cells named for one reason of failure


@dataclass(frozen=True)
class Cell:
    """One place of a table."""

    text: str
    mark: str  # right behind the number
    gap: str  # behind it: over how many of the cells expected
    rest: str  # smaller, below it: the interval
    best: bool
    number: float | None  # to sort by

    @property
    def is_long(self) -> bool:
        """Whether it is text that may be broken into lines."""
        return self.number is None and len(self.text) > LONG


@dataclass(frozen=True)
class Row:
    """One line of a table; `label` is a row of the board, or empty."""

    name: str
    label: str
    cells: list[Cell]


@dataclass(frozen=True)
class Grid:
    """A table with one or two lines of headers and bodies that are sorted one by one; the last one may be a foot."""

    name: str
    title: str
    caption: str
    corner: str
    groups: list[tuple[str, int]]  # words and how many columns they span; empty for one line of headers
    headers: list[str]
    bodies: list[list[Row]]
    has_foot: bool


@dataclass(frozen=True)
class Shade:
    """One cell of a heat map."""

    text: str
    share: float | None  # 0 worst to 1 best; None where there is no number
    words: str


@dataclass(frozen=True)
class Heat:
    """A metric per row and forget class."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Shade]]]


@dataclass(frozen=True)
class Strip:
    """Samples in one picture, side by side."""

    uri: str  # data:image/png;base64,...
    n: int
    words: str


@dataclass(frozen=True)
class Pictures:
    """Samples after forgetting one target: a row each, images of the forget class and of a retained one."""

    target: str
    headers: list[str]
    rows: list[tuple[str, list[Strip]]]


@dataclass(frozen=True)
class Bar:
    """The seconds of one row's cells by phase, and what they are of the longest row's."""

    label: str
    parts: list[tuple[str, float, float]]  # phase, seconds, percent of the longest
    total: float


@dataclass(frozen=True)
class Failure:
    """Cells that failed for one reason."""

    status: str
    reason: str
    cells: list[str]
    more: int
    traceback: str


@dataclass(frozen=True)
class Published:
    """What one paper printed beside what was measured."""

    title: str
    arxiv: str
    tables: list[Grid]
    notes: list[str]


@dataclass(frozen=True)
class BoardView:
    """Everything the page shows of one board."""

    name: str
    slug: str  # of ids
    title: str
    rows: list[str]
    facts: list[tuple[str, str]]
    alarms: list[str]
    notes: list[str]
    tradeoff: Chart | None
    tradeoffs: list[Chart]
    heats: list[Heat]
    pictures: list[Pictures]
    pictures_left_out: int
    phases: list[str]  # of the bars, in order
    bars: list[Bar]
    attacks: Heat | None
    relearning: list[Chart]
    tables: dict[str, list[Grid]]  # by section
    published: list[Published]
    failed: int
    failures: list[Failure]
    protocol: list[tuple[str, str]]
    provenance: list[tuple[str, str]]


class Album:
    """Decides which pictures the page has room for, over all its boards."""

    def __init__(self, room: int = MOST_PICTURE_BYTES) -> None:
        """Start with room for so many bytes of PNG."""
        self._room = room

    def strip(self, entry: Mapping[str, Any], words: str) -> Strip | None:
        """Return a picture of a record, or None where it cannot be read or there is no room left."""
        try:
            data = base64.b64decode(str(entry["png"]), validate=True)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                width, height = picture.size
                picture.verify()
        except (OSError, ValueError, KeyError, SyntaxError):
            return None  # as in the figures: a picture that cannot be read is not shown
        if len(data) > self._room or width % height:
            return None
        self._room -= len(data)
        n = width // height
        return Strip(f"data:image/png;base64,{base64.b64encode(data).decode()}", n, f"{n} {words}")


def view_of(name: str, board: Board, album: Album) -> BoardView:
    """Return what the page shows of a board."""
    tables: dict[str, list[Grid]] = {}
    for table in all_tables(board):
        tables.setdefault(PLACES.get(table.name, "tables"), []).append(grid(table, board))
    measures = axes_of(board)
    charts = [
        scatter(board, measures[x], measures[y], _against(measures[x], measures[y])) for x, y in PAIRS if measures
    ]
    pictures, left_out = _pictures(board, album)
    bars = _bars(board)
    return BoardView(
        name=name,
        slug=f"board-{name}",
        title=board.title,
        rows=[variant.label for variant in board.variants],
        facts=_facts(board),
        alarms=alarms(board),
        notes=list(board.notes),
        tradeoff=charts[0] if charts else None,
        tradeoffs=[chart for chart in charts[1:] if chart is not None],
        heats=[_heat(board, measure) for measure in [*board.metrics, *(m for m in board.costs if board.ok_records)]],
        pictures=pictures,
        pictures_left_out=left_out,
        phases=[phase for phase in SHOWN_PHASES if any(phase == part for bar in bars for part, *_ in bar.parts)],
        bars=bars,
        attacks=_attacks(board),
        relearning=relearning(board),
        tables=tables,
        published=_published(board),
        failed=len(board.failures()),
        failures=_failures(board),
        protocol=_protocol(board),
        provenance=_provenance(board),
    )


def _against(x: Measure, y: Measure) -> str:
    return f"{y.title} against {x.title}"


def grid(table: Table, board: Board) -> Grid:
    """Return a table as the page lays it out."""
    groups = [(text, len(list(same))) for text, same in groupby(table.groups)] if any(table.groups) else []
    lines = [
        Row(name, name if name in board.looks else "", [
            Cell(number, value.mark, value.gap, "" if table.narrow else interval_text(value, form).strip(), value.best, value.number)
            for value, (number, _), form in zip(values, parts, table.formats, strict=True)
        ])
        for name, values, parts in zip(table.rows, table.values, table.parts(), strict=True)
    ]  # fmt: skip
    starts = [0, *table.rules, len(lines)]
    bodies = [lines[a:b] for a, b in zip(starts, starts[1:], strict=False) if a < b]
    has_foot = len(table.rules) == 1 and table.corner == "Class"
    return Grid(
        table.name, table.title, table.full_caption(), table.corner, groups, table.headers, bodies, has_foot
    )  # fmt: skip


def _facts(board: Board) -> list[tuple[str, str]]:
    """Return what was run, on what, in a few words each."""
    methods = [variant for variant in board.variants if variant.role == "method"]
    others = [variant.label for variant in board.variants if variant.role != "method"]
    expected = len(board.variants) * len(board.targets) * len(board.replicates)
    sound = sum(record.cell.id in board.ok_ids for record in board.rows)
    failed = len(board.failures())
    cells = f"{sound} of {expected} with numbers" + (f", {failed} failed" if failed else "")
    last = board.records[-1]
    protocol = last.protocol
    rows = f"{len(methods)} {'row' if len(methods) == 1 else 'rows'} of methods"
    return [
        ("Compared", f"{rows}{', beside ' + ', '.join(others) if others else ''}"),
        ("To forget", f"{_few([target.label for target in board.targets], 12)}; {_replicates(board)}"),
        ("Cells", cells),
        ("Protocol", f"{protocol.get('name', board.key[1])}, DDIM {protocol.get('steps', '?')} steps, "
                     f"guidance {protocol.get('guidance', '?')}"),
        ("Device", board.device_name),
        ("Records", board.digest),
    ]  # fmt: skip


def _replicates(board: Board) -> str:
    count = len(board.replicates)
    return f"{count} {'seed' if count == 1 else 'seeds'}"


def _few(words: Sequence[str], most: int = MOST_VALUES) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _heat(board: Board, measure: Measure) -> Heat:
    found = {variant: [board.value(variant, target, measure) for target in board.targets] for variant in board.variants}
    names = [target.label for target in board.targets]
    flat = iter(shares([value.number for values in found.values() for value in values], measure))
    rows = []
    for variant, values in found.items():
        shades = []
        for name, value in zip(names, values, strict=True):
            number = value.word if value.number is None else f"{value.number:{measure.format}}{value.mark}{value.gap}"
            inside = interval_text(value, measure.format)
            shades.append(Shade(number, next(flat), f"{variant.label}, class {name}: {number}{inside}"))
        rows.append((variant.label, shades))
    return Heat(f"{measure.header} per forget class", names, rows)


def _attacks(board: Board) -> Heat | None:
    """Return what is still forgotten after each attack, over the classes that were attacked."""
    part = attacked_part(board)
    if part is None:
        return None
    before = part.headline("forgetting")
    measures = [*([before] if before else []), *part.robustness]
    names = [measure.title + (" before" if measure == before else "") for measure in measures]
    rows = []
    for variant in part.variants:
        values = [part.over_classes(variant, measure) for measure in measures]
        goods = [shares([value.number], measure)[0] for value, measure in zip(values, measures, strict=True)]
        rows.append((variant.label, [
            Shade(text := value.word if value.number is None else f"{value.number:{measure.format}}{value.gap}", good,
                  f"{variant.label}, {name}: {text}{interval_text(value, measure.format)}")
            for name, value, good, measure in zip(names, values, goods, measures, strict=True)
        ]))  # fmt: skip
    return Heat("Forgotten (%) before and after each attack, mean over the classes attacked", names, rows)


def _pictures(board: Board, album: Album) -> tuple[list[Pictures], int]:
    """Return the samples per target, and how many rows of them found no room."""
    found, left_out = [], 0
    for target in board.targets:
        rows: list[tuple[str, list[Strip]]] = []
        headers: list[str] = []
        for variant in board.variants:
            record = _pictured(board, variant, target)
            if record is None:
                continue
            strips = [_strip(album, variant, target, stream, record.images[stream]) for stream in record.images]
            if kept := [strip for strip in strips if strip is not None]:
                rows.append((variant.label, kept))
                headers = headers or [_stream(stream, record.images[stream]) for stream in record.images]
            else:
                left_out += 1
        if rows:
            found.append(Pictures(target.label, headers, rows))
    return found, left_out


def _pictured(board: Board, variant: Variant, target: Target) -> Record | None:
    records = board.cell_records(variant, target)
    return next((r for r in records if r.cell.id in board.ok_ids and "forget" in r.images), None)


def _stream(stream: str, entry: Mapping[str, Any]) -> str:
    return f"{'forget class' if stream == 'forget' else 'retained class'} {entry.get('class', '')}".strip()


def _strip(album: Album, variant: Variant, target: Target, stream: str, entry: Mapping[str, Any]) -> Strip | None:
    words = f"samples asked for the {_stream(stream, entry)} of {variant.label}, after forgetting {target.label}"
    return album.strip(entry, words)


def _bars(board: Board) -> list[Bar]:
    """Return the mean seconds of each row's cells by phase."""
    means: dict[str, dict[str, float]] = {}
    for variant in board.variants:
        records = [r for t in board.targets for r in board.cell_records(variant, t) if r.cell.id in board.ok_ids]
        found = {phase: [r.cost[phase]["seconds"] for r in records if phase in r.cost] for phase in SHOWN_PHASES}
        if times := {phase: sum(seconds) / len(seconds) for phase, seconds in found.items() if seconds}:
            means[variant.label] = times
    longest = max((sum(times.values()) for times in means.values()), default=0.0) or 1.0
    return [
        Bar(label, [(phase, seconds, 100 * seconds / longest) for phase, seconds in times.items()], sum(times.values()))
        for label, times in means.items()
    ]


def _published(board: Board) -> list[Published]:
    found = []
    for name in source_names():
        side = Side(load_source(name), board)
        if side.has_records:
            tables = [grid(table, board) for table in comparison_tables(side, None, compare_rows(side))]
            notes = [f"[{number}] {note.text}" for number, note in enumerate(side.notes, start=1)]
            found.append(Published(str(side.source.facts["title"]), str(side.source.facts["arxiv"]), tables, notes))
    return found


def _failures(board: Board) -> list[Failure]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in board.failures():
        groups.setdefault((record.status, record.reason or "no reason is recorded"), []).append(record)
    return [
        Failure(
            status, reason, [record.cell.id for record in records[:MOST_NAMES]], max(0, len(records) - MOST_NAMES),
            next((record.traceback for record in records if record.traceback), ""),
        )
        for (status, reason), records in groups.items()
    ]  # fmt: skip


def _protocol(board: Board) -> list[tuple[str, str]]:
    """Return every rule of evaluation, and what belongs to the dataset."""
    last = board.records[-1]
    parts = {"": last.protocol, "dataset ": last.dataset, "judge ": last.judge}
    return [
        (f"{kind}{name.replace('_', ' ')}", _plain(value)) for kind, facts in parts.items()
        for name, value in sorted(facts.items())
    ]  # fmt: skip


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(inner)}" for key, inner in sorted(value.items()))
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _provenance(board: Board) -> list[tuple[str, str]]:
    """Return what the records say of where they come from: each value once."""
    records = board.records
    found: dict[str, list[str]] = {"records": [f"{len(records)}, digest {board.digest}"]}
    dates = sorted(str(record.provenance.get("started_utc", "")) for record in records)
    found["measured"] = [f"{dates[0]} to {dates[-1]}"]
    for record in records:
        for name, value in sorted(_flat(record.provenance)):
            if name != "started utc" and value not in (values := found.setdefault(name, [])):
                values.append(value)
    for record in records:
        base = str(record.artifacts.get("base", {}).get("sha256", ""))
        if base and base not in (values := found.setdefault("base model sha256", [])):
            values.append(base)
    return [(name, _few(values)) for name, values in found.items()]


def _flat(facts: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for name, value in facts.items():
        words = f"{above}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{words} ")
        else:
            yield words, _plain(value)
