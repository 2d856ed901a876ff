"""Studies of designs whose truth is known: worthless ones with other best rates, and a known speed-up.

The long form of two tests, a line per cell; shares have a Monte Carlo error of sqrt(p (1 - p) / draws):

    python -m tests.eval.study_simulation --draws 4000
"""

import argparse
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eval.statistics.effect import Component, Effect
from eval.studies.findings.projection import BaselineSize, Estimate, speed_up
from eval.studies.findings.verdicts import judge_size
from eval.studies.plan import Cell, Plan

from .studied import THREE_RATES, Loss, make_files, plan_of, simulate

SEED_SD = 0.002  # nats per token, of one run
LADDER = (1e15, 6e15, 3e16)  # FLOPs of a run of the baseline
OPTIMA = {"design's at 2x": (2.0, 1.0), "baseline's at 2x": (1.0, 2.0), "both at 1x": (1.0, 1.0)}


def losses(draw: int, optima: tuple[float, float]) -> Loss:
    """Of two designs that are equal, each at its own optimum: a parabola in the logarithm of the rate."""
    optimum = dict(zip(("rmsnorm", "vanilla"), optima, strict=True))

    def loss(cell: Cell) -> float:
        off = math.log2(float(cell.rate.removesuffix("x")) / optimum[cell.design])
        noise = np.random.default_rng([draw, *cell.name.encode()]).standard_normal()
        return 3.3 + 0.02 * off**2 + SEED_SD * float(noise)

    return loss


def words(plan: Plan, loss: Loss) -> list[str]:
    """The verdicts at the shared rate and at each one's best."""
    return [verdict.word for verdict in judge_size(plan, simulate(plan, loss), "recipe", {"recipe": 1})]


def law(flops: float) -> float:
    """The baseline's loss, in nats per token."""
    return 1.8 + 1.9 * (flops / 1e15) ** -0.12


def drawn_speed_up(
    rng: np.random.Generator, known: float, step_ratio: float, seeds: int, seed_sd: float
) -> Estimate:
    """The estimate for a design that has the loss that the baseline has with known / step_ratio times the
    compute, and steps that take 1 / step_ratio times as long."""
    ladder = [
        BaselineSize(flops, tuple(law(flops) + seed_sd * rng.standard_normal(seeds))) for flops in LADDER
    ]
    df, error = 2 * (seeds - 1), seed_sd * math.sqrt(2 / seeds)
    gain = law(LADDER[2] * known / step_ratio) - law(LADDER[2]) + error * rng.standard_normal()
    effect = Effect(float(gain), (Component(error**2 * rng.chisquare(df) / df, df),), seeds, 1)
    times = [(0.5, 0.5 / step_ratio * (1 + 0.002 * rng.standard_normal())) for _ in range(seeds)]
    found = speed_up(ladder, LADDER[2], effect, times)
    assert found is not None
    return found


def long_form(draws: int) -> Iterator[str]:
    """A line for each cell."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder))
        for seeds in (3, 5):
            plan = plan_of(files, seeds=list(range(1, seeds + 1)), **THREE_RATES)
            for name, optima in OPTIMA.items():
                found = [words(plan, losses(draw, optima)) for draw in range(draws)]
                at_best = sum(best == "better" for _, best in found) / draws
                both = sum(shared == best == "better" for shared, best in found) / draws
                yield f"{seeds} seeds, {name}: better at the best rates {at_best:.4f}, at both {both:.4f}"
    rng = np.random.default_rng(0)
    for seeds in (3, 5):
        for seed_sd in (0.001, 0.003):
            estimates = [drawn_speed_up(rng, 1.05, 1.0, seeds, seed_sd) for _ in range(draws // 4)]
            held = np.mean([one.low <= 1.05 <= one.high for one in estimates])
            width = np.median([one.high - one.low for one in estimates])
            cell = f"speed-up of 1.05, {seeds} seeds, sd {seed_sd:g}"
            yield f"{cell}: held {held:.4f}, median width {width:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.eval.study_simulation")
    parser.add_argument("--draws", type=int, default=4000, metavar="N", help="studies per cell")
    for line in long_form(parser.parse_args().draws):
        print(line, flush=True)
