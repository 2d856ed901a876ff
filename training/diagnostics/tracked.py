"""What W&B is given of the diagnostics: lines over the run, and at its end the whole table."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .table import Row, read_diagnostics
from .weights import by_group

LINES = (
    "resid_rms",
    "layer_cos",
    "lens_loss",
    "branch_ratio",
    "attn_entropy",
    "grad_norm",
    "update_ratio",
)
"""What has a line for each of the layers shown; all names have lines over the depth."""
SHOWN = 9
"""How many layers have lines, of deeper models the evenly spaced ones."""


def tracked_values(rows: Iterable[Row], n_layer: int) -> dict[str, dict[str, float]]:
    """A step's rows as W&B's values, by the first word of their names and by the rest.

    `diagnostics/NAME/layer_07` for the names in `LINES` and the layers shown, `diagnostics/NAME/min`,
    `median` and `max` over the depth for all, `grad_norm/GROUP` and `weight_norm/GROUP`. The value of a layer
    is that of the block as a whole or of the stream; where there is none, the mean over its parts.
    """
    rows = list(rows)
    values: dict[str, float] = {}
    for name in dict.fromkeys(row.name for row in rows):
        depth = by_layer([row for row in rows if row.name == name])
        sizes = np.array(list(depth.values()))
        values |= {f"{name}/min": float(sizes.min()), f"{name}/median": float(np.median(sizes))}
        values[f"{name}/max"] = float(sizes.max())
        if name in LINES:
            shown = layers_shown(n_layer) & depth.keys()
            values |= {f"{name}/layer_{layer:02d}": depth[layer] for layer in sorted(shown)}
    norms = {
        name: by_group([row for row in rows if row.name == name], n_layer)
        for name in ("grad_norm", "weight_norm")
    }
    return {"diagnostics": values, **norms}


def by_layer(rows: Iterable[Row]) -> dict[int, float]:
    """One value for each layer that has any, of rows of one name."""
    whole: dict[int, float] = {}
    parts: dict[int, list[float]] = {}
    for row in rows:
        if row.part == "":
            whole[row.layer] = row.value
        else:
            parts.setdefault(row.layer, []).append(row.value)
    if whole:  # a layer beside the blocks has parts alone: the embedding, the head
        return whole
    return {layer: float(np.mean(values)) for layer, values in sorted(parts.items())}


def layers_shown(n_layer: int) -> set[int]:
    """Of the numbers 0 to n_layer, those that have lines: both ends, what leaves the last block, and others
    evenly between."""
    if n_layer <= SHOWN:
        return set(range(n_layer + 1))
    return {int(layer) for layer in np.linspace(0, n_layer - 1, SHOWN).round()} | {n_layer}


def log_rows(tracker: Any, step: int, rows: Iterable[Row], n_layer: int, axes: Mapping[str, float]) -> None:
    """Log a step's rows to the run's `Tracker`."""
    for kind, values in tracked_values(rows, n_layer).items():
        if values:
            tracker.log(kind, step, values, axes)


def log_table(tracker: Any, step: int, run_dir: Path) -> None:
    """Log all that was measured as `diagnostics/table`, of which W&B draws heat maps by step and layer."""
    columns = read_diagnostics(run_dir).to_pydict()
    tracker.log_table("diagnostics/table", step, list(columns), list(zip(*columns.values(), strict=True)))
