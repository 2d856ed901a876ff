"""How a run has ended: its status, its exit status, and both in words."""

import math
from collections.abc import Mapping
from typing import Any

from model.errors import DIVERGED, FAILED, INTERRUPTED

from ..config.recipe import Recipe
from ..divergence.losses import ended_above_floor
from ..divergence.policy import Verdict
from ..state import TrainState


def outcome(
    recipe: Recipe,
    state: TrainState,
    diverged: Verdict | None,
    failure: str | None,
    summary: Mapping[str, Any],
) -> tuple[str, int, str]:
    """The status of a run, its exit status, and how it ended, as the end of `RUN ...`.

    Args:
        recipe: of the run.
        state: where it stopped.
        diverged: why it cannot go on.
        failure: why a rank could not go on.
        summary: what this rank knows of it; rank 0 alone has its floors, and says the words.
    """
    if diverged:
        return "diverged", DIVERGED, f"diverged at step {state.step}: {diverged.sentence}"
    if state.step == recipe.train.steps and not state.validation_due and not failure:
        loss, bits = state.val_loss or math.nan, state.val_bits_per_byte or math.nan
        scored = f"validation loss {loss:.4f} nats per token, {bits:.4f} bits per byte"
        if not ended_above_floor(state.val_loss, summary.get("floors")):
            return "finished", 0, f"is finished: {scored}"
        of_guessing = f"above the {summary['floors']['uniform']:.2f} of guessing every token alike"
        floor = f"its {scored} is {of_guessing}, so that it learnt nothing"
        return "finished", 0, f"has made its steps, but ended above its floor: {floor}"
    saved = summary.get("last_checkpoint")
    if failure:
        return "failed", FAILED, f"has failed: the same command goes on from {saved or 'its beginning'}"
    if state.step and not (saved and state.skipped_in_a_row):
        where = f"is stopped and saved at step {state.step}: the same command goes on from there"
    elif saved:
        where = f"is stopped between skipped steps: the same command goes on from {saved}"
    else:
        where = "is stopped before its first step: the same command begins again"
    return "interrupted", INTERRUPTED, where
