"""The READMEs: their examples, and their generated parts, which `python -m tests.readme` writes anew."""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from tests import ROOT
from unlearnbench.errors import plural
from unlearnbench.plugins.cards import cards
from unlearnbench.plugins.registry import Registry
from unlearnbench.report.data.board import boards
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.table import Table
from unlearnbench.report.write.markdown import to_markdown
from unlearnbench.run.stale import stale_ids
from unlearnbench.store.records import ResultStore

GENERATED = re.compile(r"<!-- ((?:table|cards):\w+) -->\n(.*?)<!-- end -->", re.DOTALL)

# Columns of the top README's table of attacks: the whole one is in reports/.
ATTACKS = ("Before Forgotten", "After Embedding search", "After Relearn 1 image")


@cache
def pages():
    """Return {name: text} of CONTRIBUTING.md and of every README, that of a folder before those below it."""
    listed = ["git", "ls-files", "CONTRIBUTING.md", "*README.md"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names}


def block(marker):
    """Return the code below a marker of any page, such as `example:method`."""
    found = (re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", text, re.DOTALL) for text in pages().values())
    return next(match[1] for match in found if match)


def excerpt(table: Table, caption: str, columns: Iterable[str] = ()) -> str:
    """Return a table as unpadded Markdown: means without intervals, under another caption, of all or some columns."""
    headers = [header.partition(" (")[0].rstrip(" ↑↓") for header in table.flat_headers()]
    places = [headers.index(column) for column in columns or headers]
    groups, titles, formats = ([part[k] for k in places] for part in (table.groups, table.headers, table.formats))
    values = [[row[k] for k in places] for row in table.values]
    short = replace(table, groups=groups, headers=titles, formats=formats, values=values, narrow=True, caption=caption)
    text = to_markdown(short).partition("\n\n")[2]  # without its title
    return re.sub(r" {2,}", " ", re.sub(r"-{3,}", "---", text))


@cache
def digits():
    """Return the board of the README's run, and its tables by name."""
    records = ResultStore(ROOT / "results").read().records
    board = boards(records, stale_ids(records, Registry().source_hashes()))["digits"]
    return board, {table.name: table for table in all_tables(board)}


@cache
def generated():
    """Return {marker: text} of what stands between `<!-- MARKER -->` and `<!-- end -->`."""
    registry, (board, tables) = Registry(), digits()
    summary = f"Means over the forget classes of {board.title}; {board.device_name}."
    classes = ", ".join(target.label for target in board.attacked.targets)
    attacks = f"Means over forget classes {classes}; {plural(len(board.attacked.seeds), 'seed')}."
    listed = {kind: cards(registry, kind).partition("\n")[2] for kind in ("method", "metric")}  # without the title
    return {
        "table:summary": excerpt(tables["summary-compact"], summary),
        "table:attacks": excerpt(tables["robustness"], attacks, ATTACKS),
        "table:robustness": excerpt(tables["robustness"], attacks),
        **{f"cards:{kind}s": page.replace("\n## ", "\n### ") for kind, page in listed.items()},
    }


def rendered(text):
    """Return a page with the generated parts as they would be now."""
    return GENERATED.sub(lambda match: f"<!-- {match[1]} -->\n\n{generated()[match[1]].strip()}\n\n<!-- end -->", text)


if __name__ == "__main__":
    for name, text in pages().items():
        (ROOT / name).write_text(rendered(text), encoding="utf-8")
