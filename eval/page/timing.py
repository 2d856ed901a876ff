"""What a run took: parameters, memory, the time of its steps, and its losses by the hour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from training.run.reader import read_environment

from ..evidence.metrics import VAL_LOSS, Metric
from ..evidence.results import RunRecord

FEWEST_STEPS = 200
"""A shorter run has too few steps in a part."""
PARTS = 10
"""Into how many parts a run's steps are cut to see whether its machine was its own."""
STEADY = 1.2
"""Step times, of parts of a run or of seeds of a design, that differ by more had other work beside them."""


@dataclass(frozen=True)
class Cost:
    """What one run costs.

    Attributes:
        figures: parameters, flops_per_token, tokens_per_s, step_s (the median), peak_memory_gib (per rank),
            wall_time_s; NaN for what is unknown.
        machine: device and ranks in words.
        unsteadiness: the longest over the shortest median step time of its `PARTS`; NaN for a short run.
    """

    figures: dict[str, float]
    machine: str
    unsteadiness: float


def cost_of(record: RunRecord) -> Cost:
    """What a run costs, by its summary and its metrics."""
    summary = record.summary
    seconds = step_seconds(record)
    tokens = record.train["tokens"].diff().median() if len(seconds) > 1 else math.nan
    median = seconds.iloc[1:].median()
    throughput = summary.get("throughput") or {}
    figures = {
        "parameters": summary.get("parameters"),
        "flops_per_token": summary.get("flops_per_token"),
        "tokens_per_s": tokens / median,
        "step_s": median,
        "peak_memory_gib": throughput.get("peak_memory_gib"),
        "wall_time_s": summary.get("wall_time_s"),
    }
    later = seconds.iloc[1:].to_numpy()
    parts = (
        [float(np.median(part)) for part in np.array_split(later, PARTS)]
        if len(seconds) >= FEWEST_STEPS
        else []
    )
    known = {key: math.nan if value is None else float(value) for key, value in figures.items()}
    return Cost(known, _machine(record), max(parts) / min(parts) if parts else math.nan)


def step_seconds(record: RunRecord) -> pd.Series:
    """Seconds of each step, by its number; validation, checkpoints and diagnostics are not in it.

    A run from before metrics.jsonl had them has what its tokens per second say.
    """
    train = record.metrics[record.metrics["kind"] == "train"].sort_values("step").set_index("step")
    seconds = train.reindex(columns=["step_s", "tokens", "tokens_per_s"]).apply(pd.to_numeric)
    by_rate = seconds["tokens"].diff().fillna(seconds["tokens"]) / seconds["tokens_per_s"]
    return seconds["step_s"].fillna(by_rate).dropna()


def training_hours(record: RunRecord) -> pd.Series:
    """Hours of training by step, validation and checkpoints left out; the first step counts as the median."""
    seconds = step_seconds(record)
    if len(seconds) > 1:
        seconds.iloc[0] = seconds.iloc[1:].median()
    return seconds.cumsum() / 3600


def validations(record: RunRecord, yardstick: Metric) -> pd.DataFrame:
    """A run's validations: tokens, hours of training, and loss in the yardstick's unit."""
    val = record.val.set_index("step")
    table = pd.DataFrame(
        {
            "tokens": val["tokens"],
            "hours": training_hours(record).reindex(val.index),
            "loss": val["loss" if yardstick is VAL_LOSS else "bits_per_byte"],
        }
    )
    return table.replace([math.inf, -math.inf], math.nan).dropna().reset_index(drop=True)


def unsteadiness(arm: Sequence[Cost]) -> float:
    """The longest over the shortest step time, of parts of a run or of a design's seeds; 1 where unknown."""
    seconds = [cost.figures["step_s"] for cost in arm if math.isfinite(cost.figures["step_s"])]
    inside = [cost.unsteadiness for cost in arm if math.isfinite(cost.unsteadiness)]
    return max([1.0, *inside, *([max(seconds) / min(seconds)] if seconds else [])])


def _machine(record: RunRecord) -> str:
    environment = read_environment(record.folder)
    gpus = ", ".join(sorted(set(environment.get("gpus") or [])))
    device = gpus or (f"CPU, {environment['cpus']} cores" if "cpus" in environment else "unknown device")
    ranks = record.summary.get("world_size")
    return device + (f", {ranks} rank{'s' if ranks > 1 else ''}" if ranks else "")
