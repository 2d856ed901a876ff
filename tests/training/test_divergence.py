"""What losses are taken for, what a policy makes of it, and the batches that a rollback leaves out."""

import json
import math
import random
from dataclasses import asdict

import pytest

from tests.training.steps import step_result
from training.config.recipe import TrainConfig
from training.divergence.batches import PassOver, batch_of_step, passed_before
from training.divergence.losses import WINDOW, ended_above_floor, find_explosion, spike_height
from training.divergence.policy import Verdict, judge, note_loss
from training.state import TrainState

FLOOR = math.log(50257)


def falling(steps: int, seed: int, noise: float = 0.15, start: float = 10.9) -> list[float]:
    """A healthy run: from the floor down to 4 nats per token, with the noise of batches."""
    draws = random.Random(seed)
    return [4 + (start - 4) * math.exp(-step / 60) + draws.gauss(0, noise) for step in range(steps)]


def judged(
    losses: list[float], policy: str, state: TrainState | None = None, applied: bool = True
) -> tuple[list[Verdict], TrainState]:
    """The verdicts on a run of these losses, up to the first, and where it is then."""
    state = state or TrainState()
    for loss in losses:
        result = step_result(loss=loss, applied=applied and math.isfinite(loss))
        state.advance(result)
        note_loss(state, loss)
        verdict, _ = judge(state, result, TrainConfig(on_divergence=policy), FLOOR, searches_scale=False)
        if verdict:
            return [verdict], state
    return [], state


@pytest.mark.parametrize("noise", [0.01, 0.15, 0.6])  # the last as of a batch of a few sequences
def test_healthy_noisy_falling_losses_are_neither(noise: float) -> None:
    for seed in range(20):
        verdicts, state = judged(falling(400, seed, noise), "stop")
        assert (verdicts, state.spikes, state.explosions) == ([], 0, 0)


def test_a_start_far_above_the_floor_that_comes_down_is_healthy() -> None:
    for seed in range(5):
        verdicts, state = judged(falling(300, seed, start=40.0), "stop")
        assert not verdicts and not state.explosions


def test_tiny_runs_at_the_floor_are_nothing() -> None:
    verdicts, state = judged([10.9, 10.95, 10.85, 11.0, 10.9] * 2, "stop")
    assert not verdicts and not state.spikes and not ended_above_floor(11.0, {"uniform": FLOOR})


def test_a_spike_is_counted_once_and_its_height_is_above_the_median() -> None:
    losses = falling(200, 1)
    losses[150:153] = [7.0, 6.8, 6.6]
    verdicts, state = judged(losses, "stop")
    assert (verdicts, state.spikes, state.last_spike, state.explosions) == ([], 1, 153, 0)
    assert spike_height(7.0, [4.0] * 40) == 3.0
    assert spike_height(4.4, [4.0] * 40) is None and spike_height(7.0, [4.0] * 39) is None
    assert spike_height(7.0, [2.0, 6.0] * 20) is None  # such noise is usual here


@pytest.mark.parametrize(
    ("policy", "height", "expected"),
    [
        ("skip", 14.0, "diverged"),  # the whole window is above the floor
        ("skip", 8.0, None),  # it is said and counted
        ("stop", 8.0, "diverged"),
        ("rollback", 8.0, "rollback"),
    ],
)
def test_an_explosion_that_stays_follows_the_policy(policy: str, height: float, expected: str | None) -> None:
    verdicts, state = judged(falling(200, 2) + [height] * 60, policy)
    assert state.explosions == 1
    if expected is None:
        assert not verdicts
    else:
        (verdict,) = verdicts
        assert verdict.rolls_back == (expected == "rollback")
        assert (verdict.first, verdict.step) == (201, 200 + WINDOW)


def test_a_rise_that_comes_back_within_the_window_is_no_explosion() -> None:
    verdicts, state = judged(falling(200, 3) + [14.0] * (WINDOW - 1) + [4.0] * 60, "stop")
    assert not verdicts and state.explosions == 0 and state.spikes == 1


def test_losses_that_are_not_finite_count_as_above() -> None:
    window = [math.nan if at % 3 else 15.0 for at in range(WINDOW)]
    found = find_explosion([4.0] * WINDOW + window, math.inf, FLOOR)
    assert found is not None and found.above_floor


@pytest.mark.parametrize("cut", [30, 205, 240])
def test_a_resumed_run_decides_as_one_in_one_piece(cut: int) -> None:
    losses = falling(200, 4) + [9.0] * 60
    whole, end = judged(losses, "stop")
    _, state = judged(losses[:cut], "stop")
    restored = TrainState(**json.loads(json.dumps(asdict(state), allow_nan=False)))
    resumed, resumed_end = judged(losses[cut:], "stop", restored)
    assert resumed == whole and whole and asdict(resumed_end) == asdict(end)


def test_what_is_not_finite_follows_the_policy() -> None:
    nan = [*falling(30, 5), math.nan]
    assert judged(nan, "skip")[0] == []
    assert judged(nan, "stop")[0][0][:3] == (False, 31, 31)
    assert judged(nan, "rollback")[0][0][:3] == (True, 31, 31)
    assert not judged(nan, "rollback", TrainState(rollbacks=3))[0][0].rolls_back
    (verdict,), _ = judged(falling(30, 5) + [math.nan] * 10, "skip")
    assert (verdict.first, verdict.step) == (31, 40)


def test_a_loss_that_is_not_finite_counts_where_the_weights_moved() -> None:
    state = TrainState()
    for _ in range(2):
        state.advance(step_result(loss=math.nan, applied=True))
    assert (state.skipped_in_a_row, state.skipped_steps) == (2, 0)
    assert step_result().is_finite and not step_result(grad_norm=math.inf).is_finite


def test_skips_that_search_the_loss_scale_are_no_divergence() -> None:
    state, result = TrainState(step=1, skipped_in_a_row=1), step_result(applied=False, grad_norm=math.nan)
    train = TrainConfig(on_divergence="stop")
    assert judge(state, result, train, FLOOR, searches_scale=True) == (None, None)
    assert judge(state, result, train, FLOOR, searches_scale=False)[0] is not None
    assert judge(state, step_result(loss=math.nan), train, FLOOR, searches_scale=True)[0] is not None


def test_steps_take_the_batches_that_are_left() -> None:
    passed = {0, 3, 4, 9}
    left = [batch for batch in range(20) if batch not in passed]
    assert [batch_of_step(step + 1, passed) for step in range(16)] == left
    for step in range(1, 17):
        assert passed_before(step, passed) == [b for b in sorted(passed) if b < left[step - 1]]


class Lanes:
    """Two micro-batches a batch; each moves a lane of its own, four in turn."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.bad = at, {}

    def __next__(self) -> tuple[int, dict[int, int]]:
        self.at += 1
        return self.at - 1, {(self.at - 1) % 4: self.at - 1}


@pytest.mark.parametrize("begin", [0, 1, 3])
def test_passing_over_keeps_the_cursors_of_what_it_leaves_out(begin: int) -> None:
    passed = {0, 3, 4}
    ours, plain = PassOver(Lanes(2 * begin), 2, begin, passed), Lanes(2 * begin)
    cursors: dict[int, int] = {}
    expected: dict[int, int] = {}
    for batch in range(begin, 8):
        for _ in range(2):
            tokens, moved = next(plain)
            expected |= moved
            if batch not in passed:
                mine, moved = next(ours)
                cursors |= moved
                assert mine == tokens
        if batch not in passed:
            assert cursors == expected


@pytest.mark.parametrize(
    ("loss", "floors", "above"),
    [
        (11.2, {"uniform": 10.82}, False),
        (11.4, {"uniform": 10.82}, True),
        (math.nan, {"uniform": 10.82}, True),
        (3.0, {"uniform": 10.82}, False),
        (99.0, {}, False),
        (99.0, None, False),
        (None, {"uniform": 10.82}, False),
    ],
)
def test_a_run_above_its_floor(loss: float | None, floors: dict[str, float] | None, above: bool) -> None:
    assert ended_above_floor(loss, floors) is above


def test_a_validation_that_is_no_number_is_never_the_best() -> None:
    state = TrainState(step=1)
    for step, loss in ((1, math.nan), (2, 3.0), (3, math.nan), (4, 2.0)):
        state.step = step
        state.note_validation(loss, loss)
        assert state.best_step == {1: None, 2: 2, 3: 2, 4: 4}[step]
