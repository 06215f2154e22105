"""The judges on images of the untouched model: what they do not recognise there limits what any row can be said of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from unlearnbench.report.data.array import ABSENT, Number, Numbers, read_metric
from unlearnbench.report.data.values import Measure, target_name
from unlearnbench.store.records import Record

RECOGNISED, AGREED = "recognised", "agreed"  # the last parts of the keys of derived measures
LEAST_RECOGNISED = 90.0  # percent of a class's images: a note names classes below
MOST_NAMED = 10  # classes in a note


def judged(metrics: Iterable[Measure]) -> dict[Measure, Callable[[Record], Number]]:
    """Return {measure: read} of shares of the images of the class to forget, from the metrics of a board.

    A metric in percent that is higher the more is forgotten counts images in which its judge does not recognise the
    class; the complement is the share recognised. Descriptions of the same images stay as they are, and of agreement
    between judges the part on these images is read from the detail.
    """
    shares = [measure for measure in metrics if measure.unit == "%"]
    forgetting = [measure for measure in shares if measure.aspect == "forgetting"]
    return {
        **{_of(m, RECOGNISED): partial(_recognised, m.key) for m in forgetting if m.better == "higher"},
        **{m: partial(read_metric, m.key) for m in forgetting if m.better == "neither"},
        **{_of(m, AGREED): partial(_agreed, m.key) for m in shares if m.aspect == "judging"},
    }


def is_part(measure: Measure, part: str) -> bool:
    """Say whether a measure is derived in that way, RECOGNISED or AGREED."""
    return measure.key.endswith(f"/{part}")


def _of(measure: Measure, part: str) -> Measure:
    return Measure(f"{measure.key}/{part}", measure.title, "%", "higher", measure.format, "judging")


def _recognised(key: str, record: Record) -> Number:
    value, n = read_metric(key, record)
    return (None if value is None else 100 - value), n


def _agreed(key: str, record: Record) -> Number:
    """Return the share of a record's images of the class on which judges agree; ABSENT where its detail lacks it."""
    detail = record.metrics.get(key, {}).get("detail")
    share = detail.get("forget") if isinstance(detail, Mapping) else None
    samples = record.protocol.get("forget_samples")
    if not isinstance(share, int | float) or not 0 <= share <= 100 or not isinstance(samples, int):
        return None, ABSENT
    return float(share), samples * len(record.cell.forget_classes)


def recognition_notes(untouched: Numbers, class_names: Sequence[object]) -> list[str]:
    """Return a sentence for each judge that recognises some class in too few images of the untouched model.

    Args:
        untouched: numbers of `judged` measures.
        class_names: by number.
    """
    notes = []
    for measure in (measure for measure in untouched.measures if is_part(measure, RECOGNISED)):
        for row in untouched.rows:
            shares = {t: untouched.cell(row, t, measure, interval=False).number for t in untouched.targets}
            weak = {t: share for t, share in shares.items() if share is not None and share < LEAST_RECOGNISED}
            if not weak:
                continue
            named = [f"{target_name(t, class_names)} ({share:.1f}%)" for t, share in list(weak.items())[:MOST_NAMED]]
            more = [f"{len(weak) - MOST_NAMED} more"] if len(weak) > MOST_NAMED else []
            notes.append(
                f"the judge of {measure.title} recognises fewer than {LEAST_RECOGNISED:.0f}% of the images of "
                f"{row.label} in class {', '.join([*named, *more])}: there an image counts as forgotten without any "
                f"unlearning"
            )
    return notes
