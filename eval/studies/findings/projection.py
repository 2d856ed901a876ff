"""What a difference is expected to be at a larger size, and what a gain is worth in compute and time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...statistics.effect import Component, Effect

DRAWS = 2000
"""Of the interval of a speed-up: its ends are right to a few percent of its width."""
LARGEST = 100.0
"""A speed-up beyond this says only that the baseline's fit does not reach the loss."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def holds(self, other: "Estimate") -> bool:
        """Whether another estimate of the same lies within what both are uncertain by."""
        apart = abs(self.value - other.value)
        mine, its = ((one.high - one.low) / 2 for one in (self, other))
        return apart <= math.hypot(mine, its)


def project(points: Sequence[tuple[float, Effect]], flops: float, level: float = 0.95) -> Estimate | None:
    """The difference at a size, from those at smaller ones: a line against the logarithm of FLOPs.

    Weighted by the variance of each difference. Where three or more points lie farther from the line than
    their noise explains, the interval is widened by as much (Birge 1932, Phys. Rev. 40, 207-227); what all
    sizes owe to the shared documents is counted as independent, which is too wide for a projection upward.
    None with fewer than two measured sizes.

    Args:
        points: the FLOPs of a run of the baseline at each size, and the difference there.
        flops: of a run at the size in question.
        level: of the interval.
    """
    points = [(at, effect) for at, effect in points if effect.is_measured]
    if len({at for at, _ in points}) < 2:
        return None
    x = np.log([at for at, _ in points])
    y = np.array([effect.estimate for _, effect in points])
    weights = np.array([1 / effect.standard_error**2 for _, effect in points])
    terms = np.stack([np.ones_like(x), x], axis=1)
    inverse = np.linalg.inv(terms.T @ (weights[:, None] * terms))
    # What each point adds to the projection, whose variance is then a sum of theirs.
    share = np.array([1, math.log(flops)]) @ inverse @ terms.T * weights
    left = y - terms @ (inverse @ terms.T @ (weights * y))
    df = len(x) - 2
    widened = max(1.0, float(weights @ left**2) / df) if df else 1.0
    parts = [
        Component(widened * float(part) ** 2 * component.variance, component.df)
        for part, (_, effect) in zip(share, points, strict=True)
        for component in effect.components
    ]
    first = points[0][1]
    projected = Effect(float(share @ y), tuple(parts), first.seeds, first.documents)
    return Estimate(projected.estimate, *projected.interval(level))


@dataclass(frozen=True)
class BaselineSize:
    """The baseline at a size: FLOPs of a run, the losses of its seeds in nats per token."""

    flops: float
    losses: tuple[float, ...]


def speed_up(
    ladder: Sequence[BaselineSize],
    flops: float,
    difference: Effect,
    step_times: Sequence[tuple[float, float]],
    level: float = 0.95,
) -> Estimate | None:
    """How many times as fast a design comes to its loss as the baseline would.

    The compute that the baseline needs for the design's loss, by a power law E + A C^-alpha through its
    losses over a ladder of sizes (Kaplan et al. 2020, arXiv 2001.08361; Hoffmann et al. 2022, arXiv
    2203.15556), in units of its own compute, times the ratio of step times. With two sizes E is 0, which
    overstates what the baseline gains from compute and so understates the speed-up. The interval is that of
    draws from the noise of all three: the ladder's seeds, the difference, the step times.

    Args:
        ladder: the baseline over sizes; with fewer than two there is no estimate.
        flops: of a run of the baseline at the size in question.
        difference: of the design there, nats per token.
        step_times: (baseline's, design's) seconds per step of runs with the same seed.
        level: of the interval.
    """
    ladder = sorted(ladder, key=lambda one: one.flops)
    if len({one.flops for one in ladder}) < 2 or not step_times or not difference.is_measured:
        return None
    generator = np.random.default_rng(0)
    x = np.log([one.flops for one in ladder]) - math.log(flops)
    means = np.array([np.mean(one.losses) for one in ladder])
    counts = np.array([len(one.losses) for one in ladder])
    # Few seeds say little of each size's spread: it is taken as one for all sizes.
    df = int((counts - 1).sum())
    apart = [value - np.mean(one.losses) for one in ladder for value in one.losses]
    spread = math.sqrt(np.sum(np.square(apart)) / df) if df else 0.0
    noise = generator.standard_t(max(df, 1), (DRAWS, len(x))) * spread / np.sqrt(counts)
    drawn = np.vstack([means, means + noise])
    gains = np.full(DRAWS + 1, difference.estimate)
    for part in difference.components:
        if part.df > 0:
            gains[1:] += generator.standard_t(part.df, DRAWS) * math.sqrt(part.variance)
    ratios = np.log([its / mine for its, mine in step_times])
    speeds = np.full(DRAWS + 1, ratios.mean())
    if len(ratios) > 1:
        error = ratios.std(ddof=1) / math.sqrt(len(ratios))
        speeds[1:] += generator.standard_t(len(ratios) - 1, DRAWS) * error
    compute = _log_compute(x, drawn, gains)
    values = np.exp(np.clip(compute + speeds, -math.log(LARGEST), math.log(LARGEST)))
    tail = (1 - level) / 2
    return Estimate(
        float(values[0]), float(np.quantile(values[1:], tail)), float(np.quantile(values[1:], 1 - tail))
    )


def _log_compute(x: np.ndarray, losses: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The logarithm of the compute at which fits of the baseline come to its loss at x = 0 plus a difference.

    Args:
        x: (sizes,) logarithms of compute.
        losses: (draws, sizes).
        gains: (draws,) differences.
    """
    shares = np.array([0.0]) if len(x) == 2 else np.linspace(0, 0.98, 50)
    floors = shares[:, None] * losses.min(axis=1)  # (floors, draws)
    y = np.log(losses[None] - floors[..., None])
    centred = x - x.mean()
    slope = (y @ centred) / (centred @ centred)
    at = y.mean(axis=2) - slope * x.mean()
    error = np.square(np.exp(at[..., None] + slope[..., None] * x) + floors[..., None] - losses[None]).sum(
        axis=2
    )
    best = error.argmin(axis=0)
    draws = np.arange(len(losses))
    slope, at = slope[best, draws], at[best, draws]
    here = np.exp(at)  # above the floor
    wanted = np.maximum(here + gains, 1e-12)
    slope = np.minimum(slope, -1e-6)
    return np.clip(np.log(wanted / here) / slope, -50, 50)
