"""What runs have measured by depth, as tables of layers and steps."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from training.diagnostics.table import read_diagnostics
from training.run.reader import reading, step_folders

COLUMNS = 7
"""Layers in a table below a chart."""


def read_steps(run_dir: Path) -> pd.DataFrame:
    """diagnostics.parquet of a run, empty where it has none."""
    return read_diagnostics(run_dir).to_pandas()


def read_pairs(run_dir: Path) -> tuple[int, pd.DataFrame] | None:
    """The step and the rows of the last checkpoint's diagnosis.parquet; None where there is none."""
    for step, folder in reversed(step_folders(run_dir / "eval").items()):
        if (file := folder / "diagnosis.parquet").is_file():
            with reading(file):
                return step, pd.read_parquet(file)
    return None


def step_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """The values of one measure and part: a row for each layer, a column for each step, NaN where none is."""
    return rows.pivot(index="layer", columns="step", values="value").sort_index()


def pair_grid(rows: pd.DataFrame, own: float) -> pd.DataFrame:
    """The values of pairs of layers in both orders, `own` where a layer meets itself."""
    upper = rows.pivot(index="layer", columns="layer_2", values="value")
    layers = sorted({*upper.index.astype(int), *upper.columns.astype(int)})
    upper = upper.reindex(index=layers, columns=layers)
    return upper.combine_first(upper.T).mask(np.eye(len(layers), dtype=bool), own)


def every_nth(values: Iterable[int], most: int) -> list[int]:
    """All values, or where there are more than `most` every second, third and so on; always the last."""
    there = list(values)
    if len(there) <= most:
        return there
    apart = math.ceil((len(there) - 1) / (most - 1))
    return [*there[:-1:apart], there[-1]]


def short(value: float, digits: int) -> str:
    """A number as text, 1280 rather than 1.28e+03; - where it is not finite."""
    return f"{float(f'{value:.{digits}g}'):g}" if math.isfinite(value) else "-"
