"""The style of a row in all figures of a folder: one colour and one shape, on every board."""

from collections.abc import Iterable
from dataclasses import dataclass

from unlearnbench.report.data.values import Variant
from unlearnbench.store.records import natural

# seaborn's colour-blind palette without its grey, kept for references, and its yellow, too faint on white
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#56b4e9")
SHAPES = ("o", "s", "^", "D", "v")  # of matplotlib; 5 and 8 are coprime, so 40 rows have different styles
REFERENCES = {"reference": ("#767676", "X"), "gold": ("#3b3b3b", "P")}


@dataclass(frozen=True)
class Style:
    """A colour, and a shape for readers who cannot distinguish colours."""

    colour: str  # "#rrggbb"
    shape: str  # a matplotlib marker


def styles_of(variants: Iterable[Variant]) -> dict[str, Style]:
    """Return {label: style}: greys for references and gold standards, colours for the others in the order of labels."""
    roles = {variant.label: variant.role for variant in variants}
    found = {label: Style(*REFERENCES[role]) for label, role in roles.items() if role in REFERENCES}
    others = sorted(set(roles) - set(found), key=lambda label: natural(label.lower()))
    coloured = {label: Style(COLOURS[k % len(COLOURS)], SHAPES[k % len(SHAPES)]) for k, label in enumerate(others)}
    return found | coloured
