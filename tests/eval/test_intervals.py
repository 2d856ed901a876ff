"""Intervals and corrections against independent computations."""

import numpy as np
import pytest
from scipy import stats

from eval.evidence.intervals import Interval, holm, paired_interval


def test_interval_over_seeds_is_the_paired_t_interval() -> None:
    candidate, baseline = [5.31, 5.28, 5.35, 5.30], [5.36, 5.35, 5.37, 5.38]
    ours = paired_interval(np.subtract(candidate, baseline))
    theirs = stats.ttest_rel(candidate, baseline)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-12)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-12)
    assert ours.difference == pytest.approx(-0.055)


def test_interval_over_documents_agrees_with_a_bootstrap() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(20, 1500, 400)
    difference = tokens * rng.normal(-0.01, 0.05, 400)
    drawn = rng.integers(0, 400, (5000, 400))
    bootstrap = np.quantile(difference[drawn].sum(1) / tokens[drawn].sum(1), [0.025, 0.975])
    ours = paired_interval(difference, tokens)
    assert ours.difference == pytest.approx(difference.sum() / tokens.sum())
    assert (ours.low, ours.high) == pytest.approx(bootstrap, abs=0.08 * (ours.high - ours.low))


def test_interval_over_documents_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        tokens = np.ceil(rng.lognormal(6, 1, 150))
        ours = paired_interval(tokens * rng.normal(0.02, 0.1, 150), tokens)
        covered += ours.low <= 0.02 <= ours.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_identical_pairs_are_no_difference() -> None:
    assert paired_interval([0.0, 0.0]) == Interval(difference=0, low=0, high=0, p_value=1, n=2)


def test_holm_is_the_textbook_procedure() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
