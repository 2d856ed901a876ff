"""Panels of a figure, one for each run or part, that the page puts side by side where there is room."""

from collections.abc import Mapping, Sequence
from html import escape

from plotly import graph_objects as go
from plotly.basedatatypes import BaseTraceType

LONGEST = 44
"""Characters of a panel's title: on a phone more would be cut."""
BETWEEN_PX = 66
"""From one panel to the next below it: the numbers and title of its axis, and the next one's title."""
TOP_PX, BOTTOM_PX = 26, 46
"""Room for the first title and for the last axis."""


def panel_figure(
    panels: Mapping[str, Sequence[BaseTraceType]],
    x_title: str,
    y_title: str,
    panel_px: int,
    below_px: int = 0,
) -> tuple[go.Figure, int]:
    """Panels by their titles, one below the other in a `layout.grid`, and the figure's height in px.

    Each panel is `panel_px` high, and `below_px` are kept free below the last one.
    """
    figure = go.Figure()
    for number, (title, traces) in enumerate(panels.items(), start=1):
        axis = "" if number == 1 else str(number)
        for trace in traces:
            figure.add_trace(trace.update(xaxis=f"x{axis}", yaxis=f"y{axis}"))
        figure.update_layout(
            {
                f"xaxis{axis}": {"title": {"text": x_title, "standoff": 4}},
                f"yaxis{axis}": {"title": {"text": y_title, "standoff": 4}},
            }
        )
        figure.add_annotation(
            text=escape(title if len(title) <= LONGEST else title[: LONGEST - 1] + "…", quote=False),
            xref=f"x{axis} domain", yref=f"y{axis} domain", x=0, y=1, xanchor="left", yanchor="bottom",
            showarrow=False,
        )  # fmt: skip
    gap = BETWEEN_PX / (panel_px + BETWEEN_PX)
    figure.update_layout(
        grid={"rows": len(panels), "columns": 1, "pattern": "independent", "xgap": 0.22, "ygap": gap},
        margin={"t": TOP_PX, "b": BOTTOM_PX + below_px},
    )
    return figure, TOP_PX + len(panels) * (panel_px + BETWEEN_PX) - BETWEEN_PX + BOTTOM_PX + below_px
