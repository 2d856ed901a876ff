"""What the loss costs without each layer: bars by layer, for a layer and for its branches."""

import math
from typing import Any

import pandas as pd

LOWEST = 1e-3
"""Nats per token: what costs less has no bar."""
COUNTS = 1e-2
"""Nats per token above which a layer counts, as `effective_depth` has it."""
COLOURS = {"": "ink", "attn": "c1", "mlp": "c2"}
"""By part, the page's variable; other branches have that of attn."""


def cost_charts(of_runs: dict[str, pd.DataFrame]) -> dict[str, Any] | None:
    """Geometry of the bars of `layer_drop` on one logarithmic scale; None where nothing was left out.

    Args:
        of_runs: diagnosis.parquet by the run's title.
    """
    costs = {title: rows[rows["name"] == "layer_drop"] for title, rows in of_runs.items()}
    costs = {title: rows for title, rows in costs.items() if len(rows)}
    if not costs:
        return None
    largest = max(10 * LOWEST, *(rows["value"].max() for rows in costs.values()))
    decades = math.ceil(math.log10(largest / LOWEST))
    parts = list(dict.fromkeys(part for rows in costs.values() for part in rows["part"]))
    return {
        "legend": [(_name(part), COLOURS.get(part, "c1")) for part in parts],
        "threshold": f"{COUNTS:g}",
        "counts": round(1 - _height(COUNTS, decades), 4),
        "y_labels": [
            (round(1 - place / decades, 4), f"{LOWEST * 10**place:g}") for place in range(decades + 1)
        ],
        "charts": [_chart(title, rows, parts, decades) for title, rows in costs.items()],
    }


def _chart(title: str, rows: pd.DataFrame, parts: list[str], decades: int) -> dict[str, Any]:
    layers = sorted({int(layer) for layer in rows["layer"]})
    values = {(int(row.layer), row.part): row.value for row in rows.itertuples()}
    width = 0.8 / len(parts)
    bars = [
        {
            "x": round(place + 0.1 + number * width, 3),
            "width": round(width * 0.92, 3),
            "height": round(_height(values[layer, part], decades), 4),
            "colour": COLOURS.get(part, "c1"),
        }
        for place, layer in enumerate(layers)
        for number, part in enumerate(parts)
        if (layer, part) in values
    ]
    every = math.ceil(len(layers) / 12)
    shown = [values.get((layer, "")) for layer in layers]
    return {
        "title": title,
        "width": len(layers),
        "bars": bars,
        "x_labels": [
            (round((place + 0.5) / len(layers), 4), str(layer))
            for place, layer in enumerate(layers)
            if place % every == 0
        ],
        "hover": {
            "columns": layers,
            "values": [
                [
                    f"{_name(part)} {values[layer, part]:+.4f} nats"
                    for part in parts
                    if (layer, part) in values
                ]
                for layer in layers
            ],
        },
        "label": f"{title}: rise of the loss without each layer, in nats per token"
        + (f", up to {max(v for v in shown if v is not None):.3g}" if any(shown) else ""),
    }


def _height(value: float, decades: int) -> float:
    """A bar's share of the chart's height."""
    return math.log10(value / LOWEST) / decades if value > LOWEST else 0.0


def _name(part: str) -> str:
    return f"without its {part}" if part else "without the layer"
