"""The README's examples, and those of its tables that come from records: `python -m tests.readme` writes them anew."""

import re
from dataclasses import replace
from pathlib import Path

from unlearnbench.plugins.registry import Registry
from unlearnbench.report.data.board import boards
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.write.markdown import to_markdown
from unlearnbench.run.stale import stale_ids
from unlearnbench.store.records import ResultStore

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "README.md"
README = PATH.read_text(encoding="utf-8")


def block(marker):
    """Return the code below a marker, such as `example:method`."""
    return re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)[1]


def generated():
    """Return {marker: text} of the tables between `<!-- MARKER -->` and `<!-- end -->`."""
    records = ResultStore(ROOT / "results").read().records
    board = boards(records, stale_ids(records, Registry().source_hashes()))["digits"]
    tables = {table.name: table for table in all_tables(board)}
    caption = f"Means over the forget classes of {board.title}; {board.device_name}."
    short = to_markdown(replace(tables["summary"], narrow=True, caption=caption)).partition("\n\n")[2]
    return {"table:summary": short, "table:robustness": to_markdown(tables["robustness"])}


def rendered(text):
    """Return a README with the tables that the committed records give."""
    for marker, table in generated().items():
        begin, end = re.escape(f"<!-- {marker} -->"), re.escape("<!-- end -->")
        text, found = re.subn(
            rf"({begin}\n).*?({end})", lambda m, t=table: f"{m[1]}\n{t}\n{m[2]}", text, flags=re.DOTALL
        )
        assert found == 1, marker
    return text


if __name__ == "__main__":
    PATH.write_text(rendered(README), encoding="utf-8")
