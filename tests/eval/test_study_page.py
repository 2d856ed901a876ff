"""A study's sections: what they show is what its runs came to, whole or half done."""

import math
from pathlib import Path
from statistics import fmean, stdev

import pytest
from plotly import graph_objects as go

from eval.page.blocks import Chart, Sentences, Table
from eval.page.study.sections import study_sections
from eval.page.study.words import write_headline
from eval.studies.findings.reading import StudyRecord
from eval.studies.plan import Cell

from .study_folders import RATES, loss_of, make_study


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    return make_study(tmp_path_factory.mktemp("study"))


def blocks_of(record: StudyRecord, section: str) -> list[Chart | Table | Sentences]:
    return next((one.blocks for one in study_sections(record) if one.id == section), [])


def chart_of(record: StudyRecord, name: str) -> Chart:
    blocks = (block for section in study_sections(record) for block in section.blocks)
    return next(block for block in blocks if isinstance(block, Chart) and block.name == name)


def loss(size: str, design: str, rate: str, seed: int) -> float:
    return loss_of(Cell(size, design, rate, seed))


def traces(figure: go.Figure, name: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.name == name and trace.x[0] is not None]


def test_a_forest_shows_both_verdicts_of_each_design(record: StudyRecord) -> None:
    figure = chart_of(record, "study-forest-1").figure
    shared, best = traces(figure, "rmsnorm_post")
    for trace, rate in ((shared, "1x"), (best, "2x")):
        pairs = [
            loss("medium", "rmsnorm_post", rate, seed) - loss("medium", "vanilla", "1x", seed)
            for seed in (1, 2, 3)
        ]
        assert trace.x[0] == pytest.approx(fmean(pairs))
        assert (
            trace.error_x.array[0] == pytest.approx(trace.error_x.arrayminus[0])
            and trace.error_x.array[0] > 0
        )
    assert (
        shared.marker.symbol != best.marker.symbol and shared.marker.color == best.marker.color == "var(--c1)"
    )
    assert figure.layout.yaxis.ticktext[-1] == "vanilla_again<br>(noise floor)"
    assert len({trace.y[0] for trace in figure.data if trace.y[0] is not None}) == 6  # no two on one line


def test_rates_are_drawn_with_the_one_that_was_chosen(record: StudyRecord) -> None:
    figure = chart_of(record, "study-rates-0").figure
    assert figure.layout.xaxis.type == "log"
    seeds, means = traces(figure, "rmsnorm_post")
    assert list(means.x) == [*RATES.values()] and len(seeds.x) == 6
    found = [fmean(loss("small", "rmsnorm_post", rate, seed) for seed in (101, 102)) for rate in RATES]
    assert list(means.y) == pytest.approx(found)
    assert (
        means.marker.symbol[found.index(min(found))] == "star"
        and list(means.marker.symbol).count("star") == 1
    )
    said = [block for block in blocks_of(record, "study-rates") if isinstance(block, Sentences)]
    assert "rmsnorm_post: lowest at 2x" in said[0].lines
    assert (
        "rmsnorm_post: its best rate, 2x, is the lowest or highest tried: others may be better"
        in said[0].lines
    )


def test_sizes_are_drawn_over_flops_with_what_was_foretold(record: StudyRecord) -> None:
    figure = chart_of(record, "study-sizes").figure
    assert figure.layout.xaxis.type == "log"
    (measured,), (foretold,) = traces(figure, "rmsnorm_post"), traces(figure, "rmsnorm_post, foretold")
    flops = [size.flops for size in record.sizes]
    assert list(measured.x) == pytest.approx(flops, rel=0.2) and record.target_flops is not None
    assert foretold.x[0] == pytest.approx(record.target_flops, rel=0.2)
    assert foretold.y[0] == pytest.approx(-0.13, abs=0.05)
    assert (
        traces(figure, "rmsnorm_parallel") and len(traces(figure, "rmsnorm_parallel")[0].x) == 1
    )  # its gate
    (gates,) = (block for block in blocks_of(record, "study-gates") if isinstance(block, Table))
    assert (
        gates.rows.set_index("design").loc["rmsnorm_parallel", "from small"].startswith("stays behind (+0.")
    )
    assert gates.rows.set_index("design").loc["rmsnorm", "from small"].startswith("goes on")


def test_the_headline_says_what_was_found_and_with_what_power(record: StudyRecord) -> None:
    text = write_headline(record)
    assert text.startswith("At size medium, 3 paired seeds: rmsnorm_post is better than vanilla (-0.")
    assert "rmsnorm is not shown to differ from vanilla (could have shown 0.0" in text
    assert "rmsnorm_parallel: stopped at the gate of size small" in text and "again" not in text


def test_the_noise_floor_is_the_deviation_over_seeds(record: StudyRecord) -> None:
    table, said = blocks_of(record, "study-noise")
    assert isinstance(table, Table) and isinstance(said, Sentences)
    losses = [loss("medium", "vanilla", "1x", seed) for seed in (1, 2, 3)]
    row = table.rows.set_index("size").loc["medium"]
    assert row["sd over seeds"] == f"{stdev(losses):.4f}"
    again = [loss("medium", "vanilla_again", "1x", seed) for seed in (1, 2, 3)]
    by_seed = [f"{mine - its:+.4f}" for mine, its in zip(again, losses, strict=True)]
    assert row["against itself, by seed"] == ", ".join(by_seed)
    other = fmean(again)
    assert row["and its interval"].startswith(f"{other - fmean(losses):+.4f} [")
    low, high = map(float, row["and its interval"].split("[")[1].rstrip("]").split(","))
    word = "holds zero" if low <= 0 <= high else "does not hold zero"
    assert said.lines[0].startswith(f"At size medium the interval of vanilla_again {word}")


def test_runs_and_registration_are_all_there(record: StudyRecord) -> None:
    (table,) = blocks_of(record, "study-runs")
    assert isinstance(table, Table)
    row = table.rows.set_index(["size", "design", "rate"]).loc[("small", "vanilla", "1x")]
    assert (row["judged"], row["chose the rate"], row["failed"]) == ("3 of 3", "2 of 2", "")
    assert row["loss"] == f"{fmean(loss('small', 'vanilla', '1x', seed) for seed in (1, 2, 3)):.4f}"
    lines = [
        line for block in blocks_of(record, "study-registration") for line in getattr(block, "lines", [])
    ]
    assert f"the whole hash: {record.registration.sha256}" in lines and "nothing departed from it" in lines
    assert "study-failures" not in [section.id for section in study_sections(record)]


def test_a_half_done_study_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    record = make_study(tmp_path, ended=68)
    total = len(record.runs)
    so_far = f"At size small so far, with 68 of {total} runs, 3 paired seeds: rmsnorm_post is better"
    assert write_headline(record).startswith(so_far)
    tables = [block for block in blocks_of(record, "study-verdicts") if isinstance(block, Table)]
    assert [one.title for one in tables] == ["Verdicts at size small", "Verdicts at size medium"]
    table = tables[1]
    assert "Not all runs have ended." in table.note
    assert table.rows["verdict"].str.startswith("under way").any()


def test_a_study_without_a_run_is_shown_too(tmp_path: Path) -> None:
    record = make_study(tmp_path, ended=0)
    total = len(record.runs)
    assert write_headline(record) == f"study: nothing is judged yet; 0 of {total} runs have ended."
    assert total > 0 and all(section.blocks for section in study_sections(record))


def test_failures_are_told_with_their_reasons(tmp_path: Path) -> None:
    failing = {("rmsnorm", 2), ("rmsnorm_parallel", 101)}

    def loss(cell: Cell) -> float:
        return math.nan if (cell.design, cell.seed) in failing else loss_of(cell)

    record = make_study(tmp_path, loss, sizes=None, target=None)
    (said,) = blocks_of(record, "study-failures")
    assert isinstance(said, Sentences)
    assert "rmsnorm at rate 1x, seed 2: diverged" in said.lines
    assert any("rmsnorm at rate 1x fails in 1 of 3 runs" in line for line in said.lines)
    assert any(line.startswith("rmsnorm_parallel at rate 2x, size recipe, seed 101") for line in said.lines)
    assert len(said.lines) == len(set(said.lines))
    assert "rmsnorm: fails in 1 of 3" in write_headline(record)


def test_a_composite_says_what_each_part_adds(tmp_path: Path) -> None:
    parts = {"rms": {"model.norm": "rmsnorm"}, "rope": {"model.positions": "rotary"}}
    record = make_study(tmp_path, variants=None, composite=parts, sizes=None, target=None)
    (table,) = blocks_of(record, "study-parts")
    assert isinstance(table, Table)
    assert (
        list(table.rows["part"]) == ["rms", "rope"]
        and table.rows["alone"].str.contains("[", regex=False).all()
    )


def test_sections_and_charts_have_names_of_their_own(record: StudyRecord) -> None:
    sections = study_sections(record)
    assert len({section.id for section in sections}) == len(sections)
    charts = [block.name for section in sections for block in section.blocks if isinstance(block, Chart)]
    assert len(charts) == len(set(charts)) == 5
