import threading
import time

import pytest

from unlearnbench.errors import UsageError
from unlearnbench.turns import Turns, device_lock


class Cell(threading.Thread):
    """Takes the turns of one cell; notes when it got them, and goes on when told to."""

    def __init__(self, turns, number, log):
        super().__init__(daemon=True)
        self._turns, self._number, self._log = turns, number, log
        self.go = {kind: threading.Event() for kind in ("load", "alone", "beside")}
        self.start()

    def run(self):
        for kind, done in self.go.items():
            sharing = self._turns.take(self._number, kind)
            self._log.append((self._number, kind, sharing))
            done.wait()
        self._turns.leave(self._number)


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def settled(log):
    """Return the log when nothing has been added for a while."""
    before = None
    while before != (before := len(log)):
        time.sleep(1.2)  # longer than two looks of a waiting cell
    return log


def test_a_cell_on_its_own_never_waits():
    turns = Turns()
    assert [turns.take(0, kind) for kind in ("load", "alone", "beside")] == [1, 1, 1]


def test_cells_are_timed_alone_one_after_another_and_then_work_side_by_side():
    turns, log = Turns(), []
    first, second = Cell(turns, 1, log), Cell(turns, 2, log)
    until(lambda: len(log) == 2)
    assert {entry[:2] for entry in log} == {(1, "load"), (2, "load")}
    first.go["load"].set()
    assert len(settled(log)) == 2  # the second still loads: nobody is timed
    second.go["load"].set()
    until(lambda: len(log) == 3)
    assert log[2] == (1, "alone", 1)  # who asked first
    first.go["alone"].set()
    until(lambda: len(log) == 4)
    assert log[3] == (2, "alone", 1)  # goes before the other's sampling
    assert len(settled(log)) == 4
    second.go["alone"].set()
    until(lambda: len(log) == 6)
    assert {entry[:2] for entry in log[4:]} == {(1, "beside"), (2, "beside")}
    assert max(sharing for *_, sharing in log[4:]) == 2


def test_a_cell_that_is_timed_keeps_a_new_one_from_loading():
    turns, log = Turns(), []
    turns.take(0, "alone")
    Cell(turns, 1, log)
    assert settled(log) == []
    turns.leave(0)
    until(lambda: log == [(1, "load", 1)])


def test_a_cell_that_died_holds_nobody_up():
    turns = Turns()
    turns.take(0, "alone")
    turns.leave(0)
    assert turns.take(1, "alone") == 1


def test_what_the_tick_raises_ends_the_waiting_and_the_claim():
    turns = Turns()
    turns.take(0, "alone")

    def stop():
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        turns.take(1, "alone", stop)
    turns.leave(0)
    assert turns.take(2, "beside") == 1  # cell 1 is not waited for


def test_a_device_is_held_by_one_run_at_a_time():
    identity, waited = {"type": "test", "uuid": "turns"}, []
    with device_lock(identity, waited.append):

        def waiting():
            waited.append(1)
            raise RuntimeError("still held")

        with pytest.raises(RuntimeError, match="still held"), device_lock(identity, waiting):
            pass
    with device_lock(identity, waiting):
        pass
    assert waited == [1]


def test_a_lock_that_cannot_be_made_is_a_sentence(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("no")

    monkeypatch.setattr("unlearnbench.turns.FileLock", refuse)
    with pytest.raises(UsageError, match="TMPDIR"), device_lock({"type": "cpu"}, lambda: None):
        pass
