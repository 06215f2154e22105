"""Identity: canonical JSON, content digests, and the seeds derived from named parts."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: the value holds NaN or an infinity.
        TypeError: the value holds something JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derive_seed(purpose: str, **parts: int | str | float | Mapping[str, Any]) -> int:
    """Return a 63-bit seed that depends on the purpose and on the named parts, and on nothing else.

    Leaving a part out is how two uses share their randomness: the sampling seed leaves out the method, so that every
    method is judged on the same initial noise.
    """
    return int(digest({"purpose": purpose, **parts})[:16], 16) >> 1
