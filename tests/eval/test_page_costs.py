"""What designs cost beside the baseline, and their losses at its time."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.evidence.results import read_run
from eval.page.blocks import Chart, Section, Sentences, Table
from eval.page.costs import costs_section
from eval.page.timing import cost_of, training_hours
from tests.eval.cards import card_of

MakeRun = Callable[..., Path]
STEPS = 200


def timed(
    make_run: MakeRun,
    variant: str,
    seed: int = 1,
    seconds: float | Sequence[float] = 1.0,
    cpus: int = 2,
    **facts,
) -> Path:
    """A run whose steps took so long, the first ten times that; its loss falls by 0.01 a step after 100."""
    run = make_run(variant, seed, **facts)
    each = np.full(STEPS, seconds) if isinstance(seconds, float) else np.asarray(seconds)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            line["step_s"] = (10 if line["step"] == 1 else 1) * each[line["step"] - 1]
        else:
            line["loss"] = (facts.get("val_loss") or 5.4) + 0.01 * (STEPS - line["step"])
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "environment.json").write_text(json.dumps({"gpus": [], "cpus": cpus}))
    return run


def rows_of(section: Section, title: str = "") -> pd.DataFrame:
    found = next(block for block in section.blocks if isinstance(block, Table) and block.title == title)
    return found.rows.set_index("design")


def at_equal_time(section: Section) -> pd.DataFrame:
    return rows_of(section, "Loss at equal tokens and at equal time")


def test_costs_stand_beside_the_baselines_with_ratios(make_run: MakeRun) -> None:
    memory = {"vanilla": 2.0, "rmsnorm": 2.5}
    runs = [
        timed(make_run, name, seed, seconds, throughput={"peak_memory_gib": memory[name]}, parameters=count,
              flops_per_token=flops, wall_time_s=3600.0)
        for name, count, flops, times in (
            ("vanilla", 1000, 6e6, (0.5, 0.52)), ("rmsnorm", 1100, 6.6e6, (0.6, 0.64)))
        for seed, seconds in enumerate(times, 1)
    ]  # fmt: skip
    table = rows_of(costs_section(card_of(*runs)))
    assert [*table.index] == ["vanilla (baseline)", "rmsnorm"]
    assert [*table.loc["vanilla (baseline)"]] == [
        "1,000", "6 M", f"{(8192 / 0.5 + 8192 / 0.52) / 2:,.0f}", "510 ms\n500 ms to 520 ms", "2.00 GiB",
        "1 h 00 min", "CPU, 2 cores, 2 ranks",
    ]  # fmt: skip
    of_rmsnorm = table.loc["rmsnorm"]
    assert of_rmsnorm["parameters"] == "1,100\n(1.100)" and of_rmsnorm["FLOPs per token"] == "6.6 M\n(1.100)"
    assert of_rmsnorm["time of a step"] == f"620 ms\n600 ms to 640 ms\n({0.62 / 0.51:.3f})"
    assert of_rmsnorm["memory of a rank"] == "2.50 GiB\n(1.250)"


def test_hours_leave_out_what_compiling_took(make_run: MakeRun) -> None:
    record = read_run(timed(make_run, "vanilla", seconds=[1.0, *np.linspace(1, 2, STEPS - 1)]))
    hours, later = training_hours(record), np.linspace(1, 2, STEPS - 1)
    assert len(hours) == STEPS and hours.iloc[0] == pytest.approx(1.5 / 3600)
    assert hours.iloc[-1] == pytest.approx((1.5 + later.sum()) / 3600)
    assert cost_of(record).figures["step_s"] == pytest.approx(1.5)


def test_runs_without_step_times_have_their_rates(make_run: MakeRun) -> None:
    record = read_run(make_run("vanilla"))
    assert training_hours(record).iloc[-1] == pytest.approx(STEPS * 8192 / 9000 / 3600)
    assert cost_of(record).figures["tokens_per_s"] == pytest.approx(9000)


@pytest.mark.parametrize(
    ("seconds", "loss", "done"), [(1.25, 5.3 + 0.4, 0.8), (0.8, 5.3, 1.0), (1.0, 5.3, 1.0)]
)
def test_loss_at_equal_time_is_where_the_baseline_had_finished(
    make_run: MakeRun, seconds: float, loss: float, done: float
) -> None:
    """A design that is slower by a quarter is at step 160 then, 40 steps of 0.01 above its last loss."""
    card = card_of(timed(make_run, "vanilla"), timed(make_run, "rmsnorm", seconds=seconds, val_loss=5.3))
    row = at_equal_time(costs_section(card)).loc["rmsnorm"]
    assert row["at equal tokens"] == "-0.1000" and row["at equal time"] == f"{loss - 5.4:+.4f}"
    assert row["tokens by then"] == f"{done:.1%}"


def test_several_seeds_have_their_range_at_equal_time(make_run: MakeRun) -> None:
    runs = [timed(make_run, "vanilla", seed, val_loss=5.4) for seed in (1, 2)]
    runs += [timed(make_run, "rmsnorm", seed, 1.1, val_loss=loss) for seed, loss in ((1, 5.3), (2, 5.36))]
    late = 0.01 * (STEPS - STEPS / 1.1)
    expected = [5.3 + late - 5.4, 5.36 + late - 5.4]
    cell = at_equal_time(costs_section(card_of(*runs))).loc["rmsnorm", "at equal time"]
    mean, reach = cell.split("\n")
    assert float(mean) == pytest.approx(np.mean(expected), abs=1e-4)
    assert [*map(float, reach.split(" to "))] == pytest.approx(expected, abs=1e-4)


def test_times_of_other_machines_are_not_compared(make_run: MakeRun) -> None:
    card = card_of(timed(make_run, "vanilla"), timed(make_run, "rmsnorm", cpus=64))
    said = at_equal_time(costs_section(card)).loc["rmsnorm", "at equal time"]
    assert said == "cannot be said: other machines (CPU, 64 cores, 2 ranks beside CPU, 2 cores, 2 ranks)"


def test_other_work_beside_a_run_is_seen(make_run: MakeRun) -> None:
    """In the last fifth of its steps, which no median of the whole run shows."""
    slowed = [1.0] * 160 + [1.5] * 40
    runs = [timed(make_run, "vanilla"), timed(make_run, "rmsnorm", seconds=slowed)]
    section = costs_section(card_of(*runs))
    assert at_equal_time(section).loc["rmsnorm", "at equal time"] == "cannot be said: other work ran beside"
    (said,) = (block.lines[0] for block in section.blocks if isinstance(block, Sentences))
    assert "of rmsnorm by 1.50 times" in said
    steady = costs_section(card_of(*(timed(make_run, name, 2) for name in ("vanilla", "rmsnorm"))))
    assert not any(isinstance(block, Sentences) for block in steady.blocks)


def test_losses_over_hours_are_means_and_each_runs_last(make_run: MakeRun) -> None:
    runs = [timed(make_run, "vanilla", seed, val_loss=loss) for seed, loss in ((1, 5.4), (2, 5.5))]
    runs.append(timed(make_run, "post", status="diverged", val_loss=None))
    section = costs_section(card_of(*runs))
    (chart,) = (block for block in section.blocks if isinstance(block, Chart))
    line, dots = (trace for trace in chart.figure.data if trace.name == "vanilla")
    assert [*line.x] == pytest.approx([50 / 3600, 100 / 3600, 150 / 3600, 200 / 3600])
    assert [*line.y] == pytest.approx([6.95, 6.45, 5.95, 5.45]) and line.line.color == "var(--c0)"
    assert sorted(dots.y) == pytest.approx([5.4, 5.5])
    assert [len(of) for of in chart.axes["tokens"]] == [len(trace.x) for trace in chart.figure.data]
    assert chart.axes["tokens"][0] == [step * 8192 for step in (50, 100, 150, 200)]
    assert chart.figure.layout.yaxis.range[1] < 6.95  # what is early does not flatten the end


def test_a_run_that_has_logged_nothing_has_no_costs(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    (run / "summary.json").write_text('{"status": "running", "variant": "vanilla"}')
    assert costs_section(card_of(run)).blocks == []


def test_rows_that_share_a_colour_have_dashes_of_their_own(make_run: MakeRun) -> None:
    runs = [timed(make_run, "vanilla", precision=mode, folder=mode) for mode in ("bf16", "fp32")]
    runs.append(timed(make_run, "rmsnorm"))
    (chart,) = (block for block in costs_section(card_of(*runs)).blocks if isinstance(block, Chart))
    lines = {trace.name: trace.line for trace in chart.figure.data if trace.mode == "lines"}
    looks = {name: (line.color, line.dash) for name, line in lines.items()}
    assert looks["vanilla bf16"] == ("var(--c0)", "solid") and looks["vanilla fp32"] == ("var(--c0)", "dash")
    assert looks["rmsnorm bf16"][0] == "var(--c1)"
