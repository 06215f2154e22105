"""LaTeX: every table and the example paper compile, whatever stands in the records, and nothing sticks out."""

import functools
import re
import shutil
import subprocess
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest

from tests.conftest import draw_all, fake_record
from tests.report.test_report import HOSTILE, board, images
from tests.report.test_robustness import attacked
from tests.report.test_sweeps import everything
from unlearnbench.report.data.values import Value
from unlearnbench.report.figures.drawing import FIGURE_WORDS
from unlearnbench.report.pasted import latex_grids
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.table import Table
from unlearnbench.report.write.latex import escape_latex, size_of, to_latex
from unlearnbench.report.write.paper import HEAD, paper

TEX = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex: .ci/install-debian installs it")
POPPLER = pytest.mark.skipif(shutil.which("pdffonts") is None, reason="no pdffonts: .ci/install-debian installs it")
BAD = re.compile(
    r"^!.*|Overfull.*|Missing character.*|LaTeX Warning: (?!Label|There were|Reference|Text page).*", re.MULTILINE
)
NAMES = (
    HOSTILE, r"\input{/etc/passwd} $x^^5c_%", "x" * 500, "%" * 60, "שלום é 中文 ↓±†", "^^5cinput secret", "a\n\nb",
    "\\" * 30,
)  # fmt: skip


def table(values, *, rows=None, groups=None, headers=None, form=".1f", **fields):
    rows, width = rows or [f"Row {k}" for k in range(len(values))], len(values[0])
    headers, formats = headers or [f"H{k}" for k in range(width)], [form] * width
    return Table("t", "T", "Words.", "Corner", rows, groups or [""] * width, headers, formats, values, **fields)


def hostile():
    """Return records whose every word is out to break a table."""
    records = [replace(attacked(f"m{k}", title=n), images=images(0)) for k, n in enumerate(NAMES)]
    for record in records:
        record.metrics["fake_fid"]["title"] = NAMES[1] + NAMES[2]
        record.method["changed"] = {"steps": [1000, NAMES[2]], NAMES[1]: [NAMES[2], NAMES[0]]}
    failed = fake_record("gone", 0, status="failed", title=NAMES[1])
    return [replace(r, dataset={**r.dataset, "title": HOSTILE + NAMES[2]}, reason=HOSTILE) for r in [*records, failed]]


def wide():
    """Return records of more methods, classes and metrics than a page is wide and high."""
    records = [fake_record(f"m{k:02}", c, title=f"Method {k}") for k in range(9) for c in range(60)]
    for record in records:
        for k in range(3):
            entry = {**record.metrics["fake_fid"], "title": f"Further metric {k}", "value": 10.0**k * (k - 2.5)}
            record.metrics[f"further{k}"] = entry
    return records


BOARDS = {
    "one cell": lambda: [fake_record()],
    "only failures": lambda: [fake_record(forget_class=c, status="oom") for c in range(3)],
    "pictures": lambda: [replace(fake_record(m, c), images=images(c)) for m in ("one", "two") for c in range(3)],
    "many rows": everything,
    "hostile": hostile,
    "wide": wide,
}


UNDRAWN = ("many rows", "wide")  # their figures take seconds, and other tests look at them


@pytest.fixture(scope="module", params=BOARDS)
def written(request, tmp_path_factory):
    """Return a board's folder with tables, figures and a paper, and what pdflatex said of it."""
    folder, shown = tmp_path_factory.mktemp("board"), board(BOARDS[request.param]())
    for name in ("tables", "figures"):
        (folder / name).mkdir()
    tables = all_tables(shown)
    for one in tables:
        (folder / "tables" / f"{one.name}.tex").write_text(to_latex(one))
    drawn = {} if request.param in UNDRAWN else draw_all(shown)
    for name, figure in drawn.items():
        figure.savefig(folder / "figures" / f"{name}.pdf")
        plt.close(figure)
    sizes = {name: size_of((folder / "figures" / f"{name}.pdf").read_bytes()) for name in drawn}
    words = {name: FIGURE_WORDS.get(name, name) for name in drawn}
    (folder / "paper").mkdir()
    (folder / "paper" / "main.tex").write_text(paper(shown, tables, sizes, words))
    every = "\n".join(rf"\input{{../tables/{one.name}}}\clearpage" for one in tables)
    (folder / "paper" / "all.tex").write_text(f"{HEAD}\n{every}\n\\end{{document}}\n")
    return folder


@functools.cache
def compiled(folder, name):
    """Run pdflatex on a file of the folder `paper`, once for all tests; return its log."""
    command = ["pdflatex", "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", f"{name}.tex"]
    done = subprocess.run(command, cwd=folder / "paper", capture_output=True, check=False)
    log = (folder / "paper" / f"{name}.log").read_text(errors="replace")
    assert done.returncode == 0, log[-2000:]
    return log


@TEX
def test_the_document_of_all_tables_and_figures_compiles(written):
    log = compiled(written, "main")
    for name in ("tables", "figures"):
        assert all(path.stem in log for path in (written / name).iterdir())
    assert BAD.findall(log) == []
    assert "passwd" not in re.sub(r"^.*textbackslash.*$", "", log, flags=re.MULTILINE)


@TEX
def test_every_table_compiles_and_fits_its_page(written):
    assert BAD.findall(compiled(written, "all")) == []


@TEX
@POPPLER
def test_fonts_are_embedded_and_figures_are_of_a_papers_size(written):
    for path in [*(written / "figures").glob("*.pdf")]:
        fonts = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True).stdout.splitlines()[2:]
        assert all("TrueType" in font and re.search(r"yes\s+(yes|no)\s+(yes|no)", font) for font in fonts), path
        text = subprocess.run(["pdfinfo", path], capture_output=True, text=True, check=True).stdout
        width, height = (float(n) / 72 for n in re.search(r"Page size:\s+([\d.]+) x ([\d.]+)", text).groups())
        assert width <= 7.01
        assert height <= 9.01
    compiled(written, "main")
    pdf = written / "paper" / "main.pdf"
    fonts = subprocess.run(["pdffonts", pdf], capture_output=True, text=True, check=True).stdout.splitlines()[2:]
    assert fonts
    assert not [font for font in fonts if "Type 3" in font or not re.search(r"yes\s+(yes|no)\s+(yes|no)", font)]


class TestColumns:
    def test_numbers_are_aligned_with_what_follows_them(self):
        values = [
            [Value(9.5, interval=(1.0, 10.0), best=True)],
            [Value(-10.25, ok=1, expected=2)],
            [Value(None, "oom")],
        ]
        text = to_latex(table(values, form=".2f"))
        assert (
            "S[table-format=-2.2,table-space-text-post={\\mdseries{} [1.00, 10.00]},table-number-alignment=left]"
            in text
        )
        assert "\nRow 0 & \\bfseries 9.50{\\mdseries{} [1.00, 10.00]} \\\\" in text
        assert "\nRow 1 & -10.25{ (1/2)} \\\\" in text
        assert "\nRow 2 & {oom} \\\\" in text

    def test_a_plus_stays(self):
        text = to_latex(table([[Value(0.5)], [Value(-0.5)]], form="+.1f"))
        assert "S[table-format=+1.1,retain-explicit-plus]" in text
        assert "+0.5 \\\\" in text

    @pytest.mark.parametrize("form", [".2e", ",.2f", ".1%", ".40f"])
    def test_what_siunitx_cannot_read_is_a_word(self, form):
        text = to_latex(table([[Value(1234567.0)]], form=form))
        assert "S[" not in text
        assert escape_latex(f"{1234567.0:{form}}")[:8] in text.replace(r"\-", "")


class TestLayout:
    def test_groups_stay_together_in_tabulars_of_the_texts_width(self):
        groups = [f"Method {k // 4}" for k in range(56)]
        text = to_latex(table([[Value(50.0)] * 56] * 3, groups=groups))
        tabulars = re.findall(r"\\begin\{tabular\*\}\{\\linewidth\}.*?\\end\{tabular\*\}", text, re.DOTALL)
        assert len(tabulars) > 1
        found = [name for one in tabulars for name in re.findall(r"multicolumn\{4\}\{c\}\{(.*?)\}", one)]
        assert found == [f"Method {k}" for k in range(14)]
        assert all("\nCorner & {H" in one for one in tabulars)
        (grid,) = latex_grids(text)
        assert len(grid.header) == 57
        assert grid.header[:2] == ("Corner", "Method 0 H0")

    def test_rows_beyond_a_page_stand_in_another_float(self):
        text = to_latex(table([[Value(float(k))] for k in range(150)]))
        grids = latex_grids(text)
        assert len(grids) == 3
        assert [row[1] for grid in grids for row in grid.rows] == [f"{k}.0" for k in range(150)]
        assert [grid.caption for grid in grids] == ["Words.", "Continued. Words.", "Continued. Words."]
        assert text.count(r"\label{tab:t}") == 1

    def test_the_parts_of_a_table_are_about_equally_large(self):
        heights = [len(grid.rows) for grid in latex_grids(to_latex(table([[Value(1.0)]] * 70)))]
        assert heights == [35, 35]

    def test_long_texts_fold_between_words(self):
        text = to_latex(table([[Value(None, "word " * 20)], [Value(1.0)]], headers=["[A long header of] a *number"]))
        assert r"\makecell[tl]{word word" in text
        (grid,) = latex_grids(text)
        assert grid.header == ("Corner", "[A long header of] a *number")
        assert grid.rows[0][1] == ("word " * 20).strip()

    def test_rows_of_one_name_share_it(self):
        text = to_latex(table([[Value(1.0)]] * 3, rows=["A", "A", "B"]))
        assert "\nA & 1.0 \\\\\n & 1.0 \\\\\nB & 1.0 \\\\" in text

    def test_a_narrow_table_takes_one_column(self):
        assert r"\begin{table}[t]" in to_latex(table([[Value(1.0)]]))
        assert r"\begin{table*}[t]" in to_latex(table([[Value(1.0)] * 20]))


def test_a_caption_names_dataset_protocol_and_records_and_leaves_the_rest_to_the_setup():
    found = board([fake_record(forget_class=c) for c in range(2)])
    for one in all_tables(found):
        caption = one.full_caption()
        assert re.search(r"Digits, protocol protocol-1; records [0-9a-f]{12}\.", caption)
        assert "DDIM" not in caption and "A CPU" not in caption
    setup = dict(found.setup)
    assert setup["Protocol"].startswith("protocol-1: DDIM, 25 steps")
    assert "A CPU" in setup["Device"] and "rss_peak" in setup["Costs"]
