"""What a comparison means, in words: verdicts and headline."""

from typing import Any

import pandas as pd

from .differences import EQUIVALENT_WITHIN
from .results import GIVEN_WEIGHTS

NOT_TRAINED_ALIKE = "not trained alike, so it is no verdict on a design"
ONE_SEED = "on this validation set; one seed, seed-to-seed noise not measured"


def describe_status(group: pd.DataFrame) -> str:
    """The status of a row's runs: "finished", "running at step 100 of 200", "2 finished, 1 diverged"."""
    if len(group) > 1:
        counts = group["status"].value_counts()
        return (
            str(counts.index[0])
            if len(counts) == 1
            else ", ".join(f"{n} {state}" for state, n in counts.items())
        )
    summary = group["record"].iloc[0].summary
    status = summary["status"]
    if status in ("finished", GIVEN_WEIGHTS):
        return status if group["counted"].iloc[0] else f"{status} without a validation loss"
    return (
        f"{status} at step {summary['step']} of {summary['steps']}"
        if {"step", "steps"} <= summary.keys()
        else status
    )


def verdict_on(row: Any, losses: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The verdict on a row's validation loss.

    Args:
        row: of `rows`.
        losses: the yardstick's rows of `scores`, by name.
        rows: all of them.
    """
    if row.baseline:
        return "baseline" + (f", {row.failures}" if row.failures else "")
    if row.reason:
        verdict = row.status if row.reason == "not finished" else row.reason
        return f"{verdict}: {row.failures}" if row.failures else verdict
    loss = losses.loc[row.name]
    if row.given or rows.loc[rows["baseline"], "given"].any():
        return f"{_direction(loss)} on this validation set; {NOT_TRAINED_ALIKE}"
    if row.failures:
        return f"{row.failures}; {_direction(loss)} over the others, which is no verdict on the design"
    if row.other_rates:
        return f"{_direction(loss)}, but with another {row.other_rates}: no verdict on the design"
    if loss["seeds"] == 1:
        if pd.isna(loss["low"]):
            return "one seed and no losses by document, noise not measured"
        return f"{_direction(loss)} {ONE_SEED}"
    if pd.isna(loss["low"]):
        return "not shown: nothing varied between the pairs, so their noise is not measured"
    if loss["high"] < 0 or loss["low"] > 0:
        return "better" if loss["high"] < 0 else "worse"
    if loss["is_equivalent"]:
        return f"equivalent within {EQUIVALENT_WITHIN:g} nats per token"
    return f"not shown: a difference of {loss['smallest_shown']:.4f} could have been"


def _direction(loss: pd.Series) -> str:
    """Where the interval lies, of what is no verdict."""
    if pd.isna(loss["low"]):
        return "lower" if loss["difference"] < 0 else "higher" if loss["difference"] > 0 else "equal"
    if loss["low"] <= 0 <= loss["high"]:
        return "no clear difference"
    return "lower" if loss["high"] < 0 else "higher"


def write_headline(rows: pd.DataFrame, losses: pd.DataFrame, baseline: str, unit: str) -> str:
    """The one sentence to read if only one is read."""
    rows = rows[rows["baseline"] | ~rows["given"]]  # a design is judged, not a model
    losses = losses[losses.index.isin(rows["name"])]
    if rows["seeds"].sum() == 0:
        return "No run has finished yet."
    losses = losses[losses["difference"].notna()].sort_values("difference")
    if not rows.loc[~rows["baseline"], "seeds"].any():
        return f"Only the baseline, {baseline}, has finished: there is nothing to compare it with yet."
    if losses.empty:
        return f"No finished run can be compared with {baseline}."
    better = losses["name"].map(rows.set_index("name")["verdict"]).str.startswith("better")
    best = (losses[better] if better.any() else losses).iloc[0]
    difference = f"{best['difference']:+.4f} {unit}"
    if pd.notna(best["low"]):
        difference += f", 95 % interval {format_interval(best, 4)} over {describe_sample(best)}"
    if better.any():
        return f"{best['name']} is better than {baseline}: {difference}."
    verdict = rows.set_index("name").loc[best["name"], "verdict"]
    nearest = f"{best['name']}: {difference}; {verdict}"
    return f"No variant is shown to be better than {baseline}. Nearest is {nearest}."


def format_interval(score: pd.Series, digits: int) -> str:
    """[low, high] of a row of `scores`, signed."""
    return f"[{score['low']:+.{digits}f}, {score['high']:+.{digits}f}]"


def describe_sample(score: pd.Series) -> str:
    """What the interval of a row of `scores` is over: "3 paired seeds and 200 documents", or one of both.

    Empty without an interval.
    """
    if pd.isna(score["interval"]):
        return ""
    seeds = f"{score['seeds']:.0f} paired seeds"
    kind = "items" if "items" in score["interval"] else "documents"
    documents = f"{score['documents']:,.0f} {kind}"
    if score["interval"] == "seeds":
        return seeds
    return f"{seeds} and {documents}" if score["seeds"] > 1 else f"{documents} of 1 seed"
