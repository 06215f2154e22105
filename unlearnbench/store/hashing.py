"""Identity: canonical JSON, content digests, and the seeds derived from named parts."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
MOST_JSON_BYTES = 1_000_000  # of an untrusted file


def canonical_json(value: Any) -> str:
    """Return the canonical JSON of a value: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: the value holds NaN or an infinity.
        TypeError: the value holds something that JSON cannot represent.
    """
    return _ENCODER.encode(value)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a small untrusted file, with finite numbers only.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    if (size := path.stat().st_size) > MOST_JSON_BYTES:
        raise ValueError(f"it has {size} bytes, more than {MOST_JSON_BYTES}")
    try:
        found = json.loads(path.read_text("utf-8"), parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it does not hold a JSON object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {text[:40]}")
    return value


def derive_seed(purpose: str, **parts: int | str | float | Mapping[str, Any]) -> int:
    """Return a 63-bit seed that depends only on the purpose and the named parts.

    Uses share randomness by leaving out a part: the sampling seed leaves out the method, so that all methods are judged
    on the same initial noise.
    """
    return int(digest({"purpose": purpose, **parts})[:16], 16) >> 1
