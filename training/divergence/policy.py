"""What a step leads to: nothing, a rollback, or the end of the run. The same on all ranks.

Decisions follow from the step and from what `TrainState` holds, which a checkpoint carries: a run that goes
on decides as one in one piece.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from .losses import BEFORE, HISTORY, WINDOW, Explosion, find_explosion, spike_height

if TYPE_CHECKING:
    from ..config.recipe import TrainConfig
    from ..state import TrainState
    from ..step import StepResult

LAST_LOSSES = 50
"""Losses that summary.json keeps of a run that diverged."""


class Verdict(NamedTuple):
    """A run that cannot go on as it is.

    Attributes:
        rolls_back: whether it goes on from an earlier checkpoint; else it has diverged.
        first: the first step that was bad.
        step: the last one.
        sentence: what was seen, in words.
        not_finite: whether that was a loss or gradients that are not finite.
        layer: where the first value that is not finite arises; None where that is not known.
        rank: on which rank.
    """

    rolls_back: bool
    first: int
    step: int
    sentence: str
    not_finite: bool
    layer: str | None = None
    rank: int | None = None

    def facts(self, losses: "list[float | None]") -> dict[str, Any]:
        """What summary.json keeps of it, with the last of the losses, nats per token, null for not finite."""
        found = {"step": self.step, "sentence": self.sentence, "layer": self.layer, "rank": self.rank}
        return {"divergence": found, "last_losses": losses[-LAST_LOSSES:]}


def note_loss(state: "TrainState", loss: float) -> None:
    """Have the state remember the loss of its step, and whether that is a spike."""
    before = _as_numbers(state.losses)
    if spike_height(loss, before) is not None:
        # Steps next to each other are one spike.
        state.spikes += state.last_spike is None or state.step - state.last_spike > BEFORE
        state.last_spike = state.step
    state.losses = [*state.losses, loss if math.isfinite(loss) else None]
    for gone in state.losses[:-HISTORY]:
        if gone is not None:
            state.lowest_loss = gone if state.lowest_loss is None else min(state.lowest_loss, gone)
    state.losses = state.losses[-HISTORY:]


def judge(
    state: "TrainState", result: "StepResult", train: "TrainConfig", floor: float, searches_scale: bool
) -> tuple[Verdict | None, Explosion | None]:
    """What follows the step that `state` has counted and noted, and an explosion that begins with it.

    Args:
        state: where the run is; it is told of an explosion.
        result: of the step.
        train: the policy.
        floor: what guessing every token alike scores, in nats per token.
        searches_scale: whether steps whose gradients are not finite belong to training, as with fp16, which
            finds the scale of its loss by them: then only `max_skipped_steps` in a row are a divergence.
    """
    step, policy = state.step, train.on_divergence
    rolls_back = policy == "rollback" and state.rollbacks < train.max_rollbacks
    in_a_row = state.skipped_in_a_row
    if in_a_row >= train.max_skipped_steps:
        sentence = f"the gradients of the last {in_a_row} steps were not finite"
        return Verdict(rolls_back, step - in_a_row + 1, step, sentence, True), None
    if not result.is_finite and policy != "skip":
        if not math.isfinite(result.loss):
            return Verdict(rolls_back, step, step, f"the loss of step {step} is not finite", True), None
        if not searches_scale:
            sentence = f"the gradients of step {step} are not finite (loss {result.loss:.4g})"
            return Verdict(rolls_back, step, step, sentence, True), None
    lowest = math.inf if state.lowest_loss is None else state.lowest_loss
    explosion = find_explosion(_as_numbers(state.losses), lowest, floor)
    if explosion is None:
        return None, None
    begins = state.exploded_at != step - 1
    state.exploded_at = step
    state.explosions += begins
    if policy == "skip" and not explosion.above_floor:
        return None, explosion if begins else None
    return Verdict(rolls_back, step - WINDOW + 1, step, explosion.sentence, False), explosion


def _as_numbers(losses: "list[float | None]") -> list[float]:
    return [math.nan if loss is None else loss for loss in losses]
