"""Published numbers beside measured ones: the pages, tables and lines of `unlearnbench compare`."""

import textwrap
from collections.abc import Sequence, Set
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from unlearnbench.errors import UsageError
from unlearnbench.report.data.array import NOT_RUN
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.published import Source, load_source
from unlearnbench.report.data.rendering import Rendering
from unlearnbench.report.tables.published import VERDICTS, Side, compare_rows, comparison_tables, sides_of
from unlearnbench.report.tables.table import Table
from unlearnbench.report.write.csv import frame_to_csv
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
    sides = sides_of(published, boards(reading.records, stale))
    if not sides:
        why = f" ({'; '.join(rendering.notes[:3])})" if rendering.notes else ""
        raise UsageError(
            f"there is no record of {', '.join(published.methods)} in {reading.root} to compare with {source}{why}: "
            f"run 'unlearnbench run --methods {','.join(published.methods)}' first or name a folder with --results"
        )
    files: dict[str, str | bytes] = {}
    for name, (side, twin) in sides.items():
        rows = compare_rows(side)
        tables = comparison_tables(side, twin, rows)
        place = f"{name}/compare-{source}"
        files[f"{place}.md"] = _page(side, tables, rows)
        files[f"{place}.csv"] = _tidy(side, rows)
        files[f"{place}.tex"] = "\n".join(map(to_latex, tables))
        rendering.pages.append(out / f"{place}.md")
        rendering.terminal.append(_terminal(side, tables, rows))
        rendering.notes += side.board.notes
    publish(files, out)
    return rendering


def _page(side: Side, tables: Sequence[Table], rows: pd.DataFrame) -> str:
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
        "\n".join(f"- {reason}: {escape_markdown(detail)}." for reason, detail in _legend(rows)) or "- all are.",
        "### When a number agrees",
        "\n".join(_tolerances(side.source)),
        "### Notes on the printed numbers",
        "\n".join(f"- [{number}] {note.text}" for number, note in enumerate(side.notes, start=1)),
    ]
    return "\n\n".join(lines) + "\n"


def _verdict(side: Side, rows: pd.DataFrame) -> str:
    """Return the outcome in a sentence: how many numbers agree, and what to run for a comparison."""
    agree, differ, *others = (int((rows.verdict == verdict).sum()) for verdict in VERDICTS)
    facts = side.source.facts
    advice = f": run dataset {facts['dataset']} with protocol {facts['protocol']}" if sum(others) else ""
    return f"{agree} agree, {differ} differ, {sum(others)} cannot be judged{advice}."


def _folded(table: Table) -> str:
    """Return a table as Markdown; one without any measured number is folded."""
    text = to_markdown(table).rstrip()
    if "Measured" not in table.headers:
        return text
    place = table.headers.index("Measured")
    if any(row[place].number is not None or row[place].word not in ("", NOT_RUN) for row in table.values):
        return text
    return f"<details><summary>{escape_markdown(table.title)}: nothing measured</summary>\n\n{text}\n\n</details>"


def _legend(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (reason, details) pairs, reasons in the order they appear, each detail once."""
    found = dict.fromkeys(pair for reasons in rows.reasons for pair in reasons.items() if pair[1])
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


def _tidy(side: Side, rows: pd.DataFrame) -> str:
    """Return CSV, one line per method, class and metric; numbers in full, in the source's unit."""
    columns = {
        "source": side.source.name, "dataset": side.cell.dataset, "protocol": side.cell.protocol,
        "method": rows.method, "forget_class": rows.forget_class, "metric": rows.metric,
        "unit": [row.unit for row in rows.row], "published": [row.text for row in rows.row],
        "measured": [value.number for value in rows.measured],
        "seeds": [0 if value.number is None else value.ok for value in rows.measured],
        "difference": [value.number for value in rows.difference], "verdict": rows.verdict,
        "reasons": rows.reasons.map("; ".join), "notes": [" ".join(map(str, notes)) for notes in rows.notes],
    }  # fmt: skip
    return frame_to_csv(pd.DataFrame(columns, dtype=object))


def _terminal(side: Side, tables: Sequence[Table], rows: pd.DataFrame) -> str:
    """Return claims and overview as plain text of at most 80 columns."""
    claims, overview = tables[:2]
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
