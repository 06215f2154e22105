"""The result of rendering: paths, terminal output, notes and alarms."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Rendering:
    """The files that a report wrote, and its messages."""

    pages: list[Path] = field(default_factory=list)
    html: Path | None = None  # the page of all boards
    terminal: list[str] = field(default_factory=list)  # the main tables as plain text
    notes: list[str] = field(default_factory=list)
    alarms: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (dataset, protocol) -> wrong controls

    def add_alarms(self, key: tuple[str, str], found: list[str]) -> None:
        """Add the sentences of one dataset and protocol, if there are any."""
        if found:
            self.alarms.setdefault(key, []).extend(found)
