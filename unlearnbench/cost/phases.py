"""The phases of a cell, and the cost of one. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Phase = Literal["warmup", "prior", "forget", "sample", "judge", "attack"]
Untimed = Literal["load", "repeat", "earlier"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass
class Cost:
    """The cost of one phase so far."""

    seconds: float = 0.0
    memory_bytes: dict[str, int] = field(default_factory=dict)  # probe name -> peak
    memory_growth_bytes: dict[str, int] = field(default_factory=dict)  # probe name -> peak minus initial use
    reused_seconds: float = 0.0  # part of `seconds` spent earlier, on building a cached artifact
    load: dict[str, float] = field(default_factory=dict)  # disturbances: seconds add up, of counts the maximum counts
    repeats: list[float] = field(default_factory=list)  # seconds of each run, where `seconds` is their median

    @property
    def reused(self) -> bool:
        """Whether a part was spent earlier."""
        return self.reused_seconds > 0

    def add(self, other: "Cost") -> None:
        """Add a stretch: seconds add up, of peaks the maximum counts; a probe that missed a stretch is dropped."""
        if not self.seconds and not self.memory_bytes:
            self.memory_bytes = dict(other.memory_bytes)
            self.memory_growth_bytes = dict(other.memory_growth_bytes)
        else:
            self.memory_bytes = _raised(self.memory_bytes, other.memory_bytes)
            self.memory_growth_bytes = _raised(self.memory_growth_bytes, other.memory_growth_bytes)
        self.seconds += other.seconds
        self.reused_seconds += other.reused_seconds
        self.repeats += other.repeats
        for name, amount in other.load.items():
            before = self.load.get(name, 0.0)
            self.load[name] = before + amount if name.endswith("_seconds") else max(before, amount)

    def to_json(self) -> dict[str, Any]:
        """Return the cost as a JSON object."""
        return {name: value for name, value in vars(self).items() if value != []} | {"reused": self.reused}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cost":
        """Return the cost that `to_json` wrote."""
        return cls(
            value["seconds"], dict(value["memory_bytes"]), dict(value.get("memory_growth_bytes", {})),
            value.get("reused_seconds", 0.0), dict(value.get("load", {})), list(value.get("repeats", ())),
        )  # fmt: skip

    @classmethod
    def earlier(cls, value: Mapping[str, Any]) -> "Cost":
        """Return a cost read from JSON, all of it spent earlier."""
        return replace(cls.from_json(value), reused_seconds=value["seconds"])


def _raised(mine: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    """Return the larger number of each probe in both."""
    return {name: max(number, new[name]) for name, number in mine.items() if name in new}
