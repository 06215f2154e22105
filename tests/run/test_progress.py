import io
import re
from itertools import pairwise

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.terminals import in_a_terminal, visible
from unlearnbench.run.progress import Display, Estimate, Pace, State, spell


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (60, "1m00s"), (185, "3m05s"), (3599.6, "1h00m"), (7625, "2h07m")]
)
def test_durations_as_people_write_them(seconds, text):
    assert spell(seconds) == text


def test_time_left_uses_each_methods_own_mean():
    estimate = Estimate(["a", "b", "a", "b"])
    assert estimate.left() is None
    estimate.finish("a", 10)
    assert estimate.left() == 10 + 10 + 10  # b is unknown yet: taken as typical
    estimate.finish("b", 30)
    assert estimate.left() == 10 + 30
    assert estimate.left(running_seconds=4) == 6 + 30
    assert estimate.left(running_seconds=400) == 30


def test_plain_lines_name_position_step_and_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("unlearnbench.run.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with Display(Console(file=stream, width=200)) as display:
        display.expect(["a", "a"])
        with display.task("a forgets 0") as task:
            for second in range(1, 30):
                now[0] = float(second)
                task.progress("forget", second, 60)
            now[0] = 30.0
            display.finish(task, "a", 30.0, "ok")
        with display.task("a forgets 1"):
            pass
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("[1/2] a forgets 0")
    assert sum(line.startswith("[1/2] forget ") for line in lines) == 5  # one per five seconds
    assert "[1/2] forget 33%, about 40s for this step | a forgets 0 | 20s so far" in lines
    assert "[1/2] a forgets 0: ok in 30s" in lines
    assert lines[-1] == "[2/2] about 30s left | a forgets 1 | 30s so far"


@pytest.mark.parametrize(
    ("reports", "left"),
    [
        ([], None),
        ([(0, 0.0)], None),
        ([(0, 0.0), (8, 60.0)], None),  # one report: it may have compiled, or waited for a disk
        ([(0, 0.0), (1, 60.0), (2, 61.0), (6, 65.0)], 5 / 5 * 94),  # the slow first part does not count
        ([(1, 0.0), (90, 4.0)], None),  # too short a while
        ([(1, 0.0), (5, 100.0)], None),  # too small a share
        ([(1, 0.0), (6, 100.0)], 100 / 5 * 94),
        ([(50, 0.0), (60, 10.0)], 40.0),  # a training that goes on from a checkpoint
        ([(50, 0.0), (10, 20.0), (20, 30.0)], 80.0),  # a second training of that name
        ([(1, 0.0), (100, 10.0)], None),
    ],
)
def test_no_time_left_is_shown_before_it_can_be_known(reports, left):
    pace, found = Pace("train"), None
    for done, now in reports:
        found = pace.left(done, 100, now)
    assert found == left


def test_a_step_is_announced_in_a_log_as_soon_as_it_begins():
    stream = io.StringIO()
    with Display(Console(file=stream, width=200)) as display, display.task("digits", announce=True) as task:
        for what in ("train the judge (1 of 2)", "train the base model (2 of 2)"):
            task.progress(what, 0, 10)
            task.progress(what, 5, 10)
    assert stream.getvalue().splitlines() == [
        "digits | 0s so far",
        "train the judge (1 of 2) 0% | digits | 0s so far",
        "train the base model (2 of 2) 0% | digits | 0s so far",
    ]


def test_a_log_says_once_who_holds_what_is_waited_for(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("unlearnbench.run.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with Display(Console(file=stream, width=200)) as display:
        for second in range(12):
            now[0] = float(second)
            display.wait("wait for the device", "alice" if second < 8 else "bob")
    assert stream.getvalue().splitlines() == [
        "wait for the device | held by alice | 0s so far",
        "wait for the device | 5s so far",
        "wait for the device | held by bob | 8s so far",
    ]


def test_no_silence_longer_than_ten_seconds(monkeypatch):
    now, stamps = [0.0], []
    monkeypatch.setattr("unlearnbench.run.progress.time.monotonic", lambda: now[0])

    class Stamped(io.StringIO):
        def write(self, text):
            if text.strip():
                stamps.append(now[0])
            return super().write(text)

    with Display(Console(file=Stamped(), width=200)) as display, display.task("a"):
        for second in range(600):  # a task without a word of its own: only the ticks of the waiting parent
            now[0] = float(second)
            display.tick()
    assert max(b - a for a, b in pairwise(stamps)) <= 10
    assert len(stamps) < 75  # a log of ten minutes is no book


def test_text_in_brackets_is_not_markup():
    stream = io.StringIO()
    with Display(Console(file=stream, width=200)) as display:
        display.say("[red]x[/red] [/]")
    assert "[red]x[/red] [/]" in stream.getvalue()


def test_cells_at_once_share_a_line_and_shorten_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("unlearnbench.run.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with Display(Console(file=stream, width=200)) as display:
        display.expect(["a", "a", "a", "a"])
        with display.task("one") as one, display.task("two") as two:
            one.progress("sample", 1, 2)
            now[0] = 10.0
            display.finish(one, "a", 10.0, "ok")
            display.finish(two, "a", 10.0, "ok")
        with display.task("three"):
            pass
    lines = stream.getvalue().splitlines()
    assert lines[1] == "[1/4] one + two | 0s so far"
    assert lines[-1] == "[3/4] about 10s left | three | 10s so far"  # two cells of 10 s, two at a time


STATE = State(["forget 42%", "Alpha (decay=10) forgets 3 cat", "2m10s so far"], "[3/130]", "12m05s")


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (10, "[3/130]"),
        (14, "[3/130] 12m05s"),
        (20, "[3/130] 12m05s left"),
        (30, "[3/130] 12m05s left | forget…"),
        (40, "[3/130] about 12m05s left | forget 42%"),
        (60, "[3/130] about 12m05s left | forget 42% | Alpha (decay=10) f…"),
        (200, "[3/130] about 12m05s left | forget 42% | Alpha (decay=10) forgets 3 cat | 2m10s so far"),
    ],
)
def test_a_narrow_window_keeps_the_most_important(width, line):
    assert STATE.fit(width) == line


def test_a_line_never_wraps():
    wide = State(["sample 50%", "中文中文中文中文 forgets 3", "9s so far"], "[1/2]")
    for state in (STATE, wide, State(["wait for the device, which another run holds"])):
        for width in range(1, 120):
            for console in (Console(file=io.StringIO(), width=width), Console(file=Ascii(), width=width)):
                console.print(state, end="")
                shown = console.file.getvalue()
                assert "\n" not in shown.rstrip("\n")
                assert cell_len(shown.rstrip("\n")) <= width
    assert console.file.getvalue().isascii()


class Ascii(io.StringIO):
    encoding = "ascii"


LONG_RUN = """
import sys, time
from rich.console import Console
from unlearnbench.run.progress import Display
with Display(Console()) as display:
    display.expect(["a"] * 130)
    with display.task("a method with a long name forgets 0") as task:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < float(sys.argv[1]):
            task.progress("forget", round(10 + passed), 100)
            time.sleep(0.05)
"""


def long_run(seconds, **settings):
    status, written = in_a_terminal(["-c", LONG_RUN, str(seconds)], **settings)
    assert status == 0, written
    return written


@pytest.mark.parametrize("settings", [{}, {"NO_COLOR": "1"}], ids=["colours", "none"])
def test_a_terminal_has_one_live_line_without_colours(settings):
    written = long_run(0.6, widths=(40,), **settings)
    assert "\x1b[2K" in written  # it is written anew in its place
    assert not re.search(r"\x1b\[[0-9;]*m", written)
    lines = visible(written)
    assert any(line.startswith("[1/130] forget 1") for line in lines)
    assert max(cell_len(line) for line in lines) <= 40


def test_a_window_that_is_resized_keeps_one_line():
    widths = [cell_len(line) for line in visible(long_run(3.5, widths=(80, 20, 40)))]
    assert 40 < widths[0] <= 80
    narrow = next(index for index, width in enumerate(widths) if width <= 20)
    assert 20 < max(widths[narrow:]) <= 40


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_dumb_terminal_has_plain_lines(environment):
    written = long_run(0.6, **environment)
    assert "\x1b" not in written
    assert written.count("[1/130]") == 1


def test_a_log_has_plain_lines_even_if_colours_are_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with Display(Console(file=stream)) as display, display.task("a"):
        pass
    assert stream.getvalue() == "a | 0s so far\n"
