"""One table object, and its writers: Markdown, LaTeX, CSV, terminal."""

import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from tabulate import tabulate

from unlearnbench.report.board import Board
from unlearnbench.report.cost import LEAST_TOLERANCE, flops, repeats_of
from unlearnbench.report.values import MARK, Measure, Value, Variant
from unlearnbench.results import Record

MARK_WORDS = (
    f"{MARK} rests on cells that were measured while something else used the machine: see the report's notes, and "
    f"column disturbances of cells.csv."
)


@dataclass(frozen=True)
class Table:
    """A table of values with named rows and one or two levels of column headers."""

    name: str  # file name without ending
    title: str
    caption: str
    corner: str  # header of the row names
    rows: list[str]
    groups: list[str]  # upper header of each column; empty strings for none
    headers: list[str]
    formats: list[str]
    values: list[list[Value]]  # by row
    rules: tuple[int, ...] = ()  # rows that a line precedes

    def texts(self, plus_minus: str = " ± ") -> list[list[str]]:
        """Return the cells as text: a number with its spread, or the word that stands for it."""
        return [
            [_text(value, form, plus_minus) for value, form in zip(row, self.formats, strict=True)]
            for row in self.values
        ]

    def full_caption(self) -> str:
        """Return the caption, with what the mark means where a cell has it."""
        marked = any(MARK in text for row in self.texts() for text in row)
        return f"{self.caption} {MARK_WORDS}" if marked else self.caption

    def flat_headers(self) -> list[str]:
        """Return one header per column, the upper one first."""
        return [f"{group} {header}".strip() for group, header in zip(self.groups, self.headers, strict=True)]


def _text(value: Value, form: str, plus_minus: str) -> str:
    if value.number is None:
        return value.word
    spread = f"{plus_minus}{value.spread:{form}}" if value.spread is not None else ""
    return f"{value.number:{form}}{spread}{value.mark}{value.gap}"


def summary_table(board: Board) -> Table:
    """Return the main table: one row per variant, mean and standard deviation over forget classes."""
    measures = [*board.metrics, *board.costs]
    counts = [Value(None, board.completeness(variant)) for variant in board.variants]
    return Table(
        name="summary",
        title="Summary",
        caption=f"Mean ± sample standard deviation over forget classes. {board.caption()}.",
        corner="Method",
        rows=[variant.label for variant in board.variants],
        groups=[""] * (1 + len(measures)),
        headers=["Cells", *[measure.header for measure in measures]],
        formats=["", *[measure.format for measure in measures]],
        values=[
            [count, *[board.over_classes(variant, measure) for measure in measures]]
            for variant, count in zip(board.variants, counts, strict=True)
        ],
    )


def paper_tables(board: Board) -> list[Table]:
    """Return the paper's two tables: quality and cost, and forgetting; forget classes down, methods across."""
    quality = [measure for measure in board.metrics if measure.shows == "retention" and measure.headline]
    costs = [measure for measure in board.costs if measure.headline]
    forgetting = [measure for measure in board.metrics if measure.shows == "forgetting"]
    kept = [measure for measure in board.metrics if measure.shows == "retention" and not measure.headline]
    tables = [
        ("efficiency", "Quality of the retained classes and cost, per forget class", [*quality, *costs]),
        ("uncertainty", "Forgetting, per forget class", forgetting),
        ("retention", "Retained classes, per forget class", kept),
    ]
    return [_per_class(board, name, title, measures) for name, title, measures in tables if measures]


def all_tables(board: Board) -> list[Table]:
    """Return every table of a report, the main one first."""
    costs = [cost_table(board)] if board.ok_records else []
    return [summary_table(board), *costs, *paper_tables(board), *settings_tables(board)]


def cost_table(board: Board) -> Table:
    """Return what each variant cost: means over forget classes, without the columns that no row has a number for."""
    variants, found = board.variants, {}
    for measure in board.cost.detailed:
        column = [replace(board.over_classes(variant, measure), spread=None) for variant in variants]
        if any(value.number is not None for value in column):
            found[measure] = column
    ranked = [[_rank(board, variant) for variant in variants]] if board.ranks else []
    columns = [*ranked, *found.values()]
    return Table(
        name="cost",
        title="Cost",
        caption=" ".join(["Means over forget classes.", *_cost_words(board, found), f"{board.caption()}."]),
        corner="Method",
        rows=[variant.label for variant in variants],
        groups=[""] * len(columns),
        headers=[*["Rank" for _ in ranked], *[measure.header for measure in found]],
        formats=[*[".0f" for _ in ranked], *[measure.format for measure in found]],
        values=[[column[index] for column in columns] for index in range(len(variants))],
    )


def _rank(board: Board, variant: Variant) -> Value:
    """Return a variant's rank by run time, marked like the run time it rests on."""
    if variant not in board.ranks:
        return Value(None)
    rte = board.over_classes(variant, board.costs[0])
    return Value(board.ranks[variant], disturbed=rte.disturbed)


def _cost_words(board: Board, measures: Iterable[Measure]) -> list[str]:
    """Return a sentence on each column that its header does not explain."""
    numbers = sorted({len(repeats) for record in board.ok_records if (repeats := repeats_of(record))})
    words = {
        "range": f"RTE is the median of a cell's repeats ({', '.join(map(str, numbers))}), RTE range their greatest "
        f"minus their least.",
        "amortised": "Amortised is RTE plus the seconds of each prior divided by the cells of the row that use it.",
        "warmup": "The warm-up is part of no RTE.",
        "forward_images": "Forwards and backwards are images through the models in prior and forget.",
        "work": "Work is these images times the operations that each takes.",
        "share": f"Of peak is work by the seconds of prior and forget, as a share of the rate measured on this device "
        f"in {', '.join(board.cost.peaks)}.",
    }
    rank = (
        f"Rank is 1 + how many methods are separably faster by RTE; equal ranks are ties. Separably: over the cells "
        f"that both have, the median ratio exceeds 1 by more than {100 * LEAST_TOLERANCE:.0f} % and by more than the "
        f"median of both relative ranges of repeats added."
    )
    shown = {measure.key for measure in measures}
    return [*([rank] if board.ranks else []), *[text for key, text in words.items() if key in shown]]


def settings_tables(board: Board) -> list[Table]:
    """Return the table of settings that are not the method's own defaults, so that nothing is shortened silently."""
    changed: dict[tuple[str, str], tuple[object, object]] = {}
    for record in board.records:
        label = board.label(record)
        for name, (default, used) in sorted(dict(record.method.get("changed", {})).items()):
            changed[label, name] = (default, used)
    order = [variant.label for variant in board.variants]
    rows = sorted(changed, key=lambda key: (order.index(key[0]), key[1]))
    if not rows:
        return []
    return [
        Table(
            name="settings",
            title="Settings that are not the methods' defaults",
            caption="The defaults are the papers' values for CIFAR-10; each method's file says where they come from.",
            corner="Method",
            rows=[label for label, _ in rows],
            groups=[""] * 3,
            headers=["Setting", "Default", "Here"],
            formats=[""] * 3,
            values=[
                [Value(None, name), *[Value(None, _plain(v)) for v in changed[label, name]]] for label, name in rows
            ],
        )
    ]


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _per_class(board: Board, name: str, title: str, measures: Sequence[Measure]) -> Table:
    columns = [(variant, measure) for variant in board.variants for measure in measures]
    body = [[board.value(variant, c, measure) for variant, measure in columns] for c in board.classes]
    overall = [board.over_classes(variant, measure) for variant, measure in columns]
    names = board.records[-1].dataset.get("class_names") or []
    rows = [_class_name(c, names) for c in board.classes]
    return Table(
        name=name,
        title=title,
        caption=f"{title}; std is the sample standard deviation over classes. {board.caption()}.",
        corner="Class",
        rows=[*rows, "mean", "std", "cells"],
        groups=[variant.label for variant, _ in columns],
        headers=[measure.header for _, measure in columns],
        formats=[measure.format for _, measure in columns],
        values=[
            *body,
            [replace(value, spread=None) for value in overall],
            [Value(value.spread, disturbed=value.disturbed) for value in overall],
            [Value(None, f"{value.ok}/{value.expected}") for value in overall],
        ],
        rules=(len(rows),),
    )


def _class_name(number: int, names: Sequence[str]) -> str:
    name = names[number] if number < len(names) else str(number)
    return str(number) if name == str(number) else f"{number} {name}"


def tidy_frame(board: Board) -> pd.DataFrame:
    """Return one line per cell with every raw number, for a reader's own analysis."""
    lines = []
    for record in sorted(board.records, key=lambda r: (r.cell.method, r.cell.forget_class, r.cell.seed, r.cell.id)):
        cell: dict[str, object] = {
            "cell_id": record.cell.id, "dataset": record.cell.dataset, "protocol": record.cell.protocol,
            "method": record.cell.method, "forget_class": record.cell.forget_class, "seed": record.cell.seed,
            "status": record.status,
        }  # fmt: skip
        disturbances = "; ".join(f"{found['phase']}: {found['what']}" for found in record.disturbances)
        metrics = {name: entry.get("value") for name, entry in record.metrics.items()}
        parts = (metrics, _phase_columns(record), _count_columns(record), _wall_columns(record))
        lines.append((cell, *parts, {"disturbances": disturbances}))
    columns = list(lines[0][0])
    for part in list(zip(*lines, strict=True))[1:]:  # in one order, whichever columns the first cells have
        columns += sorted({name for found in part for name in found} - set(columns))
    merged = [{name: value for part in line for name, value in part.items()} for line in lines]
    return pd.DataFrame(merged, columns=columns, dtype=object)  # a count beside a gap stays a whole number


def _phase_columns(record: Record) -> dict[str, object]:
    """Return what each phase cost; repeats are joined by spaces."""
    line: dict[str, object] = {}
    for phase, cost in record.cost.items():
        line |= {f"{phase}_{key}": cost[key] for key in ("seconds", "reused_seconds", "side_by_side") if key in cost}
        line |= {f"{phase}_{probe}_bytes": peak for probe, peak in cost.get("memory_bytes", {}).items()}
        if repeats := cost.get("repeats"):
            line[f"{phase}_repeats"] = " ".join(map(str, repeats))
    return line


def _count_columns(record: Record) -> dict[str, object]:
    line = {name: count for name, count in record.counts.items() if name != "drawn"}
    line |= {f"drawn_{stream}": count for stream, count in record.counts.get("drawn", {}).items()}
    return line if (work := flops(record)) is None else line | {"flops": work}


def _wall_columns(record: Record) -> dict[str, object]:
    outside = {f"outside_{name}_seconds": seconds for name, seconds in record.outside.items()}
    return {**outside, "wall_seconds": record.wall_seconds}


def to_markdown(table: Table) -> str:
    """Return the table in Markdown, with its title and caption."""
    headers = [escape_markdown(text) for text in [table.corner, *table.flat_headers()]]
    body = [
        [escape_markdown(text) for text in [row, *texts]] for row, texts in zip(table.rows, table.texts(), strict=True)
    ]
    alignment = ["left", *["right"] * len(table.headers)]
    text = tabulate(body, headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)
    return f"### {escape_markdown(table.title)}\n\n{text}\n\n{escape_markdown(table.full_caption())}\n"


def to_csv(table: Table) -> str:
    """Return the table as CSV, numbers in full; spreads and counts of disturbed cells have columns of their own."""
    columns: dict[str, list[object]] = {table.corner: list(table.rows)}
    for index, header in enumerate(table.flat_headers()):
        cells = [row[index] for row in table.values]
        columns[header] = [cell.word if cell.number is None else cell.number for cell in cells]
        if any(cell.spread is not None for cell in cells):
            columns[f"{header} std"] = [cell.spread for cell in cells]
        if any(cell.mark for cell in cells):
            columns[f"{header} disturbed cells"] = [cell.disturbed if cell.mark else 0 for cell in cells]
    return str(pd.DataFrame(columns).to_csv(index=False, lineterminator="\n"))


def to_latex(table: Table) -> str:
    r"""Return the table for `\input`: booktabs rules, siunitx columns, everything else escaped.

    Needs the packages booktabs, siunitx and graphicx; a table wider than the line is shrunk to it.
    """
    grouped = any(table.groups)
    pairs = list(zip(table.groups, table.headers, strict=True))
    columns = pd.MultiIndex.from_tuples(pairs) if grouped else pd.Index(table.headers)
    texts = [
        [_latex_cell(text, value) for text, value in zip(row, values, strict=True)]
        for row, values in zip(table.texts(r" \pm "), table.values, strict=True)
    ]
    frame = pd.DataFrame(texts, columns=columns, index=table.rows)
    styler = frame.style.format_index(escape_latex, axis=0)
    for level in range(columns.nlevels):
        styler = styler.format_index(escape_latex, axis=1, level=level)
    text = str(
        styler.to_latex(
            column_format="l" + "".join(_column_format(table, index) for index in range(len(pairs))),
            hrules=True,
            siunitx=True,
            multicol_align="c",
            position="t",
            position_float="centering",
            caption=escape_latex(table.full_caption()),
            label=f"tab:{table.name}",
        )
    )
    return _shrunk(_with_rules(text, table))


def _latex_cell(text: str, value: Value) -> str:
    """Return a cell: a number for siunitx, mathematics for a number with its spread, or a braced word."""
    if value.number is None:
        return f"{{{escape_latex(text)}}}"
    if value.spread is not None:
        return f"{{${text.replace(MARK, LATEX_MARK)}$}}"
    return f"{{{text.replace(MARK, f'${LATEX_MARK}$')}}}" if value.gap or value.mark else text


def _column_format(table: Table, index: int) -> str:
    """Return siunitx's S with the digits this column needs, or r where no cell is a bare number."""
    cells = [row[index] for row in table.values]
    numbers = [
        f"{cell.number:{table.formats[index]}}"
        for cell in cells
        if cell.number is not None and cell.spread is None and not cell.gap and not cell.mark
    ]
    if not numbers:
        return "r"
    whole = max(len(number.split(".")[0]) for number in numbers)
    decimals = max(len(number.partition(".")[2]) for number in numbers)
    return f"S[table-format={whole}.{decimals}]"


def _with_rules(text: str, table: Table) -> str:
    r"""Put \midrule before the rows that `rules` names, counting from the first row of the body."""
    lines = text.split("\n")
    first = next(index for index, line in enumerate(lines) if line == r"\midrule") + 1
    for rule in sorted(table.rules, reverse=True):
        lines.insert(first + rule, r"\midrule")
    return "\n".join(lines)


def _shrunk(text: str) -> str:
    """Let a tabular that is wider than the line shrink to it."""
    fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    return text.replace(r"\begin{tabular}", fit + "\n" + r"\begin{tabular}").replace(
        r"\end{tabular}", r"\end{tabular}}"
    )


LATEX_MARK = r"^{\dagger}"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " ",
    MARK: f"${LATEX_MARK}$",
}  # fmt: skip


def escape_latex(text: object) -> str:
    """Return text that LaTeX prints as it stands; characters pdflatex cannot print become a question mark."""
    return "".join(_LATEX.get(c, c if 31 < ord(c) < 127 else _to_ascii(c)) for c in str(text))


def _to_ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(_LATEX.get(c, c) for c in plain) or "?"


def escape_markdown(text: str) -> str:
    """Return text that stays inside its table cell and is not taken for markup."""
    for old, new in (
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("*", "\\*"),
        ("`", "\\`"),
        ("\n", " "),
    ):
        text = text.replace(old, new)
    return text.strip()


def to_terminal(board: Board, width: int = 80) -> str:
    """Return the main table as plain text that fits the width; long names are folded, numbers never cut."""
    measures = [*board.metrics, *(measure for measure in board.costs if measure.key != "total")]
    columns = [("cells", [board.completeness(variant) for variant in board.variants])]
    columns += [(_short(m), [_compact(board, variant, m) for variant in board.variants]) for m in measures]
    widths = [max(len(text) for text in [*header.split("\n"), *cells]) for header, cells in columns]
    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("method", overflow="fold", max_width=max(8, width - sum(widths) - 2 * len(widths)))
    for (header, _), column_width in zip(columns, widths, strict=True):
        table.add_column(Text(header), justify="right", no_wrap=True, min_width=column_width)
    for index, variant in enumerate(board.variants):
        table.add_row(Text(variant.label), *[Text(cells[index]) for _, cells in columns])
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([f"{board.title} on {board.device_name}: mean over forget classes", *lines])


def _short(measure: Measure) -> str:
    """Return a header in lines of few letters: the title's words, then unit and arrow."""
    arrow = "↓" if measure.better == "lower" else "↑"
    return "\n".join([*measure.title.replace("+", " +").split(), f"{measure.unit} {arrow}".strip()])


def _compact(board: Board, variant: Variant, measure: Measure) -> str:
    value = board.over_classes(variant, measure)
    return value.word if value.number is None else f"{value.number:{measure.format}}{value.mark}{value.gap}"
