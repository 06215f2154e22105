import io
from itertools import pairwise

import pytest
from rich.console import Console

from unlearnbench.progress import Display, Estimate, spell


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
    monkeypatch.setattr("unlearnbench.progress.time.monotonic", lambda: now[0])
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
    assert sum("| forget " in line for line in lines) == 5  # one per five seconds
    assert "[1/2] a forgets 0: ok in 30s" in lines
    assert lines[-1].startswith("[2/2] a forgets 1")
    assert "about 30s left" in lines[-1]


def test_no_silence_longer_than_ten_seconds(monkeypatch):
    now, stamps = [0.0], []
    monkeypatch.setattr("unlearnbench.progress.time.monotonic", lambda: now[0])

    class Stamped(io.StringIO):
        def write(self, text):
            if text.strip():
                stamps.append(now[0])
            return super().write(text)

    with Display(Console(file=Stamped(), width=200)) as display, display.task("a"):
        for second in range(60):  # a task without a word of its own: only the ticks of the waiting parent
            now[0] = float(second)
            display.tick()
    assert max(b - a for a, b in pairwise(stamps)) <= 10


def test_text_in_brackets_is_not_markup():
    stream = io.StringIO()
    with Display(Console(file=stream, width=200)) as display:
        display.say("[red]x[/red] [/]")
    assert "[red]x[/red] [/]" in stream.getvalue()


def test_cells_at_once_share_a_line_and_shorten_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("unlearnbench.progress.time.monotonic", lambda: now[0])
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
    assert "one | sample 50% + two" in stream.getvalue() or any("one" in line and "two" in line for line in lines)
    assert lines[-1].endswith("about 10s left")  # two cells of 10 s, two at a time
