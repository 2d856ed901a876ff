"""What tests of the scorecard ask of one."""

from pathlib import Path

import numpy as np
import pandas as pd

from eval.evidence.comparison import Scorecard, build_scorecard
from eval.evidence.results import read_runs


def card_of(*folders: Path, baseline: str | None = None) -> Scorecard:
    return build_scorecard(read_runs(folders), baseline)


def verdict_on(card: Scorecard, name: str) -> str:
    return card.rows.set_index("name").loc[name, "verdict"]


def score_of(card: Scorecard, name: str, metric: str) -> pd.Series:
    return card.scores.set_index(["name", "metric"]).loc[(name, metric)]


def documents(seed: int, shift: float, noise: float = 20.0) -> pd.DataFrame:
    """200 documents of uneven length, `shift` nats per token above 5, with each seed's own noise."""
    tokens = np.random.default_rng(0).integers(20, 1500, 200)
    loss = tokens * (5 + shift) + noise * np.random.default_rng(seed).standard_normal(200)
    return pd.DataFrame(
        {"document": np.arange(200), "tokens": tokens, "bytes": 4 * tokens + np.arange(200), "loss": loss}
    )
