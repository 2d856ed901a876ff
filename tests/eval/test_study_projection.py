"""What sizes foretell and what a gain is worth, held against laws that the simulated losses were made by."""

import math

import numpy as np
import pytest

from eval.statistics.effect import Component, Effect
from eval.studies.findings.projection import BaselineSize, Estimate, project, speed_up

from .study_simulation import LADDER, drawn_speed_up, law


def effect(difference: float, error: float, df: float = 8) -> Effect:
    return Effect(difference, (Component(error**2, df),), seeds=5, documents=1)


def test_a_projection_is_the_weighted_line_through_two_exact_sizes() -> None:
    found = project([(1e15, effect(-0.020, 1e-6)), (1e16, effect(-0.014, 1e-6))], 1e17)
    assert found and found.value == pytest.approx(-0.008, abs=1e-8)
    assert found.high - found.low < 1e-4
    assert project([(1e15, effect(-0.02, 0.001))], 1e17) is None


def test_a_projections_interval_holds_the_truth() -> None:
    generator = np.random.default_rng(3)
    held, draws = 0, 400
    for _ in range(draws):
        points = []
        for flops in LADDER:
            error = 0.001 * math.sqrt(generator.chisquare(8) / 8)
            truth = -0.02 + 0.004 * math.log10(flops / 1e15)
            points.append((flops, effect(truth + 0.001 * generator.standard_normal(), error)))
        found = project(points, 3e17)
        assert found
        held += found.low <= -0.02 + 0.004 * math.log10(300) <= found.high
    assert held >= 0.93 * draws


def test_sizes_off_the_line_widen_the_projection() -> None:
    near = [(flops, effect(-0.01, 0.001)) for flops in LADDER]
    off = [(flops, effect(x, 0.001)) for flops, x in zip(LADDER, (-0.01, 0.02, -0.01), strict=True)]
    one, other = project(near, 3e17), project(off, 3e17)
    assert one and other and (other.high - other.low) > 5 * (one.high - one.low)


@pytest.mark.parametrize(("known", "step_ratio"), [(1.05, 1.0), (1.05, 0.8), (0.9, 1.0)])
def test_a_known_speed_up_is_found_within_its_interval(known: float, step_ratio: float) -> None:
    rng, draws = np.random.default_rng(11), 50
    found = [drawn_speed_up(rng, known, step_ratio, seeds=5, seed_sd=0.001) for _ in range(draws)]
    assert all(one.low < one.value < one.high for one in found)
    assert sum(one.low <= known <= one.high for one in found) >= 0.92 * draws
    assert np.mean([one.value for one in found]) == pytest.approx(known, rel=0.01)


def test_two_sizes_give_a_speed_up_that_is_not_overstated() -> None:
    ladder = [BaselineSize(flops, (law(flops),) * 2) for flops in LADDER[:2]]
    found = speed_up(ladder, LADDER[1], effect(law(LADDER[1] * 1.5) - law(LADDER[1]), 1e-6), [(1.0, 1.0)])
    assert found and 1.2 < found.value <= 1.5
    assert speed_up(ladder[:1], LADDER[0], effect(-0.01, 0.001), [(1.0, 1.0)]) is None


def test_what_came_is_held_against_both_uncertainties() -> None:
    assert Estimate(-0.010, -0.014, -0.006).holds(Estimate(-0.005, -0.009, -0.001))
    assert not Estimate(-0.010, -0.014, -0.006).holds(Estimate(0.002, -0.001, 0.005))
