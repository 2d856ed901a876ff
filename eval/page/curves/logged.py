"""What a run has logged, as curves that a chart can hold: smoothed, thinned, over tokens and over time."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ...evidence.comparison import Scorecard
from ...evidence.results import RunRecord
from ..runs import design_colours, run_titles
from ..timing import training_hours


class StyledRun(NamedTuple):
    """A run as it looks in every chart.

    Attributes:
        run: the row of `card.runs`.
        name: of its row in the scorecard, which its seeds share.
        title: with its seed.
        colour: of the page's style sheet.
    """

    run: Any
    name: str
    title: str
    colour: str


def styled_runs(card: Scorecard, tokenizer: str | None = None) -> Iterator[StyledRun]:
    """Every run, or those of a tokenizer, in the scorecard's order."""
    colours, titles = design_colours(card), run_titles(card)
    for name in card.rows["name"]:
        for run in card.runs[card.runs["name"] == name].itertuples():
            if tokenizer in (None, run.tokenizer):
                yield StyledRun(run, name, titles[run.folder], colours[name])


def over_tokens(metrics: pd.DataFrame, column: str) -> pd.Series:
    """A column of `RunRecord.train` or `.val` by trained tokens, what is not finite left out."""
    return metrics.set_index("tokens")[column].replace([math.inf, -math.inf], math.nan).dropna()


def hours_at(record: RunRecord, tokens: Iterable[float]) -> np.ndarray:
    """Hours of training until these numbers of trained tokens, without validation and checkpoints; (n,).

    NaN where the run has logged no speed.
    """
    wanted = np.asarray(list(tokens), float)
    hours = training_hours(record)
    reached = record.train.set_index("step")["tokens"].reindex(hours.index).dropna()
    if reached.empty:
        return np.full(len(wanted), math.nan)
    return np.interp(wanted, [0, *reached], [0, *hours[reached.index]])


def smooth(values: pd.Series) -> pd.Series:
    """Mean over a hundredth of the curve around each point: unlike a trailing average, it does not lag."""
    return values.rolling(max(1, len(values) // 100), center=True, min_periods=1).mean()


def thin(values: pd.Series, most: int) -> pd.Series:
    """At most `most` points of a curve: the lowest and highest of each stretch, so that spikes survive."""
    if len(values) <= most:
        return values
    numbers = values.to_numpy()
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), most // 2 - 1):
        kept |= {int(stretch[np.argmin(numbers[stretch])]), int(stretch[np.argmax(numbers[stretch])])}
    return values.iloc[sorted(kept)]


def late(curves: Iterable[pd.Series], share: float) -> pd.Series:
    """The curves' points after a share of the longest; of one that ends before, after that share of it."""
    curves = [curve for curve in curves if len(curve)]
    longest = max(curve.index.max() for curve in curves)
    parts = []
    for curve in curves:
        end = longest if curve.index.max() > share * longest else curve.index.max()
        part = curve[curve.index > share * end]
        parts.append(part if len(part) else curve)
    return pd.concat(parts)


def padded(values: pd.Series, least: float) -> list[float]:
    """A range around values, with some space, and no smaller than `least`."""
    low, high = float(values.min()), float(values.max())
    margin = max(0.06 * (high - low), (least - (high - low)) / 2)
    return [low - margin, high + margin]
