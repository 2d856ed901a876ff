"""The difference to the baseline over a training: W&B's panels cannot subtract one run from another."""

from collections.abc import Callable
from pathlib import Path

from ..evidence.comparison import Scorecard
from ..evidence.differences import SAME_TOKENS, pair_runs
from .late import send


def difference_name(baseline: str) -> str:
    """The name in W&B of a run's validation loss less that of the baseline, nats per token."""
    return f"difference/{baseline}/val_loss"


def loss_differences(card: Scorecard) -> dict[Path, dict[int, float]]:
    """By run folder and step, the validation loss less that of the baseline's run which it is paired with.

    Pairs are the scorecard's: the same seeds, data and setting. Runs without a partner are left out.
    """
    runs = card.runs[card.runs["counted"] & ~card.runs["given"]]
    baseline = runs[runs["baseline"]]
    differences = {}
    for _, row in runs[~runs["baseline"]].groupby("name", sort=False):
        pairs, _ = pair_runs(row, baseline, SAME_TOKENS)
        for ours, theirs in zip(pairs["record"], pairs["record_baseline"], strict=True):
            both = ours.val.merge(theirs.val, on="step", suffixes=("", "_baseline")).set_index("step")
            by_step = (both["loss"] - both["loss_baseline"]).dropna()
            differences[ours.folder] = {int(step): float(value) for step, value in by_step.items()}
    return differences


def send_differences(card: Scorecard, say: Callable[[str], None]) -> None:
    """Send each compared run's differences to its W&B run, where it has one: a row for each validation.

    Raises what W&B does.
    """
    name = difference_name(card.baseline)
    for run_dir, by_step in loss_differences(card).items():
        rows = {step: {name: value} for step, value in by_step.items()}
        send(run_dir, f"the differences to {card.baseline}", say, rows)
