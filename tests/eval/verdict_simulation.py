"""Verdicts on designs whose truth is known: do intervals cover it, and how often is nothing called better?

The long form, a line per cell with the Monte Carlo error of each share:

    python -m tests.eval.verdict_simulation --draws 4000
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eval.statistics.crossed import effects
from eval.statistics.sequences import half_width

SEED_SD = 0.002  # nats per token, of one run
NULLS = 10
SEEDS, DOCUMENT_SDS = (2, 3, 5, 10), (0.0, 0.0005, 0.0015, 0.003)
DOCUMENTS = 300
LEFT_OVER = 0.0005  # nats per token: what neither seed nor document explains, in the mean over documents


@dataclass(frozen=True)
class Cell:
    """A kind of study.

    Attributes:
        seeds: of each design.
        document_sd: how far another validation set would move a mean difference, in nats per token.
        is_heavy: whether all noise has heavy tails (Student's t with 4 degrees of freedom), else normal.
    """

    seeds: int
    document_sd: float
    is_heavy: bool

    def losses(self, rng: np.random.Generator, arms: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
        """A study of worthless designs: losses (arms, seeds, documents) in nats, and tokens (documents,)."""

        def noise(*shape: int) -> np.ndarray:
            if self.is_heavy:
                return rng.standard_t(4, shape) / math.sqrt(2)
            return rng.standard_normal(shape)

        tokens = np.ceil(rng.lognormal(6, 1, DOCUMENTS))
        in_mean = math.sqrt((tokens**2).sum()) / tokens.sum()  # of independent documents, by tokens
        shared = 3 + 0.003 * noise(1, seeds, 1) + 0.4 * noise(1, 1, DOCUMENTS)
        own = SEED_SD * noise(arms, seeds, 1)
        of_document = self.document_sd / math.sqrt(2) / in_mean * noise(arms, 1, DOCUMENTS)
        rest = LEFT_OVER / in_mean * noise(arms, seeds, DOCUMENTS)
        return (shared + own + of_document + rest) * tokens, tokens


@dataclass(frozen=True)
class Shares:
    """Of so many studies: whose interval held the truth, which called a worthless design better, and which
    showed a gain of 0.010 nats per token."""

    covered: float
    false_better: float
    shown: float


def study(cell: Cell, designs: int, draws: int, seed: int) -> Shares:
    """Studies of so many worthless designs beside a baseline, and the first one with a gain."""
    rng = np.random.default_rng(seed)
    counts = np.zeros(3)
    for _ in range(draws):
        losses, tokens = cell.losses(rng, designs + 1, cell.seeds)
        found = effects(losses, tokens)
        half = [effect.half_width() for effect in found]
        estimates = [effect.estimate for effect in found]
        counts += (
            abs(estimates[0]) <= half[0],
            any(estimate < -width for estimate, width in zip(estimates, half, strict=True)),
            estimates[0] - 0.010 < -half[0],
        )
    return Shares(*(counts / draws))


def looking(cell: Cell, draws: int, seed: int) -> float:
    """The share of studies of ten worthless designs that call one better at some look: after each seed."""
    rng, fooled = np.random.default_rng(seed), 0
    for _ in range(draws):
        losses, tokens = cell.losses(rng, NULLS + 1, cell.seeds)
        means = losses.sum(axis=2) / tokens.sum()
        differences = means[1:] - means[0]
        fooled += any(
            (so_far.mean(axis=1) + half_width(so_far, cell.document_sd**2, 0.05 / NULLS) < 0).any()
            for so_far in (differences[:, :seeds] for seeds in range(2, cell.seeds + 1))
        )
    return fooled / draws


def all_cells() -> Iterator[Cell]:
    """Every kind of study."""
    for seeds, sd, is_heavy in itertools.product(SEEDS, DOCUMENT_SDS, (False, True)):
        yield Cell(seeds, sd, is_heavy)


def main() -> None:
    """Print a line per cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=4000, metavar="N", help="studies per cell")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="S", help="of each design")
    options = parser.parse_args()
    draws = options.draws
    error = math.sqrt(0.05 * 0.95 / draws)
    print(f"{draws:,} studies per cell; a share of 5 % has a Monte Carlo error of {error:.2%}")
    print(
        "seeds  document sd  tails   covered  better of 10 nulls  at any look  -0.010 shown, 1 and 10 designs"
    )
    for number, cell in enumerate(all_cells()):
        if cell.seeds not in options.seeds:
            continue
        one, ten = (study(cell, designs, draws, number) for designs in (1, NULLS))
        looks = looking(cell, draws, number)
        tails = "heavy" if cell.is_heavy else "normal"
        print(
            f"{cell.seeds:>5}{cell.document_sd:>13g}  {tails:<6}{one.covered:>9.1%}{ten.false_better:>20.1%}"
            f"{looks:>13.1%}{one.shown:>16.1%}{ten.shown:>8.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
