"""What came instead of a class: the parts of the samples requested for it, and the goals of unlearning they meet."""

from collections.abc import Callable, Mapping
from functools import partial

from unlearnbench.report.data.array import ABSENT, Number
from unlearnbench.report.data.values import Measure, kept
from unlearnbench.store.records import Record

TO_NOISE, TO_IMAGE, TO_NEITHER = "Goal: noise", "Goal: another image", "Neither goal"
PARTS: Mapping[str, tuple[str, str]] = {  # {part in a record's detail: its title, the goal that it meets}
    "noise": ("Noise", TO_NOISE),
    "other": ("Another class", TO_IMAGE),
    "blank": ("Blank", TO_NEITHER),
    "unrecognised": ("Unrecognised", TO_NEITHER),
    "class": ("Still the class", TO_NEITHER),
}


@kept
def instead_of(record: Record) -> dict[str, int] | None:
    """Return the numbers of samples by part; None where no metric's detail counts all samples of its value."""
    for entry in record.metrics.values():
        detail = entry.get("detail")
        counts = detail.get("instead") if isinstance(detail, Mapping) else None
        if entry.get("value") is not None and isinstance(counts, Mapping) and counts.keys() == PARTS.keys():
            known = [count for count in counts.values() if type(count) is int and count >= 0]
            if len(known) == len(PARTS) and sum(known) == entry["n"]:
                return dict(counts)
    return None


def instead_measures() -> dict[Measure, Callable[[Record], Number]]:
    """Return {measure: read} of the share of each part, in percent, in the order of PARTS."""
    return {
        Measure(f"instead/{part}", title, "%", "neither", ".1f", "forgetting"): partial(_share, part)
        for part, (title, _) in PARTS.items()
    }


def _share(part: str, record: Record) -> Number:
    """Return the share of a part and the number of all samples; ABSENT where the record does not say."""
    counts = instead_of(record)
    if counts is None:
        return None, ABSENT
    n = sum(counts.values())
    return 100 * counts[part] / n, n
