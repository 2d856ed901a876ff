"""The learning-rate schedule: a pure function of the step."""

import math
from dataclasses import dataclass
from typing import Literal

from model.errors import UserError


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate's shape; its peak is the DeepSpeed JSON's optimizer.params.lr.

    Attributes:
        shape: cosine, or wsd (warm-up, stable, decay; arXiv:2404.06395)
        warmup_steps: steps of linear warm-up
        steps: length of the schedule, which may differ from train.steps; null takes train.steps
        decay_fraction: of wsd, the share of the schedule spent in the final linear decay
        floor: where the decay ends, as a share of the peak
    """

    shape: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int = 20
    steps: int | None = None
    decay_fraction: float = 0.2
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps is {self.warmup_steps}: it must be at least 0")
        if self.steps is not None and self.steps <= self.warmup_steps:
            raise UserError(
                f"schedule.steps is {self.steps}: it must be more than schedule.warmup_steps, "
                f"which is {self.warmup_steps}"
            )
        if not 0.0 < self.decay_fraction <= 1.0:
            raise UserError(
                f"schedule.decay_fraction is {self.decay_fraction}: it must be above 0, at most 1"
            )
        if not 0.0 <= self.floor <= 1.0:
            raise UserError(f"schedule.floor is {self.floor}: it must be from 0 to 1")


def learning_rate(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """The learning rate of optimizer step `step` (the first is 0); the warm-up ends at `peak`.

    Past the end of the schedule it stays at the floor.
    """
    assert schedule.steps is not None, "the recipe's schedule.steps is filled in when it is resolved"
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    floor = peak * schedule.floor
    if schedule.shape == "cosine":
        progress = (step - schedule.warmup_steps) / (schedule.steps - schedule.warmup_steps)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    decay_steps = max(
        1, min(round(schedule.steps * schedule.decay_fraction), schedule.steps - schedule.warmup_steps)
    )
    remaining = (schedule.steps - step) / decay_steps
    return floor + (peak - floor) * min(max(remaining, 0.0), 1.0)
