"""Results so far, shown after every forget class while the run goes on."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from unlearnbench.errors import spell_error
from unlearnbench.store.cell import Cell

MOST_SHARE = 0.03  # of a run's time that showing may take
FIRST_SECONDS = 5.0  # that it is expected to take the first time


class Showing:
    """Shows results after every forget class but the last, unless that would take more than its share of the run.

    No cell starts meanwhile, so that none is measured beside it; on other devices of the run cells go on. `wait` and
    `finish` are for the threads that run cells, `tick` is for the one that shows.
    """

    def __init__(self, cells: Sequence[Cell], show: Callable[[], object] | None, warn: Callable[[str], object]) -> None:
        """Expect cells; nothing is shown without `show`, nor after it has failed, which is a warning."""
        self._left = Counter((cell.target, cell.seeds) for cell in cells)
        self._show, self._warn, self._total, self._done = show, warn, len(cells), 0
        self._lock, self._door = threading.Lock(), threading.Event()
        self._door.set()
        self._started, self._spent, self._last = time.monotonic(), 0.0, FIRST_SECONDS

    def wait(self) -> None:
        """Wait until no results are shown."""
        self._door.wait()

    def finish(self, cell: Cell) -> None:
        """Count a cell; if it was the last one of its class, cells wait until the results are shown."""
        with self._lock:
            self._left[cell.target, cell.seeds] -= 1
            self._done += 1
            ended = not self._left[cell.target, cell.seeds]
            if self._show is not None and ended and self._done < self._total and self._fits():
                self._door.clear()

    def _fits(self) -> bool:
        """Say whether showing fits into its share of the time that the run is expected to take."""
        expected = (time.monotonic() - self._started - self._spent) * self._total / self._done
        return self._spent + self._last <= MOST_SHARE * expected

    def end(self) -> None:
        """Show nothing any more: the run stops."""
        self._show = None
        self._door.set()

    def tick(self) -> None:
        """Show the results, if they are due."""
        if self._door.is_set() or self._show is None:
            return
        began = time.monotonic()
        try:
            self._show()
        except Exception as error:  # of any kind: the cells are worth more than their report
            self._warn(f"the results so far cannot be shown ({spell_error(error)}): the run goes on")
            self._show = None
        finally:
            self._last = time.monotonic() - began
            self._spent += self._last
            self._door.set()
