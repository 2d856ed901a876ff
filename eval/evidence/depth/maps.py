"""A heat map as the template draws it: runs of cells by colour, and the numbers that a tap shows."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..charts import short_number

PALETTE = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b",
    "#fde725",
)  # fmt: skip
"""viridis, from low to high: even in lightness, so that it reads without colours too."""
SHADES = 40
ROW_PX, LOWEST_PX, HIGHEST_PX = 18, 90, 320
LABELS = 6
"""At most so many along a side of a map; on a phone it is 250 px wide."""


class Scale(NamedTuple):
    """From a value to its place in the palette, the same for all maps of a measure.

    Attributes:
        low: the value of the first colour.
        high: that of the last.
        by_ratio: whether equal ratios have equal distances; below `low` all is the first colour.
    """

    low: float
    high: float
    by_ratio: bool

    @classmethod
    def of(cls, values: np.ndarray, by_ratio: bool) -> "Scale":
        """From the lowest to the highest of all values but NaN; by ratio from the lowest above 0."""
        known = values[np.isfinite(values)]
        by_ratio = by_ratio and bool((known > 0).any())
        low = known[known > 0].min() if by_ratio else known.min()
        return cls(float(low), float(max(low, known.max())), by_ratio)

    def place(self, values: np.ndarray) -> np.ndarray:
        """0 for `low` to 1 for `high`, of any shape."""
        if self.high == self.low:
            return np.where(np.isnan(values), np.nan, 0.5)
        if self.by_ratio:
            with np.errstate(divide="ignore"):
                places = np.log(np.clip(values, self.low, None) / self.low) / math.log(self.high / self.low)
        else:
            places = (values - self.low) / (self.high - self.low)
        return places.clip(0, 1)

    def ticks(self) -> list[str]:
        """The values at the beginning, the middle and the end, as text."""
        if self.high == self.low:
            return [short_number(self.low)]
        middle = math.sqrt(self.low * self.high) if self.by_ratio else (self.low + self.high) / 2
        return [f"{float(f'{value:.3g}'):g}" for value in (self.low, middle, self.high)]


def heat_map(
    title: str,
    about: str,
    values: np.ndarray,
    scale: Scale,
    *,
    rows: Sequence[int],
    columns: Sequence[int],
    column: str,
) -> dict[str, Any]:
    """Geometry of a map, in cells.

    Args:
        title: of the run.
        about: what the values are, with their unit, for who hears the page.
        values: (rows, columns), NaN where nothing was measured; the first row is drawn at the bottom.
        scale: of the colours.
        rows: the layers.
        columns: the steps or layers.
        column: what a column is, in a word.
    """
    height, width = values.shape
    shades = np.round(scale.place(values[::-1]) * (SHADES - 1))
    known = values[np.isfinite(values)]
    reach = f", from {known.min():.3g} to {known.max():.3g}" if len(known) else ""
    return {
        "title": title,
        "label": f"{title}: {about} by layer and {column}{reach}",
        "width": width,
        "height": height,
        "px": min(max(ROW_PX * height, LOWEST_PX), HIGHEST_PX),
        "paths": [(colour(shade), path) for shade, path in _paths(shades).items()],
        "y_labels": [(1 - share, text) for share, text in _labels(rows)],
        "x_labels": _labels(columns),
        "hover": {
            "rows": [int(row) for row in rows],
            "columns": [int(step) for step in columns],
            "column": column,
            "values": [[_short(value) for value in row] for row in values.tolist()],
        },
    }


def legend(unit: str, scale: Scale) -> dict[str, Any]:
    """The colour bar of a measure."""
    return {"unit": unit, "ticks": scale.ticks(), "by_ratio": scale.by_ratio, "palette": PALETTE}


def colour(shade: int) -> str:
    """The colour of one of SHADES, between those of the palette."""
    place = shade / (SHADES - 1) * (len(PALETTE) - 1)
    lower = min(int(place), len(PALETTE) - 2)
    share = place - lower
    one, other = (
        [int(text[start : start + 2], 16) for start in (1, 3, 5)] for text in PALETTE[lower : lower + 2]
    )
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(one, other, strict=True))


def _paths(shades: np.ndarray) -> dict[int, str]:
    """SVG by shade: a rectangle for each stretch of a row that has one shade."""
    found: dict[int, str] = {}
    for y, row in enumerate(shades.tolist()):
        x = 0
        while x < len(row):
            end = x + 1
            while end < len(row) and row[end] == row[x]:
                end += 1
            if row[x] == row[x]:
                shade = int(row[x])
                found[shade] = found.get(shade, "") + f"M{x} {y}h{end - x}v1h-{end - x}z"
            x = end
    return found


def _labels(values: Sequence[int]) -> list[tuple[float, str]]:
    """Where labels stand along a side, as a share of it, and what they say."""
    every = math.ceil(len(values) / LABELS)
    return [
        (round((place + 0.5) / len(values), 4), short_number(value))
        for place, value in enumerate(values)
        if place % every == 0
    ]


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
