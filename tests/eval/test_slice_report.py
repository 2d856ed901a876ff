"""Slices in the report: each bucket's difference to the baseline, with the interval that it should have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.slices.comparison import compare_slices
from eval.statistics.crossed import effects
from tests.eval.cards import card_of
from tests.eval.test_report import page_of

MakeRun = Callable[..., Path]
KINDS = ("position", "frequency", "length")


def slices(seed: int, shift: float = 0.0, high: int = 3) -> pd.DataFrame:
    """40 documents with tokens in two buckets of each kind, each seed with its own noise."""
    tokens = np.random.default_rng(0).integers(5, 50, (len(KINDS), 2, 40))
    noise = np.random.default_rng(seed).standard_normal(tokens.shape)
    rows = [
        (kind, low, 0 if low == 0 else high, document, count, 5 * count + shift * low * count + of_noise)
        for kind, of_kind, noise_of_kind in zip(KINDS, tokens, noise, strict=True)
        for low, counts, of_bucket in zip((0, 1), of_kind, noise_of_kind, strict=True)
        for document, (count, of_noise) in enumerate(zip(counts, of_bucket, strict=True))
    ]
    return pd.DataFrame(rows, columns=["kind", "low", "high", "document", "tokens", "loss"])


def add(run: Path, table: pd.DataFrame) -> Path:
    table.to_parquet(run / "eval" / "step_00000200" / "slices.parquet")
    return run


def bucket_of(table: pd.DataFrame, kind: str, low: int) -> pd.DataFrame:
    return table[(table["kind"] == kind) & (table["low"] == low)]


def test_one_pair_has_intervals_over_the_documents_of_a_bucket(make_run: MakeRun) -> None:
    theirs, ours = slices(1), slices(2, shift=0.1)
    card = card_of(add(make_run("vanilla"), theirs), add(make_run("rmsnorm"), ours))
    found = compare_slices(card)["gpt2"]
    assert len(found) == 2 * 2 * 3 and found[found["name"] == "vanilla"]["difference"].isna().all()
    for row in found[found["name"] == "rmsnorm"].itertuples():
        mine, other = bucket_of(ours, row.kind, row.low), bucket_of(theirs, row.kind, row.low)
        tokens = mine["tokens"].to_numpy()
        difference = mine["loss"].to_numpy() - other["loss"].to_numpy()
        ratio = difference.sum() / tokens.sum()
        # the jackknife is another way to the standard error of a ratio of sums
        without = (difference.sum() - difference) / (tokens.sum() - tokens)
        error = np.sqrt(39 / 40 * ((without - without.mean()) ** 2).sum())
        assert row.tokens == tokens.sum() and row.over == "documents"
        assert row.loss == pytest.approx(mine["loss"].sum() / tokens.sum())
        assert row.difference == pytest.approx(ratio)
        assert (row.interval_high - row.interval_low) / 2 == pytest.approx(
            stats.t.ppf(0.975, 39) * error, rel=0.05
        )


def test_several_pairs_have_intervals_over_seeds_and_documents(make_run: MakeRun) -> None:
    tables = {
        (name, seed): slices(10 * seed + of_name)
        for of_name, name in enumerate(("vanilla", "rmsnorm"))
        for seed in (1, 2, 3)
    }
    found = compare_slices(card_of(*(add(make_run(*key), table) for key, table in tables.items())))["gpt2"]

    for row in found[found["name"] == "rmsnorm"].itertuples():
        of = [
            [bucket_of(tables[name, seed], row.kind, row.low) for seed in (1, 2, 3)]
            for name in ("vanilla", "rmsnorm")
        ]
        tokens = of[0][0]["tokens"].to_numpy()
        losses = np.array([[table["loss"] for table in arm] for arm in of])
        (effect,) = effects(losses, tokens)  # which tests of its own hold to the two-way table
        assert (row.interval_low, row.interval_high) == pytest.approx(effect.interval())
        means = losses.sum(axis=2) / tokens.sum()
        over_seeds = stats.ttest_rel(means[1], means[0]).confidence_interval(0.95)
        assert row.interval_high - row.interval_low >= 0.999 * (over_seeds.high - over_seeds.low)
        assert row.over == "seeds and documents"


def test_what_is_cut_otherwise_is_left_out(make_run: MakeRun) -> None:
    other = slices(2)
    other.loc[other["kind"] == "position", "high"] += 4
    card = card_of(add(make_run("vanilla"), slices(1)), add(make_run("rmsnorm"), other))
    found = compare_slices(card)["gpt2"]
    compared = found[found["difference"].notna()]
    assert set(compared["kind"]) == {"frequency", "length"} and set(compared["name"]) == {"rmsnorm"}
    card = card_of(
        add(make_run("vanilla", 2), slices(1)), add(make_run("rmsnorm", 2, val_fingerprint="other"), other)
    )
    assert compare_slices(card)["gpt2"]["difference"].isna().all()


def test_the_page_has_a_section_where_runs_have_slices(make_run: MakeRun, tmp_path: Path) -> None:
    baseline, candidate = make_run("vanilla"), make_run("rmsnorm", val_loss=5.3)
    title = "Validation loss in slices, against vanilla (negative is better)"
    assert title not in page_of(tmp_path, baseline, candidate).texts
    add(baseline, slices(1))
    page = page_of(tmp_path, baseline, candidate)
    assert title in page.texts and "vanilla, loss" in page.texts
    add(candidate, slices(2, shift=0.1))
    page = page_of(tmp_path, baseline, candidate)
    labels = [attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg"]
    assert "nats per token by position in the block" in labels
    of_bucket = (
        bucket_of(slices(2, shift=0.1), "position", 1)["loss"] - bucket_of(slices(1), "position", 1)["loss"]
    )
    expected = of_bucket.sum() / bucket_of(slices(1), "position", 1)["tokens"].sum()
    assert any(text.startswith(f"{expected:+.4f} [") for text in page.texts)
    assert f"rmsnorm, 1: {expected:+.4f}" in page.texts and "1-3" in page.texts
