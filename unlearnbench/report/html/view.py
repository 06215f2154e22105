"""What the page shows of a board, as plain values: the templates only lay it out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearnbench.errors import plural
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.cost import PHASES
from unlearnbench.report.data.environment import MOST_LETTERS, MOST_VALUES, protocol_facts, provenance_facts
from unlearnbench.report.data.front import axes_of
from unlearnbench.report.data.published import load_source, source_names
from unlearnbench.report.data.values import GIVEN, Measure
from unlearnbench.report.figures.drawing import FIGURE_WORDS, Drawn
from unlearnbench.report.figures.tradeoff import PAIRS
from unlearnbench.report.html.charts import Chart, losses, relearning, scatter
from unlearnbench.report.html.grids import LONG, HtmlTable, grid
from unlearnbench.report.html.heatmaps import Heatmap, Verdicts, attack_heatmap, class_heatmap, verdicts
from unlearnbench.report.html.images import FigureImage, ImageBudget, Pictures, Strip, pictures
from unlearnbench.report.tables.classes import is_in_page
from unlearnbench.report.tables.controls import alarms
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.published import Side, compare_rows, comparison_tables
from unlearnbench.store.records import Record

PLACES = {
    "summary": "summary", "pareto": "tradeoffs", "cost": "cost", "robustness": "attacks", "relearning": "attacks",
    "instead": "verdicts", "judges": "judges", "controls": "controls", "validation": "controls", "settings": "appendix",
}  # fmt: skip
SHOWN_PHASES = [phase for phase in PHASES if phase != "attack"]  # only some cells have it, and it dwarfs the others
STILLS = ("equal-retention", "instead", "sweep")  # figures that the page does not draw itself
MOST_NAMES = 20  # cells named for one reason of failure


@dataclass(frozen=True)
class Bar:
    """The seconds of one row's cells by phase, absolute and relative to the longest row."""

    label: str
    parts: list[tuple[str, float, float]]  # phase, seconds, percent of the longest
    total: float


@dataclass(frozen=True)
class Failure:
    """Cells that failed for the same reason."""

    status: str
    reason: str
    cells: list[str]
    more: int
    traceback: str


@dataclass(frozen=True)
class Published:
    """Comparison of one paper's numbers with measured ones."""

    title: str
    arxiv: str
    tables: list[HtmlTable]
    notes: list[str]


@dataclass(frozen=True)
class BoardView:
    """Everything the page shows of one board."""

    name: str
    slug: str  # of ids
    title: str
    rows: list[str]
    facts: list[tuple[str, str]]
    setup: list[tuple[str, str]]
    alarms: list[str]
    notes: list[str]
    tradeoff: Chart | None
    tradeoffs: list[Chart]
    losses: list[Chart]
    heats: list[Heatmap]
    stills: list[FigureImage]
    pictures: list[Pictures]
    pictures_left_out: int
    verdicts: list[Verdicts]
    phases: list[str]  # of the bars, in order
    bars: list[Bar]
    attacks: Heatmap | None
    relearning: list[Chart]
    tables: dict[str, list[HtmlTable]]  # by section
    published: list[Published]
    failed: str  # cells and attacks, in words
    failures: list[Failure]
    protocol: list[tuple[str, str]]
    provenance: list[tuple[str, str]]

    @property
    def has_long_names(self) -> bool:
        """Whether rows need a broad column, as those of swept settings do."""
        return any(len(label) > LONG for label in self.rows)

    @property
    def strips(self) -> list[Strip]:
        """All strips of samples."""
        return [strip for page in self.pictures for _, strips in page.rows for strip in strips]


def stills(album: ImageBudget, drawn: Mapping[str, Drawn]) -> list[FigureImage]:
    """Return the figures of a board that the page shows as pictures.

    Args:
        album: the pictures of the page so far.
        drawn: {figure: its bytes}.
    """
    shown = [key for key in STILLS if key in drawn]
    return [still for key in shown if (still := album.still(drawn[key]["png"], FIGURE_WORDS[key]))]


def view_of(name: str, board: Board, album: ImageBudget) -> BoardView:
    """Return what the page shows of a board, but for `stills`.

    Args:
        name: of its folder.
        board: what to show.
        album: the pictures of the page so far.
    """
    tables: dict[str, list[HtmlTable]] = {}
    for table in (table for table in all_tables(board) if is_in_page(table)):
        tables.setdefault(PLACES.get(table.name, "tables"), []).append(grid(table, board))
    measures = axes_of(board)
    charts = [
        scatter(board, measures[x], measures[y], _against(measures[x], measures[y])) for x, y in PAIRS if measures
    ]
    samples, left_out = pictures(board, album)
    bars = _bars(board)
    return BoardView(
        name=name,
        slug=f"board-{name}",
        title=board.title,
        rows=[variant.label for variant in board.variants],
        facts=_facts(board),
        setup=[(name, words) for name, words in board.setup if words != board.title],  # which is the heading
        alarms=alarms(board),
        notes=list(board.notes),
        tradeoff=charts[0] if charts else None,
        tradeoffs=[chart for chart in charts[1:] if chart is not None],
        losses=losses(board),
        heats=[
            class_heatmap(board, measure) for measure in [*board.metrics, *(m for m in board.costs if board.ok_records)]
        ],
        stills=[],
        pictures=samples,
        pictures_left_out=left_out,
        verdicts=verdicts(board),
        phases=[phase for phase in SHOWN_PHASES if any(phase == part for bar in bars for part, *_ in bar.parts)],
        bars=bars,
        attacks=attack_heatmap(board),
        relearning=relearning(board),
        tables=tables,
        published=_published(board),
        failed=_failed(board),
        failures=_failures(board),
        protocol=protocol_facts(board.records),
        provenance=provenance_facts(board.records, board.digest),
    )


def _against(x: Measure, y: Measure) -> str:
    return f"{y.title} against {x.title}"


def _facts(board: Board) -> list[tuple[str, str]]:
    """Return the facts of the run: rows, targets, device, and so on, in a few words each."""
    methods = [variant for variant in board.variants if variant.role == "method"]
    others = [
        f"{variant.label} (given)" if variant.role == GIVEN else variant.label
        for variant in board.variants if variant.role != "method"
    ]  # fmt: skip
    expected = len(board.variants) * board.numbers.expected
    sound = len(board.numbers.sound_records)
    failed = len(board.failures())
    cells = f"{sound} of {expected} with numbers" + (f", {failed} failed" if failed else "")
    number = len({variant.method for variant in methods})
    rows = f"{number} {'method' if number == 1 else 'methods'}"
    rows += f" in {len(methods)} rows" if len(methods) != number else ""
    compared = " and ".join([*([rows] if methods else []), *([", ".join(others)] if others else [])])
    return [
        ("Compared", compared),
        ("To forget", f"{_few([board.name_of(target) for target in board.targets], 12)}; {_replicates(board)}"),
        ("Cells", cells),
        ("Records", board.digest),
    ]  # fmt: skip


def _replicates(board: Board) -> str:
    count = len(board.seeds)
    return f"{count} {'seed' if count == 1 else 'seeds'}"


def _few(words: Sequence[str], most: int = MOST_VALUES) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ("; " if any(", " in word for word in words[:most]) else ", ").join(words[:most]) + more


def _bars(board: Board) -> list[Bar]:
    """Return the mean seconds of each row's cells by phase."""
    means = {
        label: {phase: seconds for phase, seconds in times.items() if phase in SHOWN_PHASES}
        for label, times in board.phase_seconds.items()
    }
    longest = max((sum(times.values()) for times in means.values()), default=0.0) or 1.0
    return [
        Bar(label, [(phase, seconds, 100 * seconds / longest) for phase, seconds in times.items()], sum(times.values()))
        for label, times in means.items()
    ]


def _published(board: Board) -> list[Published]:
    found = []
    for name in source_names():
        side = Side(load_source(name), board)
        if not side.has_records:
            continue
        rows = compare_rows(side)
        if any(value.number is not None for value in rows["measured"]):
            tables = [grid(table, board) for table in comparison_tables(side, None, rows)]
            notes = [f"[{number}] {note.text}" for number, note in enumerate(side.notes, start=1)]
            found.append(Published(str(side.source.facts["title"]), str(side.source.facts["arxiv"]), tables, notes))
    return found


def _failed(board: Board) -> str:
    """Return how many cells and attacks failed, in words."""
    cells, attacks = len(board.failures()), len(board.failed_attacks)
    counts = [
        *([f"{plural(cells, 'cell')} {'has' if cells == 1 else 'have'} no numbers"] if cells else []),
        *([f"{plural(attacks, 'attack')} failed"] if attacks else []),
    ]
    return ", ".join(counts)


def _failures(board: Board) -> list[Failure]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in board.failures():
        groups.setdefault((record.status, record.reason or "no reason is recorded"), []).append(record)
    for record, attack in board.failed_attacks:
        groups.setdefault((attack["failed"], f"{attack['title']}: {attack.get('reason')}"), []).append(record)
    return [
        Failure(
            status, reason, [record.cell.id for record in records[:MOST_NAMES]], max(0, len(records) - MOST_NAMES),
            next((record.traceback[-MOST_LETTERS:] for record in records if record.traceback), ""),
        )
        for (status, reason), records in groups.items()
    ]  # fmt: skip
