"""What the loss costs without each layer: a panel for the whole layer and one for each of its branches."""

from html import escape

import pandas as pd
from plotly import graph_objects as go

from ..blocks import Chart, Table
from .panels import panel_figure
from .tables import COLUMNS, every_nth

LOWEST = 1e-3
"""Nats per token: what costs less is drawn there."""
COUNTS = 1e-2
"""Nats per token above which a layer counts, as `effective_depth` has it."""
PANEL_PX = 200
TITLE = "What the loss costs without a layer, or without one of its branches"


def cost_blocks(of_runs: dict[str, pd.DataFrame], colours: dict[str, str]) -> list[Chart | Table]:
    """The chart and table of `layer_drop`; none where nothing was left out.

    Args:
        of_runs: diagnosis.parquet by the run's title.
        colours: by the run's title.
    """
    costs = {
        title: rows[rows["name"] == "layer_drop"].dropna(subset="value") for title, rows in of_runs.items()
    }
    costs = {title: rows.sort_values("layer") for title, rows in costs.items() if len(rows)}
    if not costs:
        return []
    parts = list(dict.fromkeys(part for rows in costs.values() for part in rows["part"]))
    panels = {
        _name(part): [
            _line(title, of_part, colours[title], shows_name=number == 0)
            for title, rows in costs.items()
            if len(of_part := rows[rows["part"] == part])
        ]
        for number, part in enumerate(parts)
    }
    figure, height = panel_figure(panels, "layer", "nats per token", PANEL_PX)
    figure.update_xaxes(zeroline=False, unifiedhovertitle={"text": "layer %{x}"})
    figure.update_yaxes(type="log", dtick=1)
    for number, axis in enumerate(figure.select_yaxes()):
        axis.matches = "y" if number else None  # an axis that matches itself is a warning on the console
        figure.add_shape(
            type="line", line={"dash": "dot", "width": 1, "color": "var(--soft)"}, y0=COUNTS, y1=COUNTS,
            x0=0, x1=1, yref=axis.plotly_name.replace("axis", ""),
            xref=axis.plotly_name.replace("yaxis", "x") + " domain",
        )  # fmt: skip
    values = pd.concat(costs.values())["value"]
    about = (
        f"Rise of the loss of {', '.join(costs)} without each layer or one of its branches: "
        f"from {values.min():.3g} to {values.max():.3g} nats per token."
    )
    return [
        Chart("depth-costs", f"{TITLE} (nats per token, logarithmic)", figure, about, height=height),
        _table(costs),
    ]


def _line(title: str, rows: pd.DataFrame, colour: str, shows_name: bool) -> go.Scatter:
    return go.Scatter(
        x=[int(layer) for layer in rows["layer"]],
        y=[float(f"{max(value, LOWEST):.4g}") for value in rows["value"]],
        customdata=[float(f"{value:.4g}") for value in rows["value"]],
        name=escape(title),
        legendgroup=title,
        showlegend=shows_name,
        mode="lines+markers",
        line={"color": colour, "width": 1.5},
        marker={"color": colour, "size": 6},
        hovertemplate="%{customdata:+.4~r}",
    )


def _table(costs: dict[str, pd.DataFrame]) -> Table:
    """A row for each run and part, a column for some of the layers."""
    layers = every_nth(sorted({int(layer) for rows in costs.values() for layer in rows["layer"]}), COLUMNS)
    lines = []
    for title, rows in costs.items():
        for part, of_part in rows.groupby("part", sort=False):
            values = of_part.set_index("layer")["value"]
            texts = {
                f"layer {layer}": f"{values[layer]:+.4f}" if layer in values else "-" for layer in layers
            }
            lines.append({"run": title, "without": f"its {part}" if part else "the layer"} | texts)
    return Table(
        pd.DataFrame(lines),
        note=f"Costs below {LOWEST:g} are drawn there. Above the dotted line at {COUNTS:g} a layer counts.",
    )


def _name(part: str) -> str:
    return f"without its {part}" if part else "without the layer"
