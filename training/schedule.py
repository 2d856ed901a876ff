"""The learning-rate schedule: a pure function of the step."""

import math
from dataclasses import dataclass
from typing import Literal

from model.errors import UserError
from model.values import FROM_0, FROM_1, Range, check_ranges

RANGES = {
    "warmup": FROM_0,
    "steps": FROM_1,
    "decay_fraction": Range(above=0, at_most=1),
    "floor": Range(at_least=0, at_most=1),
}
"""Of ScheduleConfig's numbers."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate's shape; its peak is the DeepSpeed JSON's optimizer.params.lr.

    Attributes:
        shape: cosine, or wsd (warm-up, stable, decay; arXiv:2404.06395)
        warmup: length of the linear warm-up: steps, or below 1 a share of the schedule's steps
        warmup_formula: a share (step + 1) / warmup of the peak, which the last warm-up step reaches, or
            nanogpt's (step + 1) / (warmup + 1), which the step after it does; the first step is 0
        steps: length of the schedule, which may differ from train.steps; null takes train.steps
        decay_fraction: of wsd, the share of the schedule spent in the final linear decay
        floor: where the decay ends, as a share of the peak
    """

    shape: Literal["cosine", "wsd"] = "cosine"
    warmup: int | float = 20
    warmup_formula: Literal["normlab", "nanogpt"] = "normlab"
    steps: int | None = None
    decay_fraction: float = 0.2
    floor: float = 0.1

    def __post_init__(self) -> None:
        check_ranges("schedule", self, RANGES)
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise UserError(
                f"schedule.warmup is {self.warmup}: it must be whole steps, or a share of the schedule that "
                "is at least 0 and below 1"
            )
        if self.steps is not None and self.steps <= self.warmup_steps:
            raise UserError(
                f"schedule.steps is {self.steps}: it must be more than schedule.warmup, "
                f"which is {self.warmup_steps} steps"
            )

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up; a share of them is rounded."""
        if self.warmup >= 1 or self.warmup == 0:
            return int(self.warmup)
        assert self.steps is not None, "the recipe's schedule.steps is filled in when it is resolved"
        return round(self.warmup * self.steps)


def learning_rate(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """The learning rate of optimizer step `step` (the first is 0); after the warm-up it is `peak`.

    Past the end of the schedule it stays at the floor.
    """
    assert schedule.steps is not None, "the recipe's schedule.steps is filled in when it is resolved"
    warmup = schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / (warmup + (schedule.warmup_formula == "nanogpt"))
    floor = peak * schedule.floor
    if schedule.shape == "cosine":
        progress = (step - warmup) / (schedule.steps - warmup)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    decay_steps = max(1, min(round(schedule.steps * schedule.decay_fraction), schedule.steps - warmup))
    remaining = (schedule.steps - step) / decay_steps
    return floor + (peak - floor) * min(max(remaining, 0.0), 1.0)
