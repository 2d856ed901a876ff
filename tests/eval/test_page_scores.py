"""The page's sections of scores: designs by tasks, their strips, every metric of every run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.evidence.comparison import Scorecard
from eval.page.blocks import Chart, Section, Table
from eval.page.scores import all_scores_section, evaluation_section, losses_section
from tests.eval.cards import card_of

MakeRun = Callable[..., Path]
ITEMS = 400


def scored(make_run: MakeRun, variant: str, seed: int, share: float, **tasks: dict[str, float]) -> Path:
    """A run with PIQA's items, of which about `share` are right, and the scores of other tasks."""
    right = (np.random.default_rng(seed * 100 + len(variant)).random(ITEMS) < share).astype(float)
    items = pd.DataFrame(
        {"task": "piqa", "doc_id": range(ITEMS), "metric": "acc", "value": right, "weight": 1.0}
    )
    piqa = {"acc": right.mean(), "acc_stderr": right.std() / ITEMS**0.5, "acc_norm": 0.5}
    return make_run(variant, seed, items=items, tasks={"piqa": piqa, **tasks})


def rows_of(section: Section, title: str = "") -> pd.DataFrame:
    """A table of the section, by its first column."""
    found = next(block for block in section.blocks if isinstance(block, Table) and block.title == title)
    return found.rows.set_index(found.rows.columns[0])


def chart_of(section: Section) -> Chart:
    return next(block for block in section.blocks if isinstance(block, Chart))


def two_designs(make_run: MakeRun) -> Scorecard:
    runs = [scored(make_run, name, seed, share) for name, share in (("vanilla", 0.5), ("rmsnorm", 0.8))
            for seed in (1, 2, 3)]  # fmt: skip
    return card_of(*runs)


def test_a_cell_is_the_mean_over_the_difference(make_run: MakeRun) -> None:
    """With three pairs of seeds; the estimate is that of the items' means, by pandas alone."""
    card = two_designs(make_run)
    means = {
        name: 100 * np.mean([record.items["value"].mean() for record in group["record"]])
        for name, group in card.runs.groupby("name")
    }
    table = rows_of(evaluation_section(card))
    assert [*table.index] == ["vanilla (baseline)", "rmsnorm"] and [*table] == ["PIQA %"]
    assert table.loc["vanilla (baseline)", "PIQA %"].startswith(f"{means['vanilla']:.2f} ± ")
    mean, below = table.loc["rmsnorm", "PIQA %"].split("\n")
    low, high = map(float, below.partition(" [")[2].rstrip("]").split(", "))
    assert mean == f"{means['rmsnorm']:.2f}"
    assert below.startswith(f"{means['rmsnorm'] - means['vanilla']:+.2f} [") and low < 30 < high


def test_a_pair_of_one_seed_has_the_t_interval_of_its_items(make_run: MakeRun) -> None:
    card = card_of(scored(make_run, "vanilla", 1, 0.5), scored(make_run, "rmsnorm", 1, 0.6))
    vanilla, rmsnorm = (
        card.runs.set_index("name").loc[name, "record"].items["value"] for name in ("vanilla", "rmsnorm")
    )
    interval = stats.ttest_rel(100 * rmsnorm, 100 * vanilla).confidence_interval(0.95)
    cell = rows_of(evaluation_section(card)).loc["rmsnorm", "PIQA %"]
    low, high = map(float, cell.partition("[")[2].rstrip("]").split(", "))
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.02)
    (trace,) = chart_of(evaluation_section(card)).figure.data
    assert trace.x == pytest.approx([interval.low, 100 * (rmsnorm - vanilla).mean(), interval.high], abs=0.02)
    assert trace.line.dash != "solid" and f"over {ITEMS} items of 1 seed" in trace.hovertext


def test_each_task_has_its_main_metric_and_no_part_of_a_group(make_run: MakeRun) -> None:
    own = {"exact": {"bleu": 3.0, "exact_match": 0.25}, "sea": {"acc": 0.5}, "sea_tides": {"acc": 0.5}}
    run = scored(make_run, "vanilla", 1, 0.5, hellaswag={"acc": 0.3, "acc_norm": 0.4}, **own)
    card = card_of(run)
    assert {"exact exact_match %", "sea_tides acc %"} < {*rows_of(evaluation_section(card))}
    file = run / "eval" / "step_00000200" / "results.json"
    file.write_text(
        file.read_text().replace('"n-samples"', '"group_subtasks": {"sea": ["sea_tides"]}, "n-samples"')
    )
    columns = [*rows_of(evaluation_section(card_of(run)))]
    assert columns == ["HellaSwag %", "PIQA %", "exact exact_match %", "sea acc %"]


def test_strips_share_colours_and_hold_zero_and_every_dot(make_run: MakeRun) -> None:
    chart = chart_of(evaluation_section(two_designs(make_run)))
    (trace,) = chart.figure.data
    low, high = chart.figure.layout.xaxis.range
    assert trace.line.color == trace.marker.color == "var(--c1)" and trace.line.dash == "solid"
    assert low < 0 < trace.x[1] < high
    assert "PIQA (points, right is better)" in [title.text for title in chart.figure.layout.annotations]


def test_an_interval_far_wider_than_others_does_not_flatten_them(make_run: MakeRun) -> None:
    """Two seeds against three: Student's t at one degree of freedom is 12.7."""
    shares = {"vanilla": (0.5, 0.5, 0.5), "rmsnorm": (0.55, 0.56, 0.54), "lns": (0.3, 0.9)}
    runs = [
        scored(make_run, name, seed, share) for name, of in shares.items() for seed, share in enumerate(of, 1)
    ]
    chart = chart_of(evaluation_section(card_of(*runs)))
    by_name = {trace.name: trace.x for trace in chart.figure.data}
    low, high = chart.figure.layout.xaxis.range
    assert (
        by_name["lns"][0] < low < by_name["rmsnorm"][0] and by_name["rmsnorm"][2] < high < by_name["lns"][2]
    )


def test_names_are_no_markup_in_a_chart(make_run: MakeRun) -> None:
    runs = [scored(make_run, "vanilla", 1, 0.5), scored(make_run, "<b>mine</b>", 1, 0.6)]
    (trace,) = chart_of(evaluation_section(card_of(*runs))).figure.data
    for text in (trace.name, trace.hovertext, trace.y[0]):
        assert "<b>" not in text and "&lt;b&gt;mine" in text


def test_validation_losses_are_means_with_their_deviation(make_run: MakeRun) -> None:
    losses = {"vanilla": [5.41, 5.40, 5.45], "rmsnorm": [5.31, 5.35, 5.33]}
    runs = [
        make_run(name, seed, val_loss=loss) for name, of in losses.items() for seed, loss in enumerate(of, 1)
    ]
    section = losses_section(card_of(*runs))
    table = rows_of(section)
    assert [*table.index] == ["vanilla (baseline)", "rmsnorm"]
    for name, row in zip(losses, table.itertuples(), strict=True):
        of_name = pd.Series(losses[name])
        assert row[1:] == (
            f"{of_name.mean():.4f}",
            f"{0.32 * of_name.mean():.4f}",
            f"{of_name.std():.4f}",
            "3",
        )


def test_differences_of_losses_say_what_they_are_over(make_run: MakeRun) -> None:
    vanilla = [make_run("vanilla", seed, val_loss=5.4) for seed in (1, 2, 3)]
    rmsnorm = [make_run("rmsnorm", seed, val_loss=5.4 - 0.01 * seed) for seed in (1, 2, 3)]
    section = losses_section(card_of(*vanilla, *rmsnorm))
    differences = rows_of(section, "Difference to vanilla (95 % intervals, negative is better)")
    interval = stats.ttest_1samp([-0.01, -0.02, -0.03], 0).confidence_interval(0.95)
    expected = f"-0.0200 [{interval.low:+.4f}, {interval.high:+.4f}]"
    assert differences.loc["rmsnorm", "nats/token"] == expected
    assert differences.loc["rmsnorm", "over"] == "3 paired seeds"


def test_all_scores_have_a_row_for_each_metric_and_run(make_run: MakeRun) -> None:
    runs = [scored(make_run, "vanilla", seed, 0.5) for seed in (1, 2)] + [make_run("rmsnorm")]
    section = all_scores_section(card_of(*runs))
    table = section.blocks[-1].rows
    assert section.kind == "folded" and [*table] == ["score", "run", "value", "items"]
    assert [*zip(table["score"], table["run"], strict=True)] == [
        (f"piqa {metric}", f"vanilla, seed {seed}") for metric in ("acc", "acc_norm") for seed in (1, 2)
    ]
    assert set(table["items"]) == {"1,000"} and table["value"].iloc[2] == "0.5000"


def test_no_evaluation_is_no_section(make_run: MakeRun) -> None:
    card = card_of(make_run("vanilla"))
    assert evaluation_section(card).blocks == [] == all_scores_section(card).blocks
