"""The style of a row in all figures: one colour and one mark for a method, in every report."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, islice

from unlearnbench.report.data.values import Variant
from unlearnbench.store.hashing import digest
from unlearnbench.store.records import natural

# seaborn's colour-blind palette without its grey, kept for references, and its yellow, too faint on white
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#56b4e9")
SHAPES = ("o", "s", "^", "D", "v")  # of matplotlib; 5 and 8 are coprime, so 40 rows have different styles
REFERENCES = {"reference": ("#767676", "X"), "gold": ("#3b3b3b", "P")}
MARKS = (*SHAPES, "<", ">", "p", "*", "d")  # the latter of rows that share a method
SALT = 400  # with it no two built-in methods have one style, and each colour has three of them at most


@dataclass(frozen=True)
class Style:
    """A colour, and a shape for readers who cannot distinguish colours."""

    colour: str  # "#rrggbb"
    shape: str  # a matplotlib marker


EVERY = [Style(COLOURS[k % len(COLOURS)], SHAPES[k % len(SHAPES)]) for k in range(len(COLOURS) * len(SHAPES))]


def styles_of(variants: Iterable[Variant]) -> dict[str, Style]:
    """Return {label: style}: greys for references and gold standards, for other methods what their names give.

    Rows of one method share its colour and have different marks; the first by label has the method's own.
    """
    rows = {variant.label: variant for variant in variants}
    found = {label: Style(*REFERENCES[row.role]) for label, row in rows.items() if row.role in REFERENCES}
    groups: dict[str, list[str]] = {}
    for label in sorted(set(rows) - set(found), key=lambda label: natural(label.lower())):
        groups.setdefault(rows[label].method, []).append(label)
    own = _own_styles(groups)
    taken = set(own.values())
    for method, labels in groups.items():
        styles = _like(own[method], len(labels), taken)
        taken.update(styles)
        found |= dict(zip(labels, styles, strict=True))
    return found


def _own_styles(methods: Iterable[str]) -> dict[str, Style]:
    """Return {method: style} by the methods' names; where two give one style, the second takes the next free one."""
    found: dict[str, Style] = {}
    for method in methods:
        start = int(digest([SALT, method])[:12], 16) % len(EVERY)
        turned = [*EVERY[start:], *EVERY[:start]]
        found[method] = next((style for style in turned if style not in found.values()), turned[0])
    return found


def _like(style: Style, count: int, taken: set[Style]) -> list[Style]:
    """Return a style and others of its colour with marks that are not taken; where there are too few, they repeat."""
    free = [new for mark in MARKS if (new := Style(style.colour, mark)) not in taken]
    return list(islice(cycle([style, *free]), count))
