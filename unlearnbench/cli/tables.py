"""Plain tables for the terminal."""

from collections.abc import Sequence

from rich.cells import cell_len


def table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> list[str]:
    """Return the lines of a table with right-aligned numbers."""
    every = [headers, *rows]
    widths = [max(cell_len(line[column]) for line in every) for column in range(len(headers))]
    padding = [[" " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True)] for line in every]
    return [
        "  ".join([f"{line[0]}{pads[0]}", *[f"{pad}{text}" for text, pad in zip(line[1:], pads[1:], strict=True)]])
        for line, pads in zip(every, padding, strict=True)
    ]
