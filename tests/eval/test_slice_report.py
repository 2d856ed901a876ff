"""Slices in the report: each bucket's difference to the baseline, with the interval that it should have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.page.blocks import Chart, Table
from eval.slices.comparison import compare_slices
from eval.slices.section import slice_sections
from eval.statistics.crossed import effects
from tests.eval.cards import card_of

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


def test_a_section_has_a_table_and_a_chart_of_each_kind(make_run: MakeRun) -> None:
    baseline, candidate = make_run("vanilla"), make_run("rmsnorm", val_loss=5.3)
    assert slice_sections(card_of(baseline, candidate)) == []
    add(baseline, slices(1))
    (section,) = slice_sections(card_of(baseline, candidate))
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert len(tables) == 3 and not any(isinstance(block, Chart) for block in section.blocks)
    assert all(list(table.rows) == ["values", "tokens", "vanilla, loss"] for table in tables)

    theirs, ours = slices(1), slices(2, shift=0.1)
    add(candidate, ours)
    (section,) = slice_sections(card_of(baseline, candidate))
    charts = [block for block in section.blocks if isinstance(block, Chart)]
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert section.title == "Validation loss in slices, against vanilla (negative is better)"
    assert "position in the block" in charts[0].title and "nats per token" in charts[0].title
    for kind, chart, table in zip(KINDS, charts, tables, strict=True):
        assert list(table.rows["values"]) == ["0", "1-3"]
        (trace,) = chart.figure.data
        assert list(trace.x) == ["0", "1-3"] and trace.name == "rmsnorm"
        assert trace.marker.color == "var(--c1)" and set(trace.marker.symbol) == {"circle-open"}
        for place, low in enumerate((0, 1)):
            mine, other = bucket_of(ours, kind, low), bucket_of(theirs, kind, low)
            expected = (mine["loss"].sum() - other["loss"].sum()) / mine["tokens"].sum()
            assert trace.y[place] == pytest.approx(expected, rel=1e-3)
            text = table.rows["rmsnorm"].iloc[place]
            interval = text.removeprefix(f"{expected:+.4f} [").removesuffix("]").split(", ")
            ends = (
                trace.y[place] - trace.error_y.arrayminus[place],
                trace.y[place] + trace.error_y.array[place],
            )
            assert [float(end) for end in interval] == pytest.approx(ends, abs=2e-4)


def test_marks_are_filled_where_their_interval_is_over_seeds(make_run: MakeRun) -> None:
    runs = [
        add(make_run(name, seed), slices(10 * seed + of_name))
        for of_name, name in enumerate(("vanilla", "rmsnorm"))
        for seed in (1, 2, 3)
    ]
    (section,) = slice_sections(card_of(*runs))
    traces = [trace for block in section.blocks if isinstance(block, Chart) for trace in block.figure.data]
    assert len(traces) == 3 and all(set(trace.marker.symbol) == {"circle"} for trace in traces)


def test_each_tokenizer_has_slices_of_its_own(make_run: MakeRun) -> None:
    other = {"tokenizer": "bytes", "val_fingerprint": "77b0"}
    runs = [add(make_run("vanilla"), slices(1)), add(make_run("vanilla", folder="b", **other), slices(2))]
    sections = slice_sections(card_of(*runs))
    assert [section.title.rpartition(", ")[2] for section in sections] == [
        "tokenizer gpt2",
        "tokenizer bytes",
    ]
    assert len({section.id for section in sections}) == 2
