"""Intervals, corrections and power against formulas, libraries and studies whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from eval.statistics.crossed import effects
from eval.statistics.dunnett import critical_value, within
from eval.statistics.effect import Component, Effect
from eval.statistics.failures import limits, rate_interval
from eval.statistics.power import power, seeds_needed
from eval.statistics.sequences import half_width
from tests.eval.verdict_simulation import NULLS, Cell, looking, study


@pytest.mark.parametrize("df", [1, 3, 20, 1000])
@pytest.mark.parametrize("comparisons", [1, 2, 10])
def test_dunnett_is_the_multivariate_t(df: int, comparisons: int) -> None:
    limit = 2.3
    correlation = 0.5 + 0.5 * np.eye(comparisons)
    expected = 1 - 2 * stats.t.sf(limit, df)
    if comparisons > 1:
        all_below = stats.multivariate_t(shape=correlation, df=df, seed=0)
        edge = np.full(comparisons, limit)
        expected = all_below.cdf(edge, lower_limit=-edge, maxpts=200_000)
    assert within(limit, comparisons, df) == pytest.approx(expected, abs=2e-5)
    assert critical_value(expected, comparisons, df) == pytest.approx(limit, abs=2e-3)
    far_out = critical_value(1 - 1e-6, comparisons, df)
    assert far_out >= (1 - 1e-9) * stats.t.isf(5e-7, df) and math.isfinite(far_out)


def test_two_arms_without_documents_are_the_paired_t_test() -> None:
    candidate, baseline = [5.31, 5.28, 5.35, 5.30], [5.36, 5.35, 5.37, 5.38]
    (effect,) = effects(np.array([baseline, candidate])[:, :, None], np.ones(1))
    theirs = stats.ttest_rel(candidate, baseline)
    assert effect.interval() == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-12)
    assert effect.p_value == pytest.approx(theirs.pvalue, rel=1e-5)
    assert effect.estimate == pytest.approx(-0.055)


def test_one_seed_has_the_interval_of_a_bootstrap_over_documents() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(20, 1500, 400)
    difference = tokens * rng.normal(-0.01, 0.05, 400)
    drawn = rng.integers(0, 400, (5000, 400))
    bootstrap = np.quantile(difference[drawn].sum(1) / tokens[drawn].sum(1), [0.025, 0.975])
    (effect,) = effects(np.array([[0 * difference], [difference]]), tokens)
    assert effect.estimate == pytest.approx(difference.sum() / tokens.sum())
    assert effect.interval() == pytest.approx(bootstrap, abs=0.16 * effect.half_width())


def test_seeds_and_documents_are_the_two_way_table() -> None:
    rng = np.random.default_rng(3)
    seeds, documents, tokens = 4, 6, np.array([10, 20, 30, 40, 50, 60])
    losses = rng.normal(3, 0.1, (2, seeds, documents)) * tokens
    (effect,) = effects(losses, tokens)
    difference = losses[1] - losses[0]
    estimate = difference.sum() / (seeds * tokens.sum())
    r = [[(difference[s, d] - estimate * tokens[d]) * documents / tokens.sum() for d in range(documents)]
         for s in range(seeds)]  # fmt: skip
    of_seed = [sum(row) / documents for row in r]
    of_document = [sum(r[s][d] for s in range(seeds)) / seeds for d in range(documents)]
    ms_seed = documents * sum(x**2 for x in of_seed) / (seeds - 1)
    ms_document = seeds * sum(x**2 for x in of_document) / (documents - 1)
    rest = sum(
        (r[s][d] - of_seed[s] - of_document[d]) ** 2 for s in range(seeds) for d in range(documents)
    ) / ((seeds - 1) * (documents - 1))
    assert effect.estimate == pytest.approx(estimate)
    parts = effect.components
    assert parts[0].variance == pytest.approx(ms_seed / (seeds * documents))
    assert parts[1].variance == pytest.approx(max(ms_document - rest, 0) / (seeds * documents))
    assert parts[0].df == 3 and parts[1].df == pytest.approx(tokens.sum() ** 2 / (tokens**2).sum() - 1)
    half = [stats.t.ppf(0.975, part.df) ** 2 * part.variance for part in parts]
    assert effect.half_width() == pytest.approx(math.sqrt(sum(half)))


def test_arms_that_are_alike_share_their_noise_over_seeds() -> None:
    rng = np.random.default_rng(4)
    losses = 3 + rng.normal(0, 0.1, (1, 3, 1)) + rng.normal(0, 0.002, (5, 3, 1))
    found = effects(losses, np.ones(1))
    apart = losses[:, :, 0] - losses.mean(axis=(1, 2))[:, None] - losses[:, :, 0].mean(axis=0) + losses.mean()
    variance = 2 * (apart**2).sum() / ((5 - 1) * (3 - 1)) / 3
    for effect in found:
        assert effect.is_pooled and effect.standard_error == pytest.approx(math.sqrt(variance))
        assert effect.half_width() == pytest.approx(critical_value(0.95, 4, 8) * math.sqrt(variance))
    losses[3] += np.array([[-0.3], [0.0], [0.3]])
    found = effects(losses, np.ones(1))
    assert not any(effect.is_pooled for effect in found)
    expected = stats.ttest_rel(losses[1, :, 0], losses[0, :, 0]).confidence_interval(1 - 0.05 / 4)
    assert found[0].interval() == pytest.approx(tuple(expected))


def test_no_spread_is_no_certainty() -> None:
    (effect,) = effects(np.array([[3.0, 3.1], [3.0 - 1e-6, 3.1 - 1e-6]])[:, :, None], np.ones(1))
    assert not effect.is_measured and effect.p_value == 1 and effect.half_width() == math.inf
    assert not effect.is_equivalent(0.003)


def test_a_p_value_times_its_comparisons_is_at_most_1() -> None:
    one = Effect(0.0001, (Component(0.001**2, 9),), 10, 1)
    many = replace(one, comparisons=6, is_pooled=False)
    assert one.p_value == pytest.approx(2 * stats.t.sf(0.1, 9), rel=1e-5) and many.p_value == 1
    far = replace(many, estimate=0.003)
    assert far.p_value == pytest.approx(6 * 2 * stats.t.sf(3, 9), rel=1e-5)


def test_equivalence_is_two_one_sided_tests() -> None:
    effect = Effect(0.001, (Component(0.0005**2, 9),), 10, 1)
    below, above = (stats.t.sf((0.003 - sign * 0.001) / 0.0005, 9) for sign in (1, -1))
    assert max(below, above) < 0.05 and effect.is_equivalent(0.003)
    assert not Effect(0.0025, effect.components, 10, 1).is_equivalent(0.003)


def test_power_is_that_of_simulated_studies() -> None:
    rng, shown = np.random.default_rng(5), 0
    for _ in range(400):
        losses = 3 + rng.normal(0, 0.002, (2, 3, 1)) - np.array([0, 0.01])[:, None, None]
        (effect,) = effects(losses, np.ones(1))
        shown += effect.interval()[1] < 0
    assert power(0.01, 3, seed_sd=0.002, document_sd=0) == pytest.approx(shown / 400, abs=0.06)
    of = {"seed_sd": 0.002, "document_sd": 0.0005}
    needed = seeds_needed(0.005, **of)
    assert needed is not None and power(0.005, needed, **of) >= 0.8 > power(0.005, needed - 1, **of)
    assert seeds_needed(0.002, seed_sd=0.002, document_sd=0.003) is None


def test_blow_ups_do_not_move_the_limit_of_their_arm() -> None:
    alike, with_one = [3.200, 3.204, 3.207], [3.199, 3.203, 7.5]
    highest = limits([alike, with_one])
    assert all(loss < highest[0] for loss in alike)
    assert 3.203 < highest[1] < 3.5 < 7.5
    assert rate_interval(0, 3)[1] == pytest.approx(1 - 0.025 ** (1 / 3))


def test_a_sequence_is_the_mixture_martingale() -> None:
    differences = [-0.010, -0.012, -0.009, -0.011, -0.0105, -0.0098]
    half = half_width(differences, 0.0, 0.05)
    n, mean, spread = len(differences), np.mean(differences), np.std(differences, ddof=1)

    def evidence(truth: float) -> float:
        """Of the effect sizes from a normal distribution of variance 10, by quadrature over them."""
        t = math.sqrt(n) * (mean - truth) / spread
        sizes, weights = np.polynomial.hermite_e.hermegauss(150)
        under = stats.nct.pdf(t, n - 1, math.sqrt(10 * n) * sizes)
        return float(weights @ under / math.sqrt(2 * math.pi) / stats.t.pdf(t, n - 1))

    assert evidence(mean + half) == pytest.approx(1 / 0.025, rel=0.02)
    assert half_width(differences[:1], 0.0, 0.05) == math.inf
    wider = half_width(differences, 0.001**2, 0.05)
    assert wider == pytest.approx(half + 0.001 * stats.norm.isf(0.0125))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(("document_sd", "is_heavy"), [(0.0, True), (0.0015, False)])
def test_intervals_hold_the_truth_and_nulls_stay_nulls(
    seeds: int, document_sd: float, is_heavy: bool
) -> None:
    """The short form: its bounds are the long form's, four Monte Carlo errors apart."""
    cell = Cell(seeds, document_sd, is_heavy)
    one, ten = study(cell, 1, 400, seed=seeds), study(cell, NULLS, 100, seed=seeds)
    assert one.covered >= 0.93 - 0.044
    assert ten.false_better <= 0.05 + 0.088
    if seeds == 3:
        assert ten.shown >= 0.90 - 0.12


def test_looking_after_every_seed_fools_nobody() -> None:
    assert looking(Cell(10, 0.0005, True), 40, seed=1) <= 0.05 + 0.14
