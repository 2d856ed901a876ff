"""What a series of training losses says: which steps are spikes, and from where on it has exploded.

Everything here is a function of losses that all ranks share. It needs no torch: evaluation asks it too.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

BEFORE = 40
"""Steps whose losses say what the next one should be: few enough that the loss of a healthy run changes
little over them, and enough for a spread that is not too small by chance."""
DEVIATIONS = 6.0
"""Robust standard deviations of the steps before above which a loss is no noise of batches."""
SPIKE = 0.5
"""Nats per token that a spike is above the median of the steps before, at least."""
WINDOW = 50
"""Steps that a loss has to stay up to have exploded: spikes that a run recovers from by itself are shorter,
or come down within so many steps."""
MARGIN = 1.0
"""Nats per token that each step of an exploded window is above what it is compared with, at least."""
FLOOR_MARGIN = 0.5
"""Nats per token above the uniform floor up to which a model counts as one that has learnt nothing: drawn
weights start above it by about 0.1."""
HISTORY = 2 * WINDOW
"""Losses that `find_explosion` looks at: as many are kept with a run's state."""
_SIGMA = 1.4826  # the standard deviation of a normal distribution, in median absolute deviations


def spike_height(loss: float, before: Sequence[float]) -> float | None:
    """How far a loss is above the median of the steps before, where that is a spike; else None.

    Args:
        loss: in nats per token; one that is not finite is no spike.
        before: of earlier steps, of which the last `BEFORE` are looked at; with fewer nothing is a spike.
    """
    if len(before) < BEFORE or not math.isfinite(loss):
        return None
    middle, deviation = _middle_and_deviation(before[-BEFORE:])
    above = loss - middle
    return above if above > max(SPIKE, DEVIATIONS * deviation) else None


class Explosion(NamedTuple):
    """A loss that left what it was and stays there.

    Attributes:
        above_floor: whether the model knows less than one that guesses every token alike.
        sentence: what the losses did, in words.
    """

    above_floor: bool
    sentence: str


def find_explosion(losses: Sequence[float], lowest: float, floor: float) -> Explosion | None:
    """What the last `WINDOW` losses are an explosion of; None where they are none.

    Either all of them are above the uniform floor and above the lowest loss that the run had before: drawn
    weights that start far above the floor and come down from there have not exploded. Or all of them are
    above the steps before the window: the run lost at once what it had learnt.

    Args:
        losses: of the latest steps, in nats per token; one that is not finite counts as above.
        lowest: of all steps before those; infinite where there are none.
        floor: what guessing every token alike scores.
    """
    window, before = losses[-WINDOW:], [loss for loss in losses[:-WINDOW] if math.isfinite(loss)]
    if len(window) < WINDOW or not before:
        return None
    least = min(loss if math.isfinite(loss) else math.inf for loss in window)
    said = f"the loss of each of the last {WINDOW} steps was {least:.2f} nats per token or more"
    if least > max(floor, min(lowest, *before)) + MARGIN:
        return Explosion(True, f"{said}, where guessing every token alike scores {floor:.2f}")
    if len(before) >= BEFORE:
        middle, deviation = _middle_and_deviation(before)
        if least > middle + max(MARGIN, DEVIATIONS * deviation):
            return Explosion(False, f"{said}, where the median of the steps before was {middle:.2f}")
    return None


def ended_above_floor(val_loss: float | None, floors: Mapping[str, float] | None) -> bool:
    """Whether a final validation loss, in nats per token, is clearly above that of guessing every token
    alike, or is no number; False where the floor is not known or there was no validation."""
    uniform = (floors or {}).get("uniform")
    if uniform is None or val_loss is None:
        return False
    return not val_loss <= uniform + FLOOR_MARGIN


def _middle_and_deviation(losses: Sequence[float]) -> tuple[float, float]:
    """The median, and the robust standard deviation; of the losses that are finite."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return math.inf, math.inf
    middle = median(finite)
    return middle, _SIGMA * median(abs(loss - middle) for loss in finite)
