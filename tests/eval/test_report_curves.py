"""The report's charts of losses and differences: their values against formulas, their ranges, their sizes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.page.curves.logged import hours_at, late, padded, thin
from tests.eval.cards import card_of, documents, score_of
from tests.eval.pages import Page, logged, page_of, rewrite

MakeRun = Callable[..., Path]
TOKENS = 8192


def shifted(run: Path, shift: Callable[[int], float]) -> Path:
    """A run whose training losses are those of its seed, and as much more as each step says."""
    rewrite(run, [line | {"loss": line["loss"] + shift(line["step"])} for line in logged(run)])
    return run


def means(page: Page, name: str, chart: str = "difference-1") -> dict[str, list]:
    (mean,) = [
        trace
        for trace in page.traces(chart, legendgroup=name, mode="lines")
        if trace.get("hoverinfo") != "skip"
    ]
    return mean


def test_difference_is_the_mean_over_seeds_with_its_t_interval(make_run: MakeRun, tmp_path: Path) -> None:
    """Runs of one seed have the same noise here, so each seed's difference is what the test adds to it."""
    shifts = {1: -0.10, 2: -0.16, 3: -0.13}
    runs = [make_run("vanilla", seed, val_loss=5.0) for seed in shifts]
    runs += [
        shifted(make_run("rmsnorm", seed, val_loss=5.0), lambda step, seed=seed: shifts[seed])
        for seed in shifts
    ]
    page = page_of(tmp_path, *runs)
    mean = means(page, "rmsnorm")
    assert mean["x"] == [TOKENS * step for step in range(1, 201)]
    assert mean["y"] == pytest.approx([-0.13] * 200, abs=1e-6)
    half = stats.t.ppf(0.975, 2) * np.std([-0.10, -0.16, -0.13], ddof=1) / np.sqrt(3)
    assert mean["customdata"][57] == pytest.approx([-0.13 - half, -0.13 + half], rel=1e-4)
    (band,) = page.traces("difference-1", fill="toself")
    assert max(band["y"]) == pytest.approx(-0.13 + half, rel=1e-4) and len(band["x"]) == 400
    seeds = [trace["y"][0] for trace in page.traces("difference-1", mode="lines", opacity=0.5)]
    assert sorted(seeds) == pytest.approx(sorted(shifts.values()), abs=1e-6)
    (dots,) = page.traces("difference-1", mode="markers")
    assert dots["x"] == [TOKENS * step for step in (50, 100, 150, 200)]
    assert dots["y"] == pytest.approx([-0.13] * 4, abs=1e-6)


def test_one_seed_has_no_band(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run("vanilla", val_loss=5.4), make_run("rmsnorm", val_loss=5.3))
    assert not page.traces("difference-1", fill="toself")
    mean = means(page, "rmsnorm")
    assert mean["y"] == pytest.approx([-0.1] * 200, rel=1e-4) and "one seed" in mean["hovertemplate"]


def test_a_diverged_seed_counts_in_no_mean_and_no_range(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("vanilla", seed, val_loss=5.0) for seed in (1, 2)]
    broken = make_run("rmsnorm", 2, val_loss=5.0, status="diverged")
    runs += [make_run("rmsnorm", 1, val_loss=5.01), shifted(broken, lambda step: 8.0 if step > 150 else 0.0)]
    page = page_of(tmp_path, *runs)
    assert means(page, "rmsnorm")["y"] == pytest.approx([0.01] * 200, rel=1e-3)
    low, high = page.charts["difference-1"]["layout"]["yaxis"]["range"]
    assert -0.02 < low < 0 and 0.01 < high < 0.03
    assert page.charts["loss-1"]["layout"]["yaxis"]["range"][1] < 6


def test_a_short_spike_does_not_flatten_the_differences(make_run: MakeRun, tmp_path: Path) -> None:
    spiked = shifted(make_run("rmsnorm", val_loss=5.0), lambda step: 3.0 if step == 120 else 0.02)
    page = page_of(tmp_path, make_run("vanilla", val_loss=5.0), spiked)
    _, high = page.charts["difference-1"]["layout"]["yaxis"]["range"]
    assert high < 0.1 and max(means(page, "rmsnorm")["y"]) > 1
    (mark,) = page.traces("loss-1", legendgroup="rmsnorm", hovertemplate="spike of %{customdata:+.2f} nats")
    assert mark["x"] == [120 * TOKENS] and mark["customdata"][0] == pytest.approx(3, abs=0.5)


def test_loss_is_smoothed_and_its_range_is_the_late_parts(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("vanilla", val_loss=3.0)
    page = page_of(tmp_path, run)
    raw = pd.Series([line["loss"] for line in logged(run) if line["kind"] == "train"])
    smoothed = [raw[max(0, n - 2) : n].mean() for n in range(1, 201)]  # over two: 200 / 100
    (line,) = page.traces("loss-1", mode="lines")
    assert line["y"] == pytest.approx(smoothed, rel=1e-5)
    low, high = page.charts["loss-1"]["layout"]["yaxis"]["range"]
    late_part = smoothed[100:] + [line["loss"] for line in logged(run) if line["kind"] == "val"][2:]
    margin = 0.06 * (max(late_part) - min(late_part))
    assert low == pytest.approx(min(late_part) - margin, rel=1e-3)
    assert high == pytest.approx(max(late_part) + margin, rel=1e-3)
    floors = {trace["text"][1]: trace["y"] for trace in page.traces("loss-1", mode="lines+text")}
    assert floors == {"uniform 10.82": [10.825, 10.825], "unigram 7.31": [7.31, 7.31]}


def test_hours_are_tokens_over_the_logged_speed(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("vanilla")
    lines = [line | {"tokens_per_s": 9000.0 if line["step"] <= 100 else 4500.0} for line in logged(run)]
    rewrite(run, [line for line in lines if line["kind"] == "train" or line.pop("tokens_per_s")])
    page = page_of(tmp_path, run)
    axes = page.charts["loss-1"]["axes"]
    assert list(axes) == ["tokens", "hours of training"] and axes["tokens"] is None
    # The first step compiles, and counts as the median one: 1 of 100 slow ones among the other 199.
    steps = 2 + 99 + 2 * 100
    assert axes["hours of training"][0][-1] == pytest.approx(steps * TOKENS / 9000 / 3600, rel=1e-4)
    record = card_of(run).runs["record"].iloc[0]
    assert hours_at(record, [50.5 * TOKENS]) == pytest.approx([51.5 * TOKENS / 9000 / 3600])


def test_runs_without_a_logged_speed_have_no_hours(make_run: MakeRun, tmp_path: Path) -> None:
    slow = make_run("rmsnorm")
    rewrite(slow, [{key: of[key] for key in of if key != "tokens_per_s"} for of in logged(slow)])
    assert page_of(tmp_path, make_run("vanilla"), slow).charts["loss-1"]["axes"] == {}


def test_tokenizers_share_a_chart_in_bits_per_byte_only(make_run: MakeRun, tmp_path: Path) -> None:
    other = {"tokenizer": "bytes", "val_fingerprint": "77b0", "val_loss": 1.2, "val_bits_per_byte": 1.73}
    floors = {"uniform": 5.549, "unigram": 3.1}
    folders = [make_run("vanilla"), make_run("vanilla", folder="bytes", floors=floors, **other)]
    page = page_of(tmp_path, *folders)
    losses = [name for name in page.charts if name in ("loss-1", "loss-2", "loss-bits")]
    assert losses == ["loss-1", "loss-2", "loss-bits"]
    assert [len(page.traces(name, name="vanilla bytes, seed 1")) > 0 for name in losses] == [
        False,
        True,
        True,
    ]
    assert page.traces("loss-2", text=["", "uniform 5.55"]) and not page.traces(
        "loss-1", text=["", "uniform 5.55"]
    )
    (bits,) = page.traces("loss-bits", name="vanilla gpt2, seed 1")
    assert bits["y"][-1] == pytest.approx(0.32 * 5.4, rel=0.05) and len(bits["y"]) == 4


def test_forest_has_each_interval_in_words_and_where_it_lies(make_run: MakeRun, tmp_path: Path) -> None:
    shift = {"vanilla": 0.0, "rmsnorm": -0.2, "post": 0.3}
    folders = [
        make_run(name, seed, val_loss=5 + shift[name], documents=documents(10 * seed + number, shift[name]))
        for number, name in enumerate(shift)
        for seed in (1, 2)
    ]
    page, card = page_of(tmp_path, *folders), card_of(*folders)
    said = [note["text"] for note in page.charts["forest"]["layout"]["annotations"]]
    assert {"← better", "worse →"} <= set(said)
    for name in ("rmsnorm", "post"):
        score = score_of(card, name, "val_loss")
        line, dot = page.traces("forest", name=name)
        assert line["x"] == pytest.approx([score["low"], score["high"]], rel=1e-5)
        assert dot["x"] == pytest.approx([score["difference"]], rel=1e-5) and line["line"]["dash"] == "solid"
        words = f"{score['difference']:+.4f} [{score['low']:+.4f}, {score['high']:+.4f}]"
        assert f"<b>{name}</b><br>{words}" in said
        (about,) = [attrs["aria-label"] for _, attrs in page.tags if attrs.get("data-chart") == "forest"]
        assert f"{name} {words}" in about
    assert page.charts["forest"]["layout"]["xaxis"]["fixedrange"] is True


def test_thinning_keeps_spikes_and_ends() -> None:
    values = pd.Series(np.random.default_rng(0).random(50_000))
    values.iloc[31_234] = 40.0
    thinned = thin(values, most=1000)
    assert len(thinned) <= 1000 and thinned.max() == 40.0
    assert (thinned.index[0], thinned.index[-1]) == (0, 49_999)
    assert thinned.index.is_monotonic_increasing


def test_late_parts_and_ranges() -> None:
    long, short = pd.Series(1.0, range(101)), pd.Series(2.0, range(41))
    assert late([long, short], 0.5).value_counts().to_dict() == {1.0: 50, 2.0: 20}
    assert padded(pd.Series([1.0, 1.0]), 0.02) == pytest.approx([0.99, 1.01])
    assert padded(pd.Series([0.0, 1.0]), 0.02) == pytest.approx([-0.06, 1.06])
