"""The table of what came instead of the forget class, with the goals of unlearning side by side."""

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.instead import PARTS
from unlearnbench.report.tables.summary import overview
from unlearnbench.report.tables.table import Table

WORDS = (
    "What the samples requested for the forget class show, in shares of all of them; where the rejecting judge sees no "
    "object, their pixels tell noise and blanks from the rest. Papers have two goals: the class becomes noise, or a "
    "recognisable image of something else. Which one to want is the reader's choice, and no column is better high or "
    "low. Mean over forget classes [95 % interval]."
)


def instead_tables(board: Board) -> list[Table]:
    """Return the table of shares of the samples, one row per variant; none where no record says."""
    numbers = board.instead
    if numbers is None:
        return []
    caption = board.caption(WORDS, numbers.measures, numbers)
    goals = [goal for _, goal in PARTS.values()]
    return [overview(numbers, "instead", "What came instead", numbers.measures, caption, goals)]
