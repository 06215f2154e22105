import threading

import pytest

from unlearnbench.run import showing as module
from unlearnbench.run.showing import Showing
from unlearnbench.store.cell import Cell


def cells(methods=3, classes=4):
    return [Cell("digits", "p", f"m{m}", {}, c, 0) for c in range(classes) for m in range(methods)]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def run(clock, *, seconds, cost, some=None):
    """Return after how many cells results were shown, where a cell takes `seconds` and showing `cost`."""
    shown, done = [], 0
    some = some or cells()

    def show():
        clock[0] += cost
        shown.append(done)

    live = Showing(some, show, pytest.fail)
    for cell in some:
        live.wait()
        clock[0] += seconds
        done += 1
        live.finish(cell)
        live.tick()
    return shown


def test_results_are_shown_after_every_class_but_the_last(clock):
    assert run(clock, seconds=60, cost=4) == [3, 6, 9]


def test_it_takes_three_percent_of_the_run_at_most(clock):
    some = cells(classes=100)
    shown = run(clock, seconds=20, cost=30, some=some)
    assert shown[0] == 3 and 5 < len(shown) < 99
    assert 30 * len(shown) <= 0.03 * clock[0]
    assert run(clock, seconds=1, cost=1) == []  # twelve seconds in all


def test_no_cell_starts_while_results_are_shown(clock):
    some, order = cells(methods=1, classes=3), []
    live = Showing(some, lambda: order.append("shown"), pytest.fail)
    clock[0] = 1000.0
    live.finish(some[0])
    other = threading.Thread(target=lambda: (live.wait(), order.append("cell")))
    other.start()
    other.join(0.05)
    assert order == [] and other.is_alive()
    live.tick()
    other.join(5)
    assert order == ["shown", "cell"]


def test_a_run_that_stops_lets_its_cells_go_and_shows_nothing(clock):
    some = cells(methods=1, classes=3)
    live = Showing(some, lambda: pytest.fail("shown"), pytest.fail)
    clock[0] = 1000.0
    live.finish(some[0])
    live.end()
    live.wait()
    live.tick()


def test_a_failure_to_show_is_a_warning_and_the_run_goes_on(clock):
    some, said, tried = cells(methods=1, classes=4), [], []

    def fail():
        tried.append(1)
        raise OSError("no space")

    live = Showing(some, fail, said.append)
    for cell in some[:2]:
        clock[0] += 1000.0
        live.finish(cell)
        live.tick()
        live.wait()
    assert tried == [1]
    assert said == ["the results so far cannot be shown (OSError: no space): the run goes on"]


def test_without_a_view_nothing_waits(clock):
    some = cells(methods=1, classes=3)
    live = Showing(some, None, pytest.fail)
    clock[0] = 1000.0
    live.finish(some[0])
    live.wait()
    live.tick()
