"""The catalogue of designs as a table: `python -m model.catalogue`."""

import shutil
import textwrap
from collections.abc import Mapping

from . import VARIANTS, Variant, design_name


def table(variants: Mapping[str, Variant], width: int) -> str:
    """Name, design, source, cost and caveats of each variant, and its evidence below, `width` characters."""
    titles = ("variant", "norm+block+topology", "source", "cost beside vanilla", "caveats")
    first = max(map(len, variants)) + 2
    second = (
        max(len(design_name(variant)) for variant in variants.values() if not variant.topology_options) + 2
    )
    rest = (width - first - second) // 3
    widths = (first, second, rest, rest, rest)
    rows = [(name, design_name(v), v.source, v.cost, v.caveats) for name, v in variants.items()]
    evidence = ["", *(v.evidence for v in variants.values())]
    lines = []
    for row, below in zip((titles, *rows), evidence, strict=True):
        cells = [textwrap.wrap(text, size - 2) or [""] for text, size in zip(row, widths, strict=True)]
        for i in range(max(map(len, cells))):
            parts = [cell[i] if i < len(cell) else "" for cell in cells]
            joined = "".join(part.ljust(size) for part, size in zip(parts, widths, strict=True))
            lines.append(joined.rstrip())
        indent = " " * first
        lines += textwrap.wrap(below, width, initial_indent=indent, subsequent_indent=indent)
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(VARIANTS, width=max(100, shutil.get_terminal_size((160, 0)).columns)), end="")
