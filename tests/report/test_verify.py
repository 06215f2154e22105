import json
import os
import re
import shutil
from dataclasses import replace

import pytest

from tests.conftest import fake_record, reading, signed
from unlearnbench.errors import UsageError
from unlearnbench.report.compare import compare
from unlearnbench.report.data.board import boards
from unlearnbench.report.render import render
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.summary import summary_table
from unlearnbench.report.verify import verify
from unlearnbench.report.write.latex import to_latex
from unlearnbench.report.write.markdown import to_markdown
from unlearnbench.run.stale import stale_ids
from unlearnbench.store.records import ResultStore


def full():
    """Records with every kind of cell: spreads, gaps, changed settings, disturbed cells, signs that need escapes."""
    records = [
        fake_record(m, c, fid=5.0 + c + 10 * k, ua=90.0 + c, title=f"{m.title()} 50%_|x")
        for c in range(3)
        for k, m in enumerate(("alpha", "beta"))
    ]
    records = [replace(r, method={**r.method, "changed": {"steps": [1000, 10], "lr": [1e-4, 3e-4]}}) for r in records]
    records[0] = replace(records[0], disturbances=[{"phase": "forget", "what": "another process"}])
    records.append(fake_record("gamma", 0, status="oom"))
    return records


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    for record in full():
        ResultStore(folder).append(record)
    return folder


@pytest.fixture
def results(tmp_path, written):
    return shutil.copytree(written, tmp_path / "results")


def tables(form):
    """Return {name: text} of every table in a form."""
    write = {"md": to_markdown, "tex": to_latex}[form]
    return {table.name: write(table) for table in all_tables(boards(full())["digits"])}


@pytest.fixture
def check(tmp_path, results):
    """Return a function that verifies a text."""

    def run(text, form, sources=None):
        path = tmp_path / f"paper.{form}"
        path.write_text(text, encoding="utf-8")
        found = reading(results)
        return verify(path, found, stale_ids(found.records, sources) if sources else frozenset())

    return run


def edit(text, *changes):
    """Return text with each (old, new) changed once."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


BOARD = boards(full())["digits"]
DIGEST, CELLS = BOARD.digest, sum(map(len, all_tables(BOARD)[0].values))
NAMED = ("summary", "cost", "efficiency", "uncertainty")
FORMS = pytest.mark.parametrize("form", ["md", "tex"])


@FORMS
@pytest.mark.parametrize("name", NAMED)
def test_an_untouched_table_holds(check, form, name):
    verdict = check(tables(form)[name], form)
    assert verdict.holds, verdict.lines
    assert len(verdict.lines) == 1
    assert f"holds (records {DIGEST}, " in verdict.lines[0]


@FORMS
def test_all_tables_in_one_text_hold(check, form):
    verdict = check("\n\nWords between.\n\n".join(tables(form).values()), form)
    assert verdict.holds, verdict.lines
    assert len(verdict.lines) == len(tables(form)) == 11
    assert verdict.lines[0] == f"Summary: holds (records {DIGEST}, {CELLS} cells)"
    assert verdict.lines[-1].startswith("Settings that are not the methods' defaults: holds")


def test_a_report_holds(tmp_path, results, monkeypatch):
    monkeypatch.setattr("unlearnbench.report.figures.drawing.FIGURES", {})  # they take seconds
    page = render(reading(results), tmp_path / "out").pages[0]
    verdict = verify(page, reading(results))
    assert verdict.holds, verdict.lines
    assert sum(": holds (" in line for line in verdict.lines) == 10


@FORMS
def test_a_comparison_holds(tmp_path, form):
    folder = tmp_path / "results"
    for c in range(2):
        for method in ("sa", "salun", "safemax"):
            ResultStore(folder).append(fake_record(method, c))
    page = compare("spartalis2025", reading(folder), tmp_path / "out").pages[0].with_suffix(f".{form}")
    verdict = verify(page, reading(folder))
    assert verdict.holds, verdict.lines
    assert any(line.startswith("Overview: holds") for line in verdict.lines)
    page.write_text(page.read_text().replace("not comparable", "agrees", 1))
    assert not verify(page, reading(folder)).holds


def swap(text, first, second):
    lines = text.split("\n")
    a, b = (next(k for k, line in enumerate(lines) if re.match(rf"\W*{name}", line)) for name in (first, second))
    lines[a], lines[b] = lines[b], lines[a]
    return "\n".join(lines)


def drop(text, name):
    return "\n".join(line for line in text.split("\n") if not re.match(rf"\W*{name}", line))


@FORMS
class TestTampering:
    """What a changed table says of itself."""

    def test_a_digit(self, check, form):
        interval = summary_table(BOARD).texts()[1][2]
        number = {"md": "16.00\u00a0[", "tex": "16.00{ ["}[form]
        verdict = check(edit(tables(form)["summary"], (number, number.replace("16.00", "16.10"))), form)
        assert not verdict.holds
        assert verdict.lines == [
            "Summary: does not hold: row Beta 50%_|x, column FID ↓: the table says "
            f"{interval.replace('16.00', '16.10')}, the records say {interval}"
        ]

    def test_a_number_made_bold(self, check, form):
        bold = {"md": "**16.00**\u00a0[", "tex": r"\bfseries 16.00{ ["}[form]
        plain = {"md": "16.00\u00a0[", "tex": "16.00{ ["}[form]
        verdict = check(edit(tables(form)["summary"], (plain, bold)), form)
        assert "the table says bold 16.00 [" in verdict.lines[0]

    @pytest.mark.parametrize("name", ["summary", "efficiency"])
    def test_any_digit_of_any_cell(self, check, form, name):
        text = tables(form)[name]
        body = text.index(r"\midrule") if form == "tex" else text.index("|:")
        lines, caught = text[body:].split("\n")[1:], 0
        for line in lines:
            if (form == "tex" and line.rstrip().endswith(r"\\") and "multicolumn" not in line) or line.startswith("|"):
                hidden = re.sub(r"50%|multirow\[t\]\{2\}|parbox.*?pt\}", lambda found: "x" * len(found[0]), line)
                for digit in re.finditer(r"\d(?!%)", hidden):
                    k = digit.start()
                    changed = line[:k] + str((int(line[k]) + 1) % 10) + line[k + 1 :]
                    if caught % 11 == 0:  # every eleventh, for speed
                        assert not check(text.replace(line, changed, 1), form).holds, changed
                    caught += 1
        assert caught > 20

    def test_the_first_differences_are_spelled_out_and_the_others_counted(self, check, form):
        words = check(re.sub(r"\b16\.00|\b15\.00|\b17\.00", "9.99", tables(form)["efficiency"]), form).lines[0]
        assert words.count("the table says 9.99, the records say 1") == 3
        assert words.endswith("; and 1 more")

    def test_swapped_rows(self, check, form):
        words = check(swap(tables(form)["summary"], "Alpha", "Beta"), form).lines[0]
        assert "its rows are in a different order: by the records Alpha 50%_|x, Beta 50%_|x" in words

    def test_rows_that_swap_their_numbers(self, check, form):
        text = swap(tables(form)["uncertainty"], "0", "1")
        zero, one = ({"md": ("| 0", "| 1"), "tex": ("\n0 &", "\n1 &")})[form]
        assert "row 0, column" in check(edit(text, (one, "@"), (zero, one), ("@", zero)), form).lines[0]

    def test_a_dropped_row(self, check, form):
        assert "row Beta 50%_|x is missing" in check(drop(tables(form)["summary"], "Beta"), form).lines[0]

    def test_a_setting(self, check, form):
        assert not check(edit(tables(form)["settings"], ("0.0003", "0.0002")), form).holds

    def test_a_header(self, check, form):
        words = check(edit(tables(form)["summary"], ("UA (", "US (")), form).lines[0]
        assert "column UA (%) ↑ is missing; column US (%) ↑ is not in the records" in words

    @pytest.mark.parametrize(
        ("old", "new"), [("n=100", "n=1000"), ("seed 0;", "seeds 0-2;"), ("protocol-1", "protocol-2")]
    )
    def test_a_claim_of_the_caption(self, check, form, old, new):
        verdict = check(edit(tables(form)["summary"], (old, new)), form)
        assert not verdict.holds
        assert "its caption: the table says " in verdict.lines[0]
        assert new.split()[-1].strip(",") in verdict.lines[0]

    def test_another_digest(self, check, form):
        verdict = check(tables(form)["summary"].replace(DIGEST, "0123456789ab"), form)
        assert not verdict.holds
        assert "has no board with records 0123456789ab" in verdict.lines[0]
        assert verdict.lines[0].startswith("Summary: does not hold: ")
        assert verdict.lines[0].endswith(f"; digits has records {DIGEST} now with the same cells")

    def test_only_one_of_many(self, check, form):
        both = tables(form)
        verdict = check(both["cost"] + "\n\n" + edit(both["summary"], ("3/3", "2/3")), form)
        assert [line.split(" (")[0].split(": row")[0] for line in verdict.lines] == [
            "Cost: holds", "Summary: does not hold",
        ]  # fmt: skip


@FORMS
class TestRecordsThatChanged:
    """Of an untouched table."""

    def test_a_value(self, check, results, form):
        path = results / "digits" / "beta.jsonl"
        lines = path.read_text().split("\n")
        record = json.loads(lines[0])
        record["metrics"]["fake_fid"]["value"] += 3
        path.write_text("\n".join([signed(record), *lines[1:]]))  # as if measured anew
        verdict = check(tables(form)["summary"], form)
        assert not verdict.holds
        assert f"has no board with records {DIGEST}: a record was changed, added or removed since" in verdict.lines[0]
        assert re.search(r"; digits has records [0-9a-f]{12} now, where row Beta .*, column FID ↓", verdict.lines[0])

    def test_an_edited_value_is_named_as_such(self, check, results, form):
        path = results / "digits" / "beta.jsonl"
        path.write_text(re.sub(r'("fake_fid":.*?"value":)[0-9.]+', r"\g<1>9.5", path.read_text(), count=1))
        verdict = check(tables(form)["summary"], form)
        assert not verdict.holds
        assert "note: " in verdict.lines[1] and "line 1 is skipped: it was altered after" in verdict.lines[-1]

    def test_an_edited_value_elsewhere_is_named_too(self, check, results, form):
        ResultStore(results).append(fake_record("gamma", dataset="pictures"))
        path = results / "pictures" / "gamma.jsonl"
        path.write_text(path.read_text().replace('"value":5.0', '"value":4.0'))
        verdict = check(tables(form)["summary"], form)
        assert verdict.holds
        assert "line 1 is skipped: it was altered after it was written" in verdict.lines[1]

    def test_a_record_less(self, check, results, form):
        path = results / "digits" / "beta.jsonl"
        path.write_text("\n".join(path.read_text().split("\n")[1:]))
        assert not check(tables(form)["summary"], form).holds

    def test_a_record_more(self, check, results, form):
        ResultStore(results).append(fake_record("beta", 3, title="Beta 50%_|x"))
        assert not check(tables(form)["summary"], form).holds

    def test_a_torn_record_is_noted(self, check, results, form):
        path = results / "digits" / "beta.jsonl"
        path.write_text(path.read_text()[:-30])
        verdict = check(tables(form)["summary"], form)
        assert not verdict.holds
        assert verdict.lines[-1].startswith("note: ")

    def test_another_dataset_changes_nothing(self, check, results, form):
        ResultStore(results).append(fake_record("beta", dataset="pictures"))
        assert check(tables(form)["summary"], form).holds

    def test_stale_ones(self, check, form):
        verdict = check(tables(form)["summary"], form, {"method:beta": "changed"})
        assert not verdict.holds
        assert "3 of them are stale" in verdict.lines[0]

    def test_stale_ones_and_a_changed_digit(self, check, form):
        verdict = check(edit(tables(form)["summary"], ("16.00", "16.10")), form, {"method:beta": "changed"})
        assert "the table says 16.10" in verdict.lines[0]

    def test_a_table_that_shows_stale_ones_as_such_holds(self, check, form):
        sources = {"method:beta": "changed"}
        write = {"md": to_markdown, "tex": to_latex}[form]
        for table in all_tables(boards(full(), stale_ids(full(), sources))["digits"]):
            if table.name == "summary":
                assert "stale" in write(table)
                assert check(write(table), form, sources).holds


def wrapped(text):
    return "\n".join(re.sub(r"(.{60,90}?) ", r"\1\n", line) if DIGEST in line else line for line in text.split("\n"))


class TestDress:
    """What a user may do to a table."""

    @pytest.mark.parametrize(
        "change",
        [
            wrapped,
            lambda text: text.replace("\n", "\r\n"),
            lambda text: re.sub(r" {2,}", " ", text),
            lambda text: text.replace("### Summary", "#### Summary ####"),
            lambda text: text.replace("### Summary", ""),
            lambda text: text.replace("### Summary", "## The table you get\n\n<!-- table:summary -->"),
            lambda text: text.replace("16.00\u00a0[", "*16.00* ["),
            lambda text: "\ufeff" + text,
            lambda text: "| a | b |\n| - | - |\n| 1 | 2 |\n\n" + text,
        ],
    )
    def test_of_markdown(self, check, change):
        text = tables("md")["summary"]
        assert change(text) != text
        verdict = check(change(text), "md")
        assert verdict.holds, verdict.lines
        assert f"Summary: holds (records {DIGEST}, {CELLS} cells)" in verdict.lines

    @pytest.mark.parametrize(
        "change",
        [
            wrapped,
            lambda text: text.replace("tab:summary", "tab:cost"),
            lambda text: text.replace(r"\label{tab:summary}", ""),
            lambda text: text.replace(r"\caption{", r"\caption[Short]{\label{tab:mine}"),
            lambda text: text.replace("[t]", "[!htbp]"),
            lambda text: re.sub(r"\{table\*?\}", "{wraptable}", text),
            lambda text: re.sub(r"\\resizebox.*%\n", "", text).replace(r"\end{tabular}}", r"\end{tabular}"),
            lambda text: re.sub(r"\\resizebox.*%", r"\\resizebox{\\textwidth}{!}{%", text),
            lambda text: re.sub(r"\\(top|mid|bottom)rule", r"\\hline", text),
            lambda text: text.replace(r"\begin{tabular*}{\linewidth}", r"\begin{tabular}").replace(
                r"\end{tabular*}", r"\end{tabular}"
            ),
            lambda text: text.replace(r" \\", "\n  \\\\[2pt]  % a row").replace("&", "\n  &"),
            lambda text: text.replace("16.00{ [", r"\emph{16.00} { ["),
            lambda text: text.replace(r"$^{\dagger}$", r"$^\dagger$"),
            lambda text: (
                r"\documentclass{article}\begin{document} 50\% %\begin{table}" + f"\n{text}\n\\end{{document}}"
            ),
        ],
    )
    def test_of_latex(self, check, change):
        text = tables("tex")["summary"]
        assert change(text) != text
        verdict = check(change(text), "tex")
        assert verdict.lines == [f"Summary: holds (records {DIGEST}, {CELLS} cells)"]

    @FORMS
    def test_words_added_to_a_caption_are_said_to_be_unchecked(self, check, form):
        verdict = check(edit(tables(form)["summary"], ("Mean ", "Our result. Mean ")), form)
        assert verdict.holds
        assert "the words added to its caption are not checked" in verdict.lines[0]

    def test_a_table_of_two_levels_with_other_rules(self, check):
        text = re.sub(r"(?<=multicolumn\{3\})\{c\}", "{c|}", tables("tex")["efficiency"])
        lines = text.split("\n")
        place = next(k for k, line in enumerate(lines) if "multicolumn" in line)
        lines.insert(place + 1, r"\cmidrule(lr){2-4}\cmidrule(lr){5-7}")
        assert check("\n".join(lines), "tex").holds


class TestTablesOfOthers:
    """Beside a table of records."""

    def test_are_not_verifiable(self, check):
        verdict = check(tables("md")["summary"] + "\n## Options\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", "md")
        assert verdict.holds
        assert verdict.lines[1] == "Options: not verifiable: it names no records"

    @FORMS
    def test_that_name_the_records_do_not_hold(self, check, form):
        body = {
            "md": "| a | b |\n|---|---|\n| 1 | 2 |\n\nOurs; {}.\n",
            "tex": "\\begin{{table}}\\caption{{Ours; {}.}}\\begin{{tabular}}{{lr}}a & b \\\\ 1 & 2\\end{{tabular}}"
            "\\end{{table}}",
        }
        verdict = check(body[form].format(f"records {DIGEST}"), form)
        assert verdict.lines == [f"table at line 1: does not hold: no table of records {DIGEST} has columns like these"]

    def test_a_row_without_cells_is_a_difference(self, check):
        text = tables("md")["summary"]
        verdict = check(edit(text, ("|\n\n", "|\n|\n\n")), "md")
        assert "row without a name is not in the records" in verdict.lines[0]

    def test_an_environment_with_two_tabulars_cannot_be_read(self, check):
        text = tables("tex")["summary"]
        part = r"\begin{tabular}{l}x\end{tabular}"
        verdict = check(re.sub(r"\\end\{table\*?\}", lambda end: part + end[0], text), "tex")
        assert not verdict.holds
        assert "tabulars of different rows" in verdict.lines[0]

    @FORMS
    def test_digests_outside_tables_are_pointed_at(self, check, form):
        verdict = check(f"Of records\n0123456789ab.\n\n{tables(form)['summary']}", form)
        assert verdict.holds
        assert verdict.lines[1] == "records 0123456789ab are named outside a table too: not checked"


class TestErrors:
    """Each is one sentence."""

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("none.md", None, "there is no file"),
            ("table.csv", b"a,b", "neither .md nor .tex"),
            ("table.md", b"\xff\xfe", "not UTF-8"),
            ("nothing.tex", None, "there is no file"),
            ("table.pdf", b"%PDF", "neither .md nor .tex"),
            ("table.tex", bytes(range(256)), "not UTF-8"),
            ("table.tex", bytes(20), "there is no table in"),
            ("table.md", b"", "there is no table in"),
            ("table.md", b"| a |\n|---|\n| 1 |\n", "no table in .* has a caption that names its records"),
            ("table.md", b"Prose names records 0123456789ab.\n", "there is no table in"),
            ("table.tex", rb"\input{tables/summary}", r"there is no table in .* \(\\input is not followed\)"),
            ("table.tex", rb"\begin{table}\begin{tabular}{l}a\end{tabular}\end{table}", "no table in .* has a caption"),
        ],
    )
    def test_of_the_file(self, tmp_path, results, name, content, message):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=message):
            verify(tmp_path / name, reading(results))
        with pytest.raises(UsageError, match=message):  # which comes first
            verify(tmp_path / name, reading(tmp_path / "no results"))

    def test_a_pipe_is_not_waited_for(self, tmp_path, results):
        os.mkfifo(tmp_path / "table.md")
        with pytest.raises(UsageError, match="is a pipe or device"):
            verify(tmp_path / "table.md", reading(results))

    def test_a_folder(self, tmp_path, results):
        with pytest.raises(UsageError, match="is a folder"):
            verify(tmp_path, reading(results))

    @pytest.mark.parametrize(("make", "message"), [(False, "no results folder"), (True, "there is no record in")])
    def test_no_records(self, tmp_path, make, message):
        (tmp_path / "table.md").write_text(tables("md")["summary"])
        if make:
            (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match=message):
            verify(tmp_path / "table.md", reading(tmp_path / "empty"))

    @pytest.mark.parametrize("form", ["md", "tex"])
    def test_a_torn_table_never_holds(self, check, form):
        text = tables(form)["summary"]
        for cut in range(0, len(text.rstrip()) - 1, 83):
            try:
                verdict = check(text[:cut], form)
            except UsageError:
                continue
            assert not verdict.holds or cut > text.rindex(DIGEST)
