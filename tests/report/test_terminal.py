import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.conftest import fake_record
from tests.terminals import environment, in_a_terminal, visible
from unlearnbench.cli.console import open_page, say_where, show
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.rendering import Rendering
from unlearnbench.report.write.terminal import styled, to_terminal
from unlearnbench.store.records import ResultStore

BUSY = {"phase": "forget", "what": "another process used 0.8 of 2 cores"}
HOSTILE = "<b>a|b</b> \\input{x} \x1b[31m\x07 50% $&_#^~ `c` *d* é → שלום \u202egnol\u2066 " + "中" * 300


def board(records):
    return boards(records)["digits"]


def many(methods=12, extra=("Judge entropy", "Retained acc.", "Worst class acc."), title="Method {} of a long name"):
    """Return records as a full run has them: by default 12 methods, 10 classes and 9 columns."""
    more = {f"extra{k}": {"title": name, "value": 100.0, "headline": True} for k, name in enumerate(extra)}
    return [
        fake_record(f"m{m}", c, title=title.format(m), fid=5.0 + m + c / 10, ua=90.0 + c % 3, more=more)
        for m in range(methods)
        for c in range(10)
    ]


def numbers(text):
    return sorted(re.findall(r"\d+\.\d+", text))


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120])
def test_the_table_fits_every_width_and_cuts_no_number(width):
    text = to_terminal(board(many()), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert numbers(text) == numbers(to_terminal(board(many()), 150))


def test_eighty_columns_hold_the_whole_table_in_one():
    lines = to_terminal(board(many()), 80).splitlines()
    assert sum(line.startswith("method") for line in lines) == 1
    assert max(cell_len(line) for line in lines) <= 80
    header = next(line for line in lines if line.startswith("method"))
    assert len(header.replace("% ↑", "%").replace("s ↓", "s").replace("GB ↓", "GB").split()) == 10


def test_names_fold_at_blanks_and_hyphens_and_long_words_anywhere():
    lines = to_terminal(board(many(1, title="Meta-Unlearning {} (target=trajectory_of_all)")), 20).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("Meta"))
    names = [line.removesuffix("10/10").strip() for line in lines[start : start + 5]]
    assert names == ["Meta-", "Unlearning 0", "(target=trajec", "tory_of_all)", ""]


def test_a_narrow_window_continues_the_table_below():
    text = to_terminal(board(many(2)), 40)
    tables = text.split("\n\n")
    assert len(tables) > 1
    assert all("method" in table and table.count("Method") == 2 for table in tables)


def test_a_wide_window_has_the_intervals():
    text = to_terminal(board(many()), 250)
    assert "[95 % interval]" in text
    assert re.search(r" 90.9 +\[\d+\.\d, \d+\.\d\]", text)
    assert "[9" not in to_terminal(board(many()), 80)
    assert "[" not in to_terminal(board([fake_record(forget_class=c) for c in (0, 1)]), 250)  # two tell too little


def test_digits_stand_below_digits():
    text = to_terminal(board(many(3)), 80)
    rows = [line for line in text.splitlines() if "10/10" in line]
    assert "5.45*" in rows[0] and "*" not in rows[1]
    assert len({line.index(".", line.index("10/10")) for line in rows}) == 1


def test_the_best_is_marked_and_the_mark_explained():
    text = to_terminal(board(many(2)), 80)
    assert "5.45*" in text
    assert "\n* the best mean, and those that follow it" in text
    assert "*" not in to_terminal(board([fake_record()]), 80)
    spans = [styled(text).plain[span.start : span.end] for span in styled(text).spans]
    assert spans == ["5.45*"]


def test_missing_cells_are_counted_once():
    records = [
        fake_record(forget_class=c, seed=s, status="oom" if (c, s) == (1, 1) else "ok") for c in (0, 1) for s in (0, 1)
    ]
    text = to_terminal(board(records), 80)
    row = next(line for line in text.splitlines() if line.startswith("Alpha"))
    assert row.split()[1:4] == ["3/4", "90.0", "5.00"]
    assert text.endswith("\n3/4: numbers over 3 of 4 cells")


def test_a_metric_of_fewer_cells_than_its_row_says_so():
    null = fake_record(forget_class=2)
    null.metrics["fake_fid"]["value"] = None
    text = to_terminal(board([fake_record(forget_class=c) for c in (0, 1)] + [null]), 80)
    assert "5.00 (2/3)" in next(line for line in text.splitlines() if line.startswith("Alpha"))


def test_words_stand_where_there_is_no_number():
    records = [fake_record("alpha"), *[fake_record(name, status=name) for name in ("failed", "oom", "interrupted")]]
    text = to_terminal(board(records), 80)
    for row, word in (("Failed", "failed"), ("Oom", "oom"), ("Interrupted", "stopped")):
        line = next(line for line in text.splitlines() if line.startswith(row))
        assert line.split()[1:] == ["0/1", *[word] * 5]


def test_disturbed_costs_carry_a_mark_that_is_explained():
    records = [fake_record(disturbances=[BUSY]), fake_record("beta")]
    text = to_terminal(board(records), 80)
    assert "2.00†" in next(line for line in text.splitlines() if line.startswith("Alpha"))
    assert "2.00†" not in next(line for line in text.splitlines() if line.startswith("Beta"))
    assert "\n† measured while something else used the machine" in text
    assert "†" not in to_terminal(board([fake_record(), fake_record("beta")]), 80)


@pytest.mark.parametrize("width", [20, 40, 80, 300])
def test_hostile_text_breaks_no_line(width):
    records = [fake_record(m, c, title=f"{m} {HOSTILE}") for m in "ab" for c in (0, 1)]
    for record in records:
        record.metrics["fake_ua"]["title"] = HOSTILE
        record.provenance["device"]["name"] = HOSTILE
        record.dataset["title"] = HOSTILE
    text = to_terminal(board(records), width)
    assert max(cell_len(line) for line in text.splitlines()) <= max(width, 24)
    assert all(letter.isprintable() for letter in text.replace("\n", ""))
    assert text.count("90.0") == 2
    assert len(text.splitlines()) < 300


def test_markup_in_a_title_is_text():
    record = fake_record()
    record.metrics["fake_ua"]["title"] = "[red]x[/nope] [b]"
    assert "[red]x[/nope]" in to_terminal(board([record]), 80)


def test_the_width_is_the_windows(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert to_terminal(board(many())) == to_terminal(board(many()), 40)


def printed(rendering, **settings):
    console = Console(highlight=False, **settings)
    with console.capture() as capture:
        show(rendering, console)
        say_where(rendering, "Report", console)
    return capture.get()


def test_notes_and_alarms_are_said_once():
    alarms = {
        ("digits", "fast"): ["Digits: x is wrong", "Digits: x is wrong"],
        ("digits", "slow"): ["Digits: x is wrong"],
    }
    text = printed(Rendering([Path("r/digits/report.md")], notes=["one", "two", "one"], alarms=alarms))
    assert text.count("- Digits: x is wrong") == 1
    assert "\x1b" not in printed(
        Rendering([Path("r/d/report.md")], notes=["\x1b[2J"], alarms={("d", "p"): ["\x1b[2J"]})
    )
    assert text.count("note: one") == text.count("note: two") == text.count("Sanity checks failed") == 1


@pytest.mark.parametrize(
    ("names", "html", "line"),
    [
        (["digits"], True, "Report: r/report.html; tables and figures: r/digits"),
        (["digits", "digits-b4", "stl10"], True, "Report: r/report.html; tables and figures: r"),
        (["digits"], False, "Report: r/digits/report.md"),
        (["digits", "stl10"], False, "Report: r/*/report.md"),
    ],
)
def test_one_line_says_where_the_report_is(names, html, line):
    rendering = Rendering(
        [Path("r", name, "report.md") for name in names], html=Path("r/report.html") if html else None
    )
    assert printed(rendering) == f"\n{line}\n"
    linked = printed(rendering, force_terminal=True, color_system="standard", width=20)
    target = "r/report.html" if html else "r/digits/report.md" if len(names) == 1 else "r"
    assert f";{Path(target).resolve().as_uri()}\x1b" in linked
    assert "\n".join(visible(linked)) == line  # too long for the window, and whole all the same


@pytest.fixture
def page(tmp_path):
    (tmp_path / "report.html").write_text("<p>")
    return tmp_path / "report.html"


def browser(folder, script):
    """Make a browser that writes down what it was asked to open."""
    path = folder / "browser"
    path.write_text(f'#!/bin/sh\necho "$1" > {folder}/opened\n{script}\n')
    path.chmod(0o755)
    return str(path)


def opened(page, monkeypatch, capsys, **settings):
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "CI", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    open_page(page, Console(highlight=False))
    return capsys.readouterr().out


def test_open_opens_the_page(page, monkeypatch, capsys):
    assert opened(page, monkeypatch, capsys, BROWSER=browser(page.parent, "exit 0")) == ""
    assert (page.parent / "opened").read_text().strip() == page.as_uri()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a browser needs no DISPLAY")
@pytest.mark.parametrize(
    "settings", [{}, {"SSH_CONNECTION": "a"}, {"CI": "true", "DISPLAY": ":0"}, {"BROWSER": "absent-x"}]
)
def test_without_a_browser_one_sentence_says_so(page, monkeypatch, capsys, settings):
    said = opened(page, monkeypatch, capsys, **settings)
    assert said == f"No browser is available here: open {page} elsewhere.\n"


def test_a_browser_that_stays_holds_nothing_up(page, monkeypatch, capsys):
    monkeypatch.setattr("unlearnbench.cli.console.PATIENCE", 0.5)
    began = time.monotonic()
    assert opened(page, monkeypatch, capsys, BROWSER=browser(page.parent, "exec sleep 5")) == ""
    assert time.monotonic() - began < 4


SHOW = """
import sys
from pathlib import Path
from unlearnbench.cli import commands as cli
from unlearnbench.cli.console import make_console, say_where, show
from unlearnbench.report.data.rendering import Rendering
from unlearnbench.report.data.board import boards
from unlearnbench.report.write.terminal import to_terminal
from unlearnbench.store.records import ResultStore

def shown(**_):
    (board,) = boards(ResultStore(Path(sys.argv[1])).read().records).values()
    rendering = Rendering([Path("r/digits/report.md")], terminal=[to_terminal(board)], alarms={("d", "p"): ["wrong"]})
    console = make_console()
    show(rendering, console)
    say_where(rendering, "Report", console)

cli.app = shown
cli.main()
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for record in many(3, ("Judge entropy",)):
        ResultStore(folder).append(record)
    return folder


def test_a_terminal_has_bold_numbers_and_links(results):
    status, written = in_a_terminal(["-c", SHOW, str(results)])
    assert status == 0, written
    assert "\x1b[1m5.45*\x1b[0m" in written
    assert "\x1b]8;" in written and "\x1b[31m- wrong" in written
    assert max(len(line) for line in visible(written)) <= 80


@pytest.mark.parametrize("settings", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_a_terminal_without_colours_has_no_escape_codes(results, settings):
    status, written = in_a_terminal(["-c", SHOW, str(results)], **settings)
    assert (status, "\x1b" in written, "5.45*" in written, "- wrong" in written) == (0, False, True, True)


def test_a_terminal_of_forty_columns_has_the_table_in_parts(results):
    _, written = in_a_terminal(["-c", SHOW, str(results)], widths=(40,))
    table = written.split("The suite fails")[0]
    assert max(len(line) for line in visible(table)) <= 40
    assert len(re.findall("^method ", table, re.MULTILINE)) == 2


@pytest.mark.parametrize(
    "settings", [{}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_a_log_has_plain_lines_in_any_locale(results, settings):
    arguments = [sys.executable, "-c", SHOW, str(results)]
    done = subprocess.run(arguments, capture_output=True, env=environment(**settings), check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("utf-8")
    assert "\x1b" not in text and "?" not in text
    assert max(len(line) for line in text.splitlines()) <= 82  # of the sentence on checks
    if "PYTHONIOENCODING" in settings or "PYTHONUTF8" in settings:
        assert text.isascii()
        assert "% ^" in text and "GB v" in text


def test_a_terminal_of_an_ascii_locale_is_sent_ascii(results):
    status, written = in_a_terminal(["-c", SHOW, str(results)], LC_ALL="C")
    assert (status, written.isascii(), "GB v" in written) == (0, True, True)
