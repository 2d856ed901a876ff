"""The learning-rate schedule against values worked out by hand and against torch's own schedulers."""

import math
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from training.schedule import ScheduleConfig, learning_rate

PEAK = 6e-4


def rates(schedule: ScheduleConfig, steps: int) -> list[float]:
    return [learning_rate(step, PEAK, schedule) for step in range(steps)]


def test_the_warm_up_is_linear_and_ends_at_the_peak() -> None:
    schedule = ScheduleConfig(warmup=4, steps=20)
    assert rates(schedule, 4) == pytest.approx([1.5e-4, 3e-4, 4.5e-4, 6e-4], rel=1e-12)


@pytest.mark.parametrize("shape", ["cosine", "wsd"])
def test_without_warm_up_the_first_step_is_at_the_peak(shape: str) -> None:
    schedule = ScheduleConfig(shape=shape, warmup=0, steps=20)  # type: ignore
    assert learning_rate(0, PEAK, schedule) == pytest.approx(PEAK, rel=1e-12)


def test_the_cosine_passes_through_hand_computed_values() -> None:
    schedule = ScheduleConfig(warmup=10, steps=110, floor=0.1)
    by_hand = {
        10: 6e-4,  # the peak again, where the cosine begins
        35: 6e-5 + 5.4e-4 * (2 + math.sqrt(2)) / 4,  # a quarter of the way
        60: 3.3e-4,  # halfway: the mean of peak and floor
        85: 6e-5 + 5.4e-4 * (2 - math.sqrt(2)) / 4,
        110: 6e-5,
    }
    assert {step: learning_rate(step, PEAK, schedule) for step in by_hand} == pytest.approx(
        by_hand, rel=1e-12
    )


@pytest.mark.parametrize(("warmup_steps", "steps", "floor"), [(0, 50, 0.1), (7, 60, 0.0), (250, 400, 0.25)])
def test_after_the_warm_up_the_cosine_is_torchs(warmup_steps: int, steps: int, floor: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    theirs = CosineAnnealingLR(optimizer, T_max=steps - warmup_steps, eta_min=PEAK * floor)
    expected = []
    for _ in range(warmup_steps, steps + 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    schedule = ScheduleConfig(warmup=warmup_steps, steps=steps, floor=floor)
    assert rates(schedule, steps + 1)[warmup_steps:] == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_share_is_rounded_to_steps_of_the_schedule() -> None:
    by_share = ScheduleConfig(warmup=0.04, steps=12030)
    assert rates(by_share, 600) == rates(ScheduleConfig(warmup=481, steps=12030), 600)
    assert by_share.warmup_steps == 481 and ScheduleConfig(warmup=0.29, steps=100).warmup_steps == 29


def test_wsd_is_stable_at_the_peak_and_then_decays_linearly_to_the_floor() -> None:
    schedule = ScheduleConfig(shape="wsd", warmup=10, steps=100, decay_fraction=0.2, floor=0.1)
    values = rates(schedule, 101)
    assert values[9:81] == pytest.approx([PEAK] * 72, rel=1e-12)
    assert values[90] == pytest.approx(3.3e-4, rel=1e-12)
    assert values[100] == pytest.approx(6e-5, rel=1e-12)
    falls = [before - after for before, after in pairwise(values[80:])]
    assert falls == pytest.approx([2.7e-5] * 20, rel=1e-9)  # (6e-4 - 6e-5) / 20


@pytest.mark.parametrize("shape", ["cosine", "wsd"])
def test_past_its_end_a_schedule_stays_at_the_floor(shape: str) -> None:
    schedule = ScheduleConfig(shape=shape, warmup=5, steps=40, floor=0.1)  # type: ignore
    assert rates(schedule, 90)[40:] == pytest.approx([6e-5] * 50, rel=1e-12)


@pytest.mark.parametrize("shape", ["cosine", "wsd"])
def test_after_the_warm_up_the_rate_only_falls_from_peak_to_floor(shape: str) -> None:
    schedule = ScheduleConfig(shape=shape, warmup=5, steps=77, floor=0.1)  # type: ignore
    values = rates(schedule, 78)[4:]
    assert [values[0], values[-1]] == pytest.approx([PEAK, 6e-5], rel=1e-12)
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(values))


def test_a_floor_of_one_keeps_the_peak() -> None:
    values = rates(ScheduleConfig(warmup=0, steps=10, floor=1.0), 15)
    assert values == pytest.approx([PEAK] * 15, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"warmup": -1}, ["schedule.warmup is -1", "at least 0"]),
        ({"warmup": 10, "steps": 10}, ["schedule.steps is 10", "schedule.warmup", "which is 10 steps"]),
        ({"warmup": 2.5}, ["schedule.warmup is 2.5", "whole steps"]),
        ({"decay_fraction": 0.0}, ["schedule.decay_fraction is 0.0", "above 0"]),
        ({"decay_fraction": 1.5}, ["schedule.decay_fraction is 1.5", "at most 1"]),
        ({"floor": -0.1}, ["schedule.floor is -0.1", "at least 0 and at most 1"]),
        ({"floor": 1.1}, ["schedule.floor is 1.1", "at least 0 and at most 1"]),
        ({"floor": math.nan}, ["schedule.floor is nan", "at least 0 and at most 1"]),
    ],
)
def test_an_impossible_schedule_gets_one_sentence(values: dict[str, float], parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        ScheduleConfig(**values)  # type: ignore
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
