"""The schema of a record: allowed values of each field, checked on writing and reading.

Records hold values of plugins and can be edited, so invalid values are refused with the field's name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import GenericAlias as Generic
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from unlearnbench.errors import one_line

MOST_NESTED = 32  # levels of objects and lists within each other
USUALLY_NESTED = 8  # levels of nearly all records: more take their types long to build
LARGEST = 1e100  # whose square is still finite
LARGEST_WHOLE = 2**63 - 1
LONGEST = 1e9  # seconds: thirty years
SLACK = 1e-6  # rounding of a mean percentage
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # names that become folders or files
FORMAT = re.compile(r"[<>=^]?[ +-]?#?0?\d{0,2}[,_]?(\.\d{1,2})?[eEfFgGn%]?")  # of a float, in a table's width
RANGES: Mapping[str, tuple[float, float]] = {"%": (0.0, 100.0), "nats": (0.0, LARGEST)}
"""The range of a metric's value by unit; other metrics may declare their range."""


class Kind(NamedTuple):
    """A kind of value: its type, its description in words, and the kinds of an object's or a list's members."""

    type: Any  # as msgspec checks it
    words: str
    members: "Mapping[str, Kind]" = MappingProxyType({})  # as in RECORD


def _number(words: str, low: float = -LARGEST, high: float = LARGEST) -> Kind:
    return Kind(Annotated[float, Meta(ge=low, le=high)], words)


def _whole(words: str, low: int = 0) -> Kind:
    return Kind(Annotated[int, Meta(ge=low, le=LARGEST_WHOLE)], words)


def _or_null(kind: Kind) -> Kind:
    return Kind(kind.type | None, f"{kind.words} or null")


def _choice(*choices: str) -> Kind:
    return Kind(Literal[choices], f"one of {', '.join(choices)}")


def _written(pattern: re.Pattern[str], words: str) -> Kind:
    return Kind(Annotated[str, Meta(pattern=rf"\A(?:{pattern.pattern})\Z")], words)


TEXT = Kind(str, "text")
FLAG = Kind(bool, "true or false")
NUMBER = _number("a finite number")
POSITIVE = _number("a finite number above 0", low=5e-324)
AMOUNT = _number("a finite number of at least 0", low=0)
SECONDS = _number("a number of seconds from 0 to 1e9", low=0, high=LONGEST)
SHARE = _number("a number from 0 to 1", low=0, high=1)
COUNT = _whole("a whole number of at least 0")
SIZE = _whole("a whole number of at least 1", low=1)
SCALAR = Kind(bool | str | NUMBER.type, "a finite number, text or a flag")
NAME = _written(PLAIN, "a plain name")
PICTURE = Kind(bytes, "a picture in base64")
POINT = Kind(Generic(tuple, (COUNT.type, NUMBER.type)), "a step and a finite number")
BOUNDS = Kind(Generic(tuple, (NUMBER.type | None,) * 2), "a pair of finite numbers or null")
COUNTS = Generic(list, Generic(list, AMOUNT.type))
FORMATTED = _written(FORMAT, "a format of numbers such as .2f")

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
        "changed?": {"*": [SCALAR]}, "truth?": {"*": FLAG}, "track?": _choice("tuned", "published"),
        "inference?": FLAG,
    },
    "metrics?": {
        "*": {
            "value": _or_null(NUMBER), "n": COUNT, "title": TEXT, "unit": TEXT,
            "better": _choice("lower", "higher", "neither"),
            "shows": _choice("forgetting", "retention", "robustness", "judging"), "headline": FLAG,
            "format": FORMATTED, "source?": TEXT, "source_hash?": TEXT, "reason?": _or_null(TEXT),
            "boundary?": NUMBER, "range?": BOUNDS, "cost?": COST, "failed?": STATUS,
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
    "protocol?": {
        "name?": TEXT, "solver?": TEXT, "steps?": SIZE, "eta?": NUMBER, "guidance?": NUMBER, "reference?": TEXT,
    },
    "dataset?": {
        "title?": TEXT, "kind?": TEXT, "class_names?": [TEXT], "extractor?": TEXT, "digest?": TEXT, "panel?": TEXT,
        "content?": TEXT, "image_shape?": [SIZE], "choices?": {}, "prompts?": {},
        "tuning_classes?": [COUNT],
    },
    "tuning?": {
        "trial": COUNT, "of": SIZE, "images": SIZE, "share?": SHARE,
        "tuned_as?": TEXT, "space": {"*": {"low?": NUMBER, "high?": NUMBER, "log?": FLAG, "choices?": [SCALAR]}},
        "measures": {"forgetting": TEXT, "retention": TEXT, "ties": TEXT},
    },
    "judge?": {
        "test_accuracy?": SHARE, "n?": SIZE, "second?": {"test_accuracy": SHARE, "n?": SIZE},
        "rejecting?": {"test_accuracy": SHARE, "test_rejected": SHARE, "n?": SIZE},
    },
    "artifacts?": {"*": {"key?": TEXT, "sha256?": TEXT, "steps?": COUNT, "made_utc?": TEXT}},
    "images?": {"*": {"class": COUNT, "png": PICTURE}},
    "provenance?": {
        "device?": {"type?": TEXT, "name?": TEXT, "uuid?": TEXT}, "packages?": {"*": TEXT}, "started_utc?": TEXT,
    },
}  # fmt: skip


def check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError with the field's name if a field of a record is invalid.

    Args:
        record: as JSON.
    """
    try:
        msgspec.convert(record, _RECORD.type)
    except msgspec.ValidationError:
        raise ValueError(_explain(record, _RECORD)) from None
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
    _check_date("provenance.started_utc", record.get("provenance", {}).get("started_utc"))


def _compiled(shape: Any) -> Kind:
    """Return a part of the schema as a kind."""
    if isinstance(shape, Kind):
        return shape
    if isinstance(shape, list):
        member = _compiled(shape[0])
        return Kind(Generic(list, member.type), "a list", {"*": member})
    members = {name: _compiled(part) for name, part in shape.items()}
    if not members or "*" in members:
        every = members.get("*", Kind(Any, "anything"))
        return Kind(Generic(dict, (str, every.type)), "an object", members)
    required = [(name, kind.type) for name, kind in members.items() if not name.endswith("?")]
    optional = [(name[:-1], kind.type, None) for name, kind in members.items() if name.endswith("?")]
    return Kind(msgspec.defstruct("Object", [*required, *optional], gc=False), "an object", members)


_RECORD = _compiled(RECORD)


def _explain(value: object, kind: Kind, path: tuple[str, ...] = ()) -> str:
    """Return the sentence on the first invalid value within one that is not of its kind."""
    inner: Iterable[tuple[str, Any, Kind]] = ()
    if kind.words == "a list" and isinstance(value, list):
        inner = ((str(place), member, kind.members["*"]) for place, member in enumerate(value))
    elif kind.words == "an object" and isinstance(value, Mapping):
        names = dict.fromkeys(value, "*") if "*" in kind.members else {name.rstrip("?"): name for name in kind.members}
        if missing := [name for name, member in names.items() if name == member and name not in value]:
            return f"{_spell((*path, missing[0]))} is missing"
        inner = ((name, value[name], kind.members[member]) for name, member in names.items() if name in value)
    for name, member, of_member in inner:
        try:
            msgspec.convert(member, of_member.type)
        except msgspec.ValidationError:
            return _explain(member, of_member, (*path, name))
    return f"{_spell(path) or 'it'} is {one_line(repr(value), 60)}: it must be {kind.words}"


def _spell(path: Sequence[str]) -> str:
    return one_line(".".join(path), 100)


def range_of(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Return the range of a metric's value, as declared or by its unit."""
    low, high = RANGES.get(entry["unit"], (-LARGEST, LARGEST))
    declared = entry.get("range")
    if not declared:
        return low, high
    return (low if declared[0] is None else declared[0]), (high if declared[1] is None else declared[1])


def _check_metric(name: str, entry: Mapping[str, Any]) -> None:
    """Raise ValueError unless value, number of samples, range and reason of a metric are consistent."""
    value = entry["value"]
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
    confusion = entry["detail"].get("confusion") if isinstance(entry.get("detail"), dict) else None
    if confusion is not None and not _is_confusion(confusion):
        raise ValueError(
            f"{name}.detail.confusion is no confusion matrix: it must be a list of counts per requested class, one per "
            f"class and one for no object"
        )


def _is_confusion(value: object) -> bool:
    try:
        rows = msgspec.convert(value, COUNTS)
    except msgspec.ValidationError:
        return False
    return bool(rows) and all(len(row) == len(rows) + 1 for row in rows)


def _check_date(name: str, text: str | None) -> None:
    """Raise ValueError unless a text is a date in one of the forms of ISO 8601."""
    try:
        if text is not None:
            datetime.fromisoformat(text)
    except ValueError:
        words = "a date and time such as 2026-01-31T12:00:00Z"
        raise ValueError(f"{name} is {one_line(repr(text), 60)}: it must be {words}") from None


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


_SCALAR: Any = bool | str | NUMBER.type | Annotated[int, Meta(ge=-LARGEST_WHOLE, le=LARGEST_WHOLE)] | None


def _nested(levels: int) -> Any:
    """Return the type of JSON of bounded depth and numbers."""
    inner = _nested(levels - 1) if levels > 1 else _SCALAR
    return _SCALAR | Generic(list, inner) | Generic(dict, (str, inner))


PLAIN_JSON = msgspec.json.Decoder(Generic(dict, (str, _nested(USUALLY_NESTED))))
"""Decodes what `check_plain` lets pass, unless it is nested deeply or holds a lone surrogate, and nothing else."""


def check_plain(value: object, path: tuple[str, ...] = ()) -> None:
    """Raise ValueError with the position unless a value is JSON of bounded depth and numbers.

    Args:
        value: a record as JSON, or within one.
        path: names that lead to it.
    """
    if isinstance(value, dict | list | tuple):
        if len(path) == MOST_NESTED:
            raise ValueError(f"{_spell((*path[:3], '...'))} is nested more than {MOST_NESTED} deep")
        for name, member in value.items() if isinstance(value, dict) else enumerate(value):
            check_plain(member, (*path, str(name)))
    elif not _is_plain(value):
        words = "a finite number, text, true, false or null"
        raise ValueError(f"{_spell(path)} is {one_line(repr(value), 60)}: it must be {words}")


def _is_plain(value: object) -> bool:
    """Say whether a scalar is allowed in a record."""
    if isinstance(value, int):  # or a flag
        return -LARGEST_WHOLE <= value <= LARGEST_WHOLE
    return value is None or isinstance(value, str) or (isinstance(value, float) and -LARGEST <= value <= LARGEST)
