"""Revisions of the harness: one number for each part whose numbers records rest on.

Whoever changes a part's numbers raises its revision, and exactly the records that rest on it become stale. Code may be
moved, renamed or written anew under the same revision: `tests/test_golden.py` pins the numbers of every part.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal

Part = Literal["base", "judges", "unlearning", "sampler", "measuring", "attacks"]

REVISIONS: Mapping[Part, int] = MappingProxyType(
    {
        "base": 1,  # training of base models
        "judges": 1,  # training of judges and feature extractors, and how they read images
        "unlearning": 1,  # what methods are given: streams, losses, labels, steps, the SDK's functions
        "sampler": 1,  # noise and steps of generated images
        "measuring": 1,  # what metrics are given: samples, references, arithmetic that they share
        "attacks": 1,  # what attacks are given: images, training, verdicts
    }
)


def of_parts(parts: Iterable[Part]) -> dict[str, int]:
    """Return {part: revision} of some parts, as keys of artifacts and records have it."""
    return {part: REVISIONS[part] for part in sorted(parts)}


def later(part: Part) -> dict[str, int]:
    """Return a part's revision as an artifact's key has it: the first one is left out, since it changed no key."""
    return {} if REVISIONS[part] == 1 else {"revision": REVISIONS[part]}
