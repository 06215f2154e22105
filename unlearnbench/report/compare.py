"""Published numbers beside measured ones: the pages, tables and lines of `unlearnbench compare`."""

import csv
import io
import textwrap
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path

from tabulate import tabulate

from unlearnbench.errors import UsageError
from unlearnbench.report.data.array import NOT_RUN
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.published import Source, load_source
from unlearnbench.report.data.rendering import Rendering
from unlearnbench.report.tables.published import (
    VERDICTS,
    Comparison,
    Side,
    claims_table,
    compare_rows,
    comparison_tables,
    overview_table,
)
from unlearnbench.report.tables.table import Table
from unlearnbench.report.write.files import publish
from unlearnbench.report.write.latex import to_latex
from unlearnbench.report.write.markdown import escape_markdown, to_markdown
from unlearnbench.store.records import Reading


def compare(source: str, reading: Reading, out: Path, stale: Set[str] = frozenset()) -> Rendering:
    """Write a paper's numbers beside those of a results folder, one page per board.

    Args:
        source: name of the published numbers.
        reading: of a results folder.
        out: folder for the pages, `out/BOARD/compare-SOURCE.md`, `.csv` and `.tex`.
        stale: ids of cells with stale records.

    Raises:
        UsageError: no such source, no record of a published method, or the folder cannot be written.
    """
    published = load_source(source)
    rendering = Rendering(notes=list(reading.problems))
    sides = {name: Side(published, board) for name, board in boards(reading.records, stale).items()}
    shown = {name: side for name, side in sides.items() if side.has_records}
    if not shown:
        why = f" ({'; '.join(rendering.notes[:3])})" if rendering.notes else ""
        raise UsageError(
            f"there is no record of {', '.join(published.methods)} in {reading.root} to compare with {source}{why}: "
            f"run 'unlearnbench run --methods {','.join(published.methods)}' first or name a folder with --results"
        )
    files: dict[str, str | bytes] = {}
    for name, side in shown.items():
        twin = next((other for other in shown.values() if other.is_twin_of(side)), None)
        files |= {f"{name}/compare-{source}.{ending}": text for ending, text in _texts(side, twin).items()}
        rendering.pages.append(out / name / f"compare-{source}.md")
        rendering.terminal.append(_terminal(side))
        rendering.notes += side.board.notes
    publish(files, out)
    return rendering


def _texts(side: Side, twin: Side | None) -> dict[str, str]:
    """Return page, tidy CSV and LaTeX of one board, by ending."""
    rows = compare_rows(side)
    tables = comparison_tables(side, twin, rows)
    return {
        "md": _page(side, tables, rows),
        "csv": _tidy(side, rows),
        "tex": "\n".join(to_latex(table) for table in tables),
    }


def _page(side: Side, tables: Sequence[Table], rows: Sequence[Comparison]) -> str:
    facts = side.source.facts
    arxiv = facts["arxiv"]
    lines = [
        f"# Published beside measured: {facts['title']}",
        f"**{_verdict(side, rows)}**",
        f"Numbers printed in [arXiv:{arxiv}](https://arxiv.org/abs/{arxiv}) beside those of these records. A number "
        f"agrees or differs by the tolerance below; where dataset, protocol, features, reference set, device or "
        f"settings are not the paper's, it is shown and not judged.",
        *[_folded(table) for table in tables],
        "### What the claims depend on",
        "\n".join(f"- {c['label']} ({' and '.join(c['depends_on'])}): {c['why']}." for c in facts["claims"]),
        "### Why numbers are not comparable",
        "\n".join(f"- {reason}: {escape_markdown(detail)}." for reason, detail in _legend(side, rows)) or "- all are.",
        "### When a number agrees",
        "\n".join(_tolerances(side.source)),
        "### Notes on the printed numbers",
        "\n".join(f"- [{number}] {note.text}" for number, note in enumerate(side.notes, start=1)),
    ]
    return "\n\n".join(lines) + "\n"


def _verdict(side: Side, rows: Sequence[Comparison]) -> str:
    """Return the outcome in a sentence: how many numbers agree, and what to run for a comparison."""
    counts = Counter(row.verdict for row in rows)
    unjudged = counts["not comparable"] + counts["not measured"]
    facts = side.source.facts
    advice = f": run dataset {facts['dataset']} with protocol {facts['protocol']}" if unjudged else ""
    return f"{counts['agrees']} agree, {counts['differs']} differ, {unjudged} cannot be judged{advice}."


def _folded(table: Table) -> str:
    """Return a table as Markdown; one without any measured number is folded."""
    text = to_markdown(table).rstrip()
    if "Measured" not in table.headers:
        return text
    place = table.headers.index("Measured")
    if any(row[place].number is not None or row[place].word not in ("", NOT_RUN) for row in table.values):
        return text
    return f"<details><summary>{escape_markdown(table.title)}: nothing measured</summary>\n\n{text}\n\n</details>"


def _legend(side: Side, rows: Sequence[Comparison]) -> list[tuple[str, str]]:
    """Return (reason, details) pairs, reasons in the order they appear, each detail once."""
    found: dict[tuple[str, str], None] = {}
    for row in rows:
        if row.verdict == "not comparable":
            found |= dict.fromkeys(side.obstacles(row.row.method, row.row.metric, int(row.row.forget_class)).items())
    order = list(dict.fromkeys(reason for reason, _ in found))
    return sorted(found, key=lambda pair: (order.index(pair[0]), pair[1]))


def _tolerances(source: Source) -> list[str]:
    lines = []
    for facts in source.facts["metrics"].values():
        if tolerance := facts.get("tolerance"):
            what = f"within {tolerance['absolute']:g}; " if "absolute" in tolerance else ""
            lines.append(f"- {facts['title']}: {what}{tolerance['reason']}.")
        if "factor" in facts:
            lines.append(f"- {facts['title']}, as a ratio: within a factor of {facts['factor']}; "
                         f"{facts['factor_reason']}.")  # fmt: skip
    return lines


def _tidy(side: Side, rows: Sequence[Comparison]) -> str:
    """Return CSV, one line per method, class and metric; numbers in full, in the source's unit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["source", "dataset", "protocol", "method", "forget_class", "metric", "unit", "published", "measured",
         "seeds", "difference", "verdict", "reasons", "notes"]
    )  # fmt: skip
    for item in rows:
        row, seeds = item.row, item.measured.ok if item.measured.number is not None else 0
        writer.writerow(
            [side.source.name, side.cell.dataset, side.cell.protocol, row.method, row.forget_class, row.metric,
             row.unit, row.text, item.measured.number, seeds, item.difference.number, item.verdict,
             "; ".join(item.reasons), " ".join(map(str, item.notes))]
        )  # fmt: skip
    return text.getvalue()


def _terminal(side: Side) -> str:
    """Return claims and overview as plain text of at most 80 columns."""
    rows = compare_rows(side)
    claims, overview = claims_table(side), overview_table(side, rows)
    texts = [
        tabulate(
            [[label, *cells] for label, cells in zip(table.rows, body, strict=True)],
            [table.corner.lower(), "published", "measured", last],
            tablefmt="plain",
            disable_numparse=True,
        )
        for table, last, body in (
            (claims, "verdict", [[row[1], row[3], row[5]] for row in claims.texts()]),
            (overview, "verdicts", [[row[1], row[2], "/".join(row[3:7])] for row in overview.texts()]),
        )
    ]
    what = f"{side.source.name} beside {side.board.title}, {side.cell.protocol}"
    verdict = textwrap.fill(_verdict(side, rows), 80)
    lines = "\n\n".join([what, verdict, *texts, f"verdicts: {'/'.join(VERDICTS)} of classes"]).splitlines()
    return "\n".join(line.rstrip() for line in lines)
