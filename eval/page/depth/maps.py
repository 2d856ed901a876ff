"""Heat maps of one measure, a panel for each run, all on one colour scale."""

import math
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from plotly import graph_objects as go

from ..blocks import Chart
from .measures import Measure
from .panels import panel_figure
from .tables import every_nth, short

MOST_STEPS, MOST_LAYERS = 60, 48
"""Of one map."""
FEW_STEPS, FEW_LAYERS = 16, 8
"""However many maps a page has, each may show so many."""
ROW_PX, LOWEST_PX, HIGHEST_PX = 6, 120, 220
"""The height of a layer, and of a map."""
PAIRS_PX = 230
"""The height of a map of two layers, which is about square."""
BAR_PX = 40
"""The height of the colour bar with its numbers."""
LABELS = 6
"""At most so many along a side of a map."""
SHADES = 255
"""Of a logarithmic scale, beside the lowest."""
TICKS = 5


class Maps(NamedTuple):
    """The maps of a measure, and of a part of a layer where several have it.

    Attributes:
        name: the chart's.
        title: of the measure, with the part.
        measure: what the values are.
        across: what a column is, in a word.
        grids: by the run's title a row for each layer, a column for each step or layer, NaN where nothing was
            measured.
    """

    name: str
    title: str
    measure: Measure
    across: str
    grids: dict[str, pd.DataFrame]

    @property
    def known(self) -> np.ndarray:
        """All finite values of all runs, (N,)."""
        values = np.concatenate([grid.to_numpy(float).ravel() for grid in self.grids.values()])
        return values[np.isfinite(values)]


class Scale(NamedTuple):
    """From a value to what its colour is found by, the same for all maps of a measure.

    Attributes:
        low: the value of the first colour.
        high: that of the last.
        by_ratio: whether equal ratios have equal distances; below `low` all is the first colour.
    """

    low: float
    high: float
    by_ratio: bool

    @classmethod
    def of(cls, known: np.ndarray, by_ratio: bool) -> "Scale":
        """From the lowest to the highest; by ratio from the lowest above 0, where there is one."""
        by_ratio = by_ratio and bool((known > 0).any())
        low, high = float(known[known > 0].min() if by_ratio else known.min()), float(known.max())
        return cls(low, high, by_ratio)

    def places(self, values: np.ndarray) -> np.ndarray:
        """By ratio from 0 to SHADES; otherwise the values themselves. Of any shape."""
        if not self.by_ratio:
            return values
        decades = math.log10(self.high / self.low) or 1.0
        return SHADES * np.log10(np.clip(values, self.low, None) / self.low) / decades

    def axis(self) -> dict[str, Any]:
        """Plotly's colour axis: around 0 where there are both signs."""
        both_signs = self.low < 0 < self.high
        reach = max(-self.low, self.high)
        low, high = (-reach, reach) if both_signs else (self.low, self.high)
        # Both have the very ends as ticks: one beyond the colours would not be drawn.
        ticks = (np.geomspace if self.by_ratio else np.linspace)(low, high, TICKS if high > low else 1)
        ends = self.places(np.array([low, high]))
        if ends[0] == ends[1]:
            ends = ends + [-0.5, 0.5]
        return {
            # Both are even in lightness, and neither asks to tell red from green.
            "colorscale": "RdBu_r" if both_signs else "Viridis",
            "cmin": float(ends[0]),
            "cmax": float(ends[1]),
            "colorbar": {
                "tickvals": self.places(ticks).tolist(),
                "ticktext": [short(tick, 3) for tick in ticks],
                "orientation": "h",
                "len": 0.94,
                "thickness": 12,
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
            },
        }


def heat_maps(maps: Maps, cells: int) -> Chart:
    """The chart; a map has at most `cells` cells, or FEW_STEPS times FEW_LAYERS."""
    known = maps.known
    scale = Scale.of(known, maps.measure.by_ratio)
    panels = {title: [_map(maps, title, cells, scale)] for title in maps.grids}
    layers = max(len(grid) for grid in maps.grids.values())
    panel_px = PAIRS_PX if maps.across == "layer" else min(max(ROW_PX * layers, LOWEST_PX), HIGHEST_PX)
    figure, height = panel_figure(panels, maps.across, "layer", panel_px, BAR_PX)
    figure.update_xaxes(type="category", nticks=LABELS, tickangle=0, showgrid=False)
    figure.update_yaxes(showgrid=False, zeroline=False)
    for trace in figure.data:
        axis = figure.layout[trace.yaxis.replace("y", "yaxis")]
        axis.tickvals = trace.y[:: math.ceil(len(trace.y) / LABELS)]
    figure.update_layout(coloraxis=scale.axis())
    return Chart(
        maps.name,
        f"{maps.title} ({maps.measure.unit}{', logarithmic' if scale.by_ratio else ''})",
        figure,
        f"{maps.title} by layer and {maps.across} of {', '.join(maps.grids)}: "
        f"from {short(known.min(), 3)} to {short(known.max(), 3)}.",
        height=height,
    )


def _map(maps: Maps, title: str, cells: int, scale: Scale) -> go.Heatmap:
    grid = _thinned(maps.grids[title], maps.across, cells)
    values = grid.to_numpy(float)
    rounded = [
        [float(f"{value:.4g}") if math.isfinite(value) else None for value in row] for row in values.tolist()
    ]
    z, shown = rounded, "z"
    if scale.by_ratio:
        places = scale.places(values)
        z = [[round(place) if math.isfinite(place) else None for place in row] for row in places.tolist()]
        shown = "customdata"
    return go.Heatmap(
        x=[int(column) for column in grid.columns],
        y=[int(layer) for layer in grid.index],
        z=z,
        customdata=rounded if scale.by_ratio else None,
        coloraxis="coloraxis",
        hoverongaps=False,
        hovertemplate=f"{maps.across} %{{x}}, layer %{{y}}: %{{{shown}:.4~r}}<extra>{escape(title)}</extra>",
    )


def _thinned(grid: pd.DataFrame, across: str, cells: int) -> pd.DataFrame:
    layers = len(grid)
    if across == "layer":
        kept = every_nth(grid.index, min(MOST_LAYERS, max(FEW_LAYERS, math.isqrt(cells))))
        return grid.loc[kept, kept]
    steps = every_nth(grid.columns, min(MOST_STEPS, max(FEW_STEPS, cells // layers)))
    return grid.loc[every_nth(grid.index, min(MOST_LAYERS, max(FEW_LAYERS, cells // len(steps)))), steps]
