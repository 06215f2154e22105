"""The schema of a record: allowed values of each field, checked on writing and reading.

Records hold values of plugins and can be edited, so invalid values are refused with the field's name.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from unlearnbench.errors import one_line

MOST_NESTED = 32  # levels of objects and lists within each other
LARGEST = 1e100  # whose square is still finite
LARGEST_WHOLE = 2**63 - 1
LONGEST = 1e9  # seconds: thirty years
SLACK = 1e-6  # rounding of a mean percentage
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # names that become folders or files
FORMAT = re.compile(r"[<>=^]?[ +-]?#?0?\d{0,2}[,_]?(\.\d{1,2})?[eEfFgGn%]?")  # of a float, in a table's width
RANGES: Mapping[str, tuple[float, float]] = {"%": (0.0, 100.0), "nats": (0.0, LARGEST)}
"""The range of a metric's value by unit; other metrics may declare their range."""


class Kind(NamedTuple):
    """A kind of value: its test, and its description in words."""

    holds: Callable[[Any], bool]
    words: str


def _number(words: str, low: float = -LARGEST, high: float = LARGEST) -> Kind:
    return Kind(lambda value: type(value) in (float, int) and low <= value <= high, words)


def _whole(words: str, low: int = 0) -> Kind:
    return Kind(lambda value: type(value) is int and low <= value <= LARGEST_WHOLE, words)


def _or_null(kind: Kind) -> Kind:
    return Kind(lambda value: value is None or kind.holds(value), f"{kind.words} or null")


def _choice(*choices: str) -> Kind:
    return Kind(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


def _is_base64(value: object) -> bool:
    try:
        return isinstance(value, str) and base64.b64decode(value, validate=True) is not None
    except (binascii.Error, ValueError):
        return False


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value) is not None
    except ValueError:
        return False


def _is_point(value: object) -> bool:
    if type(value) is not list or len(value) != 2:
        return False
    number, at = value[1], value[0]  # a record has hundreds, and `check_plain` knows that they are finite
    return type(at) is int and at >= 0 and type(number) in (float, int)


TEXT = Kind(lambda value: isinstance(value, str), "text")
FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
NUMBER = _number("a finite number")
POSITIVE = _number("a finite number above 0", low=5e-324)
AMOUNT = _number("a finite number of at least 0", low=0)
SECONDS = _number("a number of seconds from 0 to 1e9", low=0, high=LONGEST)
SHARE = _number("a number from 0 to 1", low=0, high=1)
COUNT = _whole("a whole number of at least 0")
SIZE = _whole("a whole number of at least 1", low=1)
SCALAR = Kind(lambda value: isinstance(value, bool | str) or NUMBER.holds(value), "a finite number, text or a flag")
NAME = Kind(lambda value: isinstance(value, str) and PLAIN.fullmatch(value) is not None, "a plain name")
PICTURE = Kind(_is_base64, "a picture in base64")
DATE = Kind(_is_date, "a date and time such as 2026-01-31T12:00:00Z")
POINT = Kind(_is_point, "a step and a finite number")
FORMATTED = Kind(
    lambda value: isinstance(value, str) and len(value) < 20 and FORMAT.fullmatch(value) is not None,
    "a format of numbers such as .2f",
)

STATUS = _choice("ok", "failed", "oom", "timeout", "interrupted")

# A dict is an object: names that end in ? are optional, * stands for every name, unlisted names are not checked. A list
# is a list of any length.
COST: Mapping[str, Any] = {
    "seconds": SECONDS, "memory_bytes": {"*": COUNT}, "memory_growth_bytes?": {"*": COUNT}, "repeats?": [SECONDS],
    "reused?": FLAG, "reused_seconds?": SECONDS, "side_by_side?": FLAG, "load?": {"*": AMOUNT},
}  # fmt: skip
RECORD: Mapping[str, Any] = {
    "cell": {
        "dataset": NAME, "protocol": NAME, "method": NAME, "settings": {"*": SCALAR}, "forget_class": COUNT,
        "seed": COUNT, "base_seed?": COUNT, "sampling_seed?": COUNT, "further?": [COUNT], "earlier?": [[COUNT]],
    },
    "status": STATUS,
    "reason?": _or_null(TEXT),
    "traceback?": _or_null(TEXT),
    "wall_seconds?": _or_null(SECONDS),
    "method": {
        "title?": TEXT, "paper?": TEXT, "role?": TEXT, "source_hash?": TEXT, "overrides?": {"*": SCALAR},
        "changed?": {"*": [SCALAR]}, "truth?": {"*": FLAG},
    },
    "metrics?": {
        "*": {
            "value": _or_null(NUMBER), "n": COUNT, "title": TEXT, "unit": TEXT,
            "better": _choice("lower", "higher", "neither"),
            "shows": _choice("forgetting", "retention", "robustness", "judging"), "headline": FLAG,
            "format": FORMATTED, "source?": TEXT, "source_hash?": TEXT, "reason?": _or_null(TEXT),
            "boundary?": NUMBER, "range?": [_or_null(NUMBER)], "cost?": COST, "failed?": STATUS,
        },
    },
    "cost?": {"*": COST},
    "outside?": {"*": SECONDS},
    "priors?": {"*": {"seconds": SECONDS, "key": TEXT, "shared?": FLAG, "reused?": FLAG}},
    "probes?": {"*": TEXT},
    "disturbances?": [{"phase": TEXT, "what": TEXT}],
    "counts?": {
        "optimizer_steps?": COUNT, "forward_images?": COUNT, "backward_images?": COUNT,
        "sampled_images?": COUNT, "drawn?": {"*": COUNT},
    },
    "flops?": {"forward?": AMOUNT, "backward?": AMOUNT, "peak?": {"*": POSITIVE}},
    "revisions?": {"*": SIZE},
    "curves?": {"*": [POINT]},
    "timestep_loss?": {
        "edges?": [COUNT], "forget?": [_or_null(NUMBER)], "retain?": [_or_null(NUMBER)], "n?": COUNT,
    },
    "protocol?": {"name?": TEXT, "steps?": SIZE, "eta?": NUMBER, "guidance?": NUMBER, "reference?": TEXT},
    "dataset?": {
        "title?": TEXT, "kind?": TEXT, "class_names?": [TEXT], "extractor?": TEXT, "digest?": TEXT, "panel?": TEXT,
        "content?": TEXT, "image_shape?": [SIZE], "choices?": {},
    },
    "judge?": {
        "test_accuracy?": SHARE, "n?": SIZE, "second?": {"test_accuracy": SHARE, "n?": SIZE},
        "rejecting?": {"test_accuracy": SHARE, "test_rejected": SHARE, "n?": SIZE},
    },
    "artifacts?": {"*": {"key?": TEXT, "sha256?": TEXT, "steps?": COUNT, "made_utc?": DATE}},
    "images?": {"*": {"class": COUNT, "png": PICTURE}},
    "provenance?": {
        "device?": {"type?": TEXT, "name?": TEXT, "uuid?": TEXT}, "packages?": {"*": TEXT}, "started_utc?": DATE,
    },
}  # fmt: skip


def check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError with the field's name if a field of a record is invalid.

    Args:
        record: as JSON.
    """
    try:
        _test(record)
    except _Wrong as wrong:
        raise ValueError(f"{_spell(wrong.path[::-1]) or 'it'} {wrong.words}") from None
    if record["status"] != "ok" and not record.get("reason"):
        raise ValueError(f"reason is missing: status {record['status']} needs one")
    for name, entry in record.get("metrics", {}).items():
        _check_metric(f"metrics.{name}", entry)
    judge = record.get("judge", {})
    if judge and not {"test_accuracy", "n"} <= judge.keys():
        raise ValueError("judge has only one of test accuracy and n: it must have both")
    losses = record.get("timestep_loss", {})
    bins = len(losses.get("edges", ())) - 1
    if losses and not bins == len(losses.get("forget", ())) == len(losses.get("retain", ())):
        raise ValueError("the numbers of losses and of bins in timestep_loss differ")
    _check_classes(record)


class _Wrong(Exception):
    """An invalid value: its message, and the names that lead to it, innermost first."""

    def __init__(self, words: str) -> None:
        self.words, self.path = words, list[str]()


def _test_of(shape: Any) -> Callable[[Any], None]:
    """Return a validator of a part of the schema, which raises `_Wrong`; compiled once, as it runs often.

    Most values are right, so they are asked as few functions as possible.
    """
    if isinstance(shape, Kind):
        return _test_of_kind(shape)
    if isinstance(shape, list):
        return _test_of_list(_test_of(shape[0]), shape[0].holds if isinstance(shape[0], Kind) else None)
    return _test_of_object(shape)


def _test_of_kind(kind: Kind) -> Callable[[Any], None]:
    holds, words = kind

    def test(value: Any) -> None:
        if not holds(value):
            raise _Wrong(f"is {one_line(repr(value), 60)}: it must be {words}")

    return test


def _test_of_list(test_member: Callable[[Any], None], holds: Callable[[Any], bool] | None) -> Callable[[Any], None]:
    def test(value: Any) -> None:
        if not isinstance(value, list):
            raise _Wrong("is not a list")
        if holds is not None and all(map(holds, value)):
            return
        for place, member in enumerate(value):
            try:
                test_member(member)
            except _Wrong as wrong:
                wrong.path.append(str(place))
                raise

    return test


def _test_of_object(shape: Mapping[str, Any]) -> Callable[[Any], None]:
    every = shape.get("*")
    test_every = None if every is None else _test_of(every)
    every_holds = every.holds if isinstance(every, Kind) else None
    named = [
        (key.removesuffix("?"), key.endswith("?"), part.holds if isinstance(part, Kind) else None, _test_of(part))
        for key, part in shape.items() if key != "*"
    ]  # fmt: skip

    def test(value: Any) -> None:
        if not isinstance(value, Mapping):
            raise _Wrong("is not an object")
        name = ""
        try:
            for name, optional, holds, test_member in named:
                if name in value:
                    if holds is None or not holds(value[name]):
                        test_member(value[name])
                elif not optional:
                    raise _Wrong("is missing")
            if test_every is None or (every_holds is not None and all(map(every_holds, value.values()))):
                return
            for name, member in value.items():  # noqa: B007 - the name of the one that is wrong
                test_every(member)
        except _Wrong as wrong:
            wrong.path.append(name)
            raise

    return test


_test = _test_of(RECORD)


def _spell(path: Sequence[str]) -> str:
    return one_line(".".join(path), 100)


def range_of(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Return the range of a metric's value, as declared or by its unit."""
    low, high = RANGES.get(entry["unit"], (-LARGEST, LARGEST))
    declared = entry.get("range") or (None, None)
    return (low if declared[0] is None else declared[0]), (high if declared[1] is None else declared[1])


def _check_metric(name: str, entry: Mapping[str, Any]) -> None:
    """Raise ValueError unless value, number of samples, range and reason of a metric are consistent."""
    value = entry["value"]
    if len(entry.get("range", "ab")) != 2:
        raise ValueError(f"{name}.range is not a pair")
    if value is None:
        if not entry.get("reason"):
            raise ValueError(f"{name}.value is null, and {name}.reason does not say why")
        return
    low, high = range_of(entry)
    if not low - SLACK <= value <= high + SLACK:
        bounds = f"at least {low:g}" if high == LARGEST else f"from {low:g} to {high:g}"
        raise ValueError(f"{name}.value is {value:g}: it must be {bounds}")
    if entry["n"] < 1:
        raise ValueError(f"{name}.n is 0: a value rests on at least one sample")
    confusion = entry["detail"].get("confusion") if isinstance(entry.get("detail"), Mapping) else None
    if confusion is not None and not _is_confusion(confusion):
        raise ValueError(
            f"{name}.detail.confusion is no confusion matrix: it must be a list of counts per requested class, one per "
            f"class and one for no object"
        )


def _is_confusion(value: object) -> bool:
    rows = value if isinstance(value, list) else []
    return bool(rows) and all(_is_row(row, len(rows) + 1) for row in rows)


def _is_row(row: object, wide: int) -> bool:
    """Say whether a row has that many counts; that they are finite is known by `check_plain`."""
    return isinstance(row, list) and len(row) == wide and set(map(type, row)) <= {int, float} and min(row) >= 0


def _check_classes(record: Mapping[str, Any]) -> None:
    """Raise ValueError unless every class in a record belongs to its dataset."""
    names, cell = record.get("dataset", {}).get("class_names"), record["cell"]
    if names is None:
        return
    named = [("cell", cell["forget_class"]), *(("cell", c) for c in cell.get("further", ()))]
    named += [("cell", c) for step in cell.get("earlier", ()) for c in step]
    named += [(f"images.{side}", picture["class"]) for side, picture in record.get("images", {}).items()]
    for field, number in named:
        if number >= len(names):
            raise ValueError(f"{field} names class {number}: dataset.class_names has {len(names)} from 0 on")


def check_plain(record: Mapping[str, Any]) -> None:
    """Raise ValueError with the position unless a record is JSON of bounded depth and numbers."""
    level: list[Any] = [record]
    for _ in range(MOST_NESTED):
        inner = []
        for container in level:
            for member in container.values() if isinstance(container, dict) else container:
                kind = type(member)
                if kind is str or (kind is float and -LARGEST <= member <= LARGEST):
                    continue
                if kind is int and -LARGEST_WHOLE <= member <= LARGEST_WHOLE:  # these are most of them
                    continue
                if kind is dict or kind is list or kind is tuple:
                    inner.append(member)
                elif not _is_plain(member):
                    words = "a finite number, text, true, false or null"
                    raise ValueError(f"{_place(member, record)} is {one_line(repr(member), 60)}: it must be {words}")
        level = inner
        if not level:
            return
    raise ValueError(f"{_place(level[0], record)} is nested more than {MOST_NESTED} deep")


def _is_plain(value: object) -> bool:
    """Say whether a scalar is allowed in a record."""
    if value is None or isinstance(value, str | bool):
        return True
    if isinstance(value, int):
        return -LARGEST_WHOLE <= value <= LARGEST_WHOLE
    return isinstance(value, float) and -LARGEST <= value <= LARGEST


def _place(odd: object, record: Mapping[str, Any]) -> str:
    """Return the position of a value in a record."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), record)]
    while todo:
        path, value = todo.pop()
        if value is odd:
            return _spell(path if len(path) < MOST_NESTED else (*path[:3], "..."))
        if len(path) < MOST_NESTED and isinstance(value, dict | list | tuple):
            members = value.items() if isinstance(value, dict) else enumerate(value)
            todo += [((*path, str(key)), member) for key, member in members]
    return "a field"
