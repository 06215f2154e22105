"""Revisions of the harness: one number for each part that affects results.

A change of a part's results requires a new revision, which makes exactly the dependent records stale. Code may be
moved, renamed or rewritten under the same revision: `tests/test_golden.py` pins the results of every part.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal

Part = Literal["base", "judges", "unlearning", "sampler", "measuring", "attacks"]

REVISIONS: Mapping[Part, int] = MappingProxyType(
    {
        "base": 1,  # training of base models
        "judges": 1,  # training and preprocessing of judges and feature extractors
        "unlearning": 1,  # the SDK: streams, losses, labels, steps, functions
        "sampler": 1,  # noise and steps of generated images
        "measuring": 1,  # inputs of metrics: samples, references, shared arithmetic
        "attacks": 1,  # inputs of attacks and of other metrics that sample anew: images, training, verdicts
    }
)


def of_parts(parts: Iterable[Part]) -> dict[str, int]:
    """Return {part: revision} of some parts, for keys of artifacts and for records."""
    return {part: REVISIONS[part] for part in sorted(parts)}


def later(part: Part) -> dict[str, int]:
    """Return a part's revision for an artifact's key; the first is left out, so that it leaves old keys unchanged."""
    return {} if REVISIONS[part] == 1 else {"revision": REVISIONS[part]}
