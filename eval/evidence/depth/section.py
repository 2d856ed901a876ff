"""The section "By depth": a map of each measure for each variant, on one scale, and what layers cost."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..comparison import Scorecard
from .bars import cost_charts
from .maps import Scale, heat_map, legend
from .measures import BY_STEP, OF_PAIRS, Measure
from .tables import MOST_STEPS, pair_grid, read_pairs, read_steps, some, step_grid


class Shown(NamedTuple):
    """A run that stands for its variant.

    Attributes:
        title: variant and seed.
        steps: its diagnostics, perhaps empty.
        checkpoint: the step of its diagnosis; None without one.
        pairs: its diagnosis, empty without one.
    """

    title: str
    steps: pd.DataFrame
    checkpoint: int | None
    pairs: pd.DataFrame


def depth_section(card: Scorecard) -> dict[str, Any] | None:
    """What the template draws; None where no run has measured anything by depth.

    Of each variant it shows one run, the first that has, the baseline's first.
    """
    shown = list(_shown_runs(card))
    if not shown:
        return None
    groups = [group for measure in BY_STEP for group in _step_maps(measure, shown)]
    groups += [group for measure in OF_PAIRS for group in _pair_maps(measure, shown)]
    costs = cost_charts({run.title: run.pairs for run in shown if len(run.pairs)})
    checkpoints = sorted({run.checkpoint for run in shown if run.checkpoint is not None})
    return {"groups": groups, "costs": costs, "checkpoints": ", ".join(map(str, checkpoints))}


def _shown_runs(card: Scorecard) -> Iterator[Shown]:
    for name in card.rows.sort_values("baseline", ascending=False, kind="stable")["name"]:
        for run in card.runs[card.runs["name"] == name].itertuples():
            steps, found = read_steps(run.record.folder), read_pairs(run.record.folder)
            if len(steps) or found:
                title = name if run.given else f"{name}, seed {run.init_seed}"
                checkpoint, pairs = found or (None, pd.DataFrame())
                yield Shown(title, steps, checkpoint, pairs)
                break


def _step_maps(measure: Measure, shown: list[Shown]) -> Iterator[dict[str, Any]]:
    """A group of maps for each part of a layer that has the measure."""
    of_runs = {run.title: run.steps[run.steps["name"] == measure.name] for run in shown if len(run.steps)}
    there = [part for rows in of_runs.values() for part in rows["part"]]
    parts = [part for part in dict.fromkeys(there) if (part != "" if measure.parts is None else part == "")]
    for part in parts:
        of_part = {title: rows[rows["part"] == part] for title, rows in of_runs.items()}
        of_part = {title: rows for title, rows in of_part.items() if len(rows)}
        steps = some(sorted({step for rows in of_part.values() for step in rows["step"]}), MOST_STEPS)
        grids = {title: step_grid(rows, steps) for title, rows in of_part.items()}
        yield from _group(measure, part if len(parts) > 1 else "", grids, "step")


def _pair_maps(measure: Measure, shown: list[Shown]) -> Iterator[dict[str, Any]]:
    own = 1.0 if measure.name == "cka" else 0.0
    of_runs = {run.title: run.pairs[run.pairs["name"] == measure.name] for run in shown if len(run.pairs)}
    grids = {title: pair_grid(rows, own) for title, rows in of_runs.items() if len(rows)}
    for group in _group(measure, "", grids, "layer"):
        yield group | {"square": True}


def _group(
    measure: Measure, part: str, grids: dict[str, pd.DataFrame], column: str
) -> Iterator[dict[str, Any]]:
    """The maps of a measure, and of a part where there are several, by run; none where all values are 0."""
    values = np.concatenate([grid.to_numpy().ravel() for grid in grids.values()]) if grids else np.zeros(0)
    if not np.nan_to_num(values).any():
        return
    scale = Scale.of(values, measure.by_ratio)
    title = f"{measure.title}, {part}" if part else measure.title
    yield {
        "title": title,
        "square": False,
        "legend": legend(measure.unit, scale),
        "maps": [
            heat_map(
                run,
                f"{title} ({measure.unit})",
                grid.to_numpy(),
                scale,
                rows=list(grid.index),
                columns=list(grid.columns),
                column=column,
            )
            for run, grid in grids.items()
        ],
    }
