"""What runs have measured by depth, as tables of layers and steps."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from training.diagnostics.table import read_diagnostics
from training.run.reader import step_folders

MOST_STEPS, MOST_LAYERS = 16, 24
"""Of one map; of more it shows some, the first and the last among them."""


def read_steps(run_dir: Path) -> pd.DataFrame:
    """diagnostics.parquet of a run, empty where it has none."""
    return read_diagnostics(run_dir).to_pandas()


def read_pairs(run_dir: Path) -> tuple[int, pd.DataFrame] | None:
    """The step and the rows of the last checkpoint's diagnosis.parquet; None where there is none."""
    for step, folder in reversed(step_folders(run_dir / "eval").items()):
        if (file := folder / "diagnosis.parquet").is_file():
            return step, pd.read_parquet(file)
    return None


def step_grid(rows: pd.DataFrame, steps: Iterable[int]) -> pd.DataFrame:
    """The values of one measure and part by layer and step, layers thinned out; NaN where there is none."""
    table = rows.pivot(index="layer", columns="step", values="value").sort_index()
    return table.reindex(columns=list(steps)).loc[some(table.index, MOST_LAYERS)]


def pair_grid(rows: pd.DataFrame, own: float) -> pd.DataFrame:
    """The values of pairs of layers in both orders, `own` where a layer meets itself."""
    upper = rows.pivot(index="layer", columns="layer_2", values="value")
    layers = sorted({*upper.index.astype(int), *upper.columns.astype(int)})
    upper = upper.reindex(index=layers, columns=layers)
    table = upper.combine_first(upper.T)
    kept = some(layers, MOST_LAYERS)
    return table.mask(np.eye(len(layers), dtype=bool), own).loc[kept, kept]


def some(values: Iterable[int], most: int) -> list[int]:
    """At most so many, as far apart in their order as can be."""
    there = list(values)
    if len(there) <= most:
        return there
    return [there[place] for place in np.linspace(0, len(there) - 1, most).round().astype(int)]
