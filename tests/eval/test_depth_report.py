"""The report's sections by depth: maps show the runs' values, on one scale, and the page stays small."""

import itertools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plotly import graph_objects as go

from eval.page.blocks import Chart, Sentences, Table
from eval.page.depth.measures import BY_STEP
from eval.page.depth.section import depth_sections
from tests.eval.cards import card_of

MakeRun = Callable[..., Path]
STEPS = [0, 1, 2, 5, 10, 20, 50, 100, 200]
PARTED = ("branch_ratio", "attn_entropy", "attn_sink", "attn_logit_max")


def add_steps(run: Path, factor: float = 1.0, n_layer: int = 4, steps: Iterable[int] = STEPS) -> Path:
    """Made-up diagnostics that grow with depth and step."""
    rows = [
        (step, 8192 * step, measure.name, layer, part, factor * (1 + layer) * (2 + step) / 100)
        for measure in BY_STEP
        for part in (("attn", "mlp", "") if measure.name in PARTED else ("",))
        for step in steps
        for layer in range(n_layer)
    ]
    columns = ["step", "tokens", "name", "layer", "part", "value"]
    pd.DataFrame(rows, columns=columns).astype({"layer": "int32"}).to_parquet(run / "diagnostics.parquet")
    return run


def add_diagnosis(run: Path, n_layer: int = 4) -> Path:
    """A made-up diagnosis of the last checkpoint."""
    costs = [0.5, 0.05, 0.0004, -0.02] * n_layer
    rows: list[tuple[str, int | None, int | None, str, float]] = [
        ("layer_drop", layer, None, part, costs[layer] / share)
        for layer in range(n_layer)
        for part, share in (("", 1), ("attn", 2), ("mlp", 4))
    ]
    for layer in range(n_layer + 1):
        for other in range(layer + 1, n_layer + 1):
            rows.append(("cka", layer, other, "", 1 - 0.1 * (other - layer)))
            rows.append(("angular_distance", layer, other, "", 0.05 * (other - layer)))
    table = pd.DataFrame(rows, columns=["name", "layer", "layer_2", "part", "value"])
    table.to_parquet(run / "eval" / "step_00000200" / "diagnosis.parquet")
    return run


def charts_of(*runs: Path) -> dict[str, Chart]:
    """By title."""
    blocks = [block for section in depth_sections(card_of(*runs)) for block in section.blocks]
    charts = [block for block in blocks if isinstance(block, Chart)]
    assert len({chart.name for chart in charts}) == len(charts)
    assert all(re.fullmatch("[A-Za-z0-9-]+", chart.name) for chart in charts)
    return {chart.title: chart for chart in charts}


def table_below(title: str, *runs: Path) -> pd.DataFrame:
    """Of the chart with this title."""
    for section in depth_sections(card_of(*runs)):
        for chart, table in itertools.pairwise(section.blocks):
            if isinstance(chart, Chart) and chart.title == title:
                assert isinstance(table, Table)
                return table.rows
    raise AssertionError(f"no chart {title}")


def values_of(trace: go.Heatmap) -> pd.DataFrame:
    """What a reader is told, by layer and column."""
    shown = trace.customdata if "customdata" in trace.hovertemplate else trace.z
    return pd.DataFrame(list(shown), index=list(trace.y), columns=list(trace.x))


def pivoted(run: Path, name: str, part: str = "") -> pd.DataFrame:
    """What was measured, by pandas alone."""
    table = pd.read_parquet(run / "diagnostics.parquet").query("name == @name and part == @part")
    return table.pivot(index="layer", columns="step", values="value")


def test_maps_show_what_was_measured_with_layer_0_at_the_bottom(make_run: MakeRun) -> None:
    runs = add_steps(make_run("vanilla")), add_steps(make_run("rmsnorm"), factor=8.0)
    chart = charts_of(*runs)["Residual stream (RMS, logarithmic)"]
    figure = chart.figure
    assert [note.text for note in figure.layout.annotations] == ["vanilla, seed 1", "rmsnorm, seed 1"]
    assert [figure.layout.yaxis.autorange, figure.layout.yaxis2.autorange] == [None, None]  # not reversed
    for run, trace in zip(runs, figure.data, strict=True):
        shown, expected = values_of(trace), pivoted(run, "resid_rms")
        assert list(shown.index) == [0, 1, 2, 3] and list(shown.columns) == STEPS
        np.testing.assert_allclose(shown.to_numpy(float), expected, rtol=5e-4)
    assert "from 0.02 to 64.6" in chart.about and "rmsnorm, seed 1" in chart.about


def test_all_maps_of_a_measure_have_one_logarithmic_scale(make_run: MakeRun) -> None:
    runs = add_steps(make_run("vanilla")), add_steps(make_run("rmsnorm"), factor=8.0)
    figure = charts_of(*runs)["Residual stream (RMS, logarithmic)"].figure
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    axis = figure.layout.coloraxis
    low, high = 0.02, 8 * 4 * 2.02  # of factor, layer and step
    for trace in figure.data:
        shares = (np.array(trace.z, float) - axis.cmin) / (axis.cmax - axis.cmin)
        expected = np.log(values_of(trace).to_numpy(float) / low) / np.log(high / low)
        np.testing.assert_allclose(shares, expected, atol=0.003)  # half a shade of 255
    ticks = dict(zip(axis.colorbar.tickvals, axis.colorbar.ticktext, strict=True))
    for place, text in ticks.items():
        share = (place - axis.cmin) / (axis.cmax - axis.cmin)
        assert float(text) == pytest.approx(low * (high / low) ** share, rel=0.01)
    assert axis.cmin in ticks and axis.cmax in ticks
    assert axis.colorbar.orientation == "h"


def test_linear_scales_are_the_values_and_signs_part_at_zero(make_run: MakeRun) -> None:
    run = add_steps(make_run("vanilla"))
    entropy = charts_of(run)["Entropy of attention, attn (nats)"].figure
    expected = pivoted(run, "attn_entropy", "attn")
    np.testing.assert_allclose(np.array(entropy.data[0].z, float), expected, rtol=5e-4)
    axis = entropy.layout.coloraxis
    assert (axis.cmin, axis.cmax) == pytest.approx((expected.min().min(), expected.max().max()))
    ticks = axis.colorbar.tickvals
    assert (ticks[0], ticks[-1]) == (axis.cmin, axis.cmax)
    assert [float(text) for text in axis.colorbar.ticktext] == pytest.approx(ticks, rel=0.01)

    table = pd.read_parquet(run / "diagnostics.parquet")
    table.loc[(table["name"] == "layer_cos") & (table["layer"] == 0), "value"] *= -1
    table.to_parquet(run / "diagnostics.parquet")
    signed = charts_of(run)["Cosine to the next layer (cosine)"].figure.layout.coloraxis
    assert signed.cmin == -signed.cmax == -4 * 2.02
    assert lightness(signed.colorscale[len(signed.colorscale) // 2][1]) > 0.9  # zero is almost white


def test_colours_of_a_scale_are_ever_lighter(make_run: MakeRun) -> None:
    colours = charts_of(add_steps(make_run("vanilla")))[
        "Residual stream (RMS, logarithmic)"
    ].figure.layout.coloraxis
    lights = [lightness(colour) for _, colour in colours.colorscale]
    assert lights == sorted(lights) and lights[-1] - lights[0] > 0.6  # it reads without colours


def test_what_has_no_logarithm_or_one_value_only_is_drawn(make_run: MakeRun) -> None:
    run = add_steps(make_run("vanilla"))
    table = pd.read_parquet(run / "diagnostics.parquet")
    of_stream = table["name"] == "resid_rms"
    table.loc[of_stream & (table["step"] == 0), "value"] = 0.0
    table.loc[table["name"] == "kurtosis", "value"] = 3.0
    table.loc[table["name"] == "massive_count", "value"] = 0.0
    table.to_parquet(run / "diagnostics.parquet")
    charts = charts_of(run)
    (stream,) = charts["Residual stream (RMS, logarithmic)"].figure.data
    assert (values_of(stream)[0] == 0).all()
    assert {row[0] for row in stream.z} == {
        charts["Residual stream (RMS, logarithmic)"].figure.layout.coloraxis.cmin
    }
    flat = charts["Kurtosis over features (1 to C, logarithmic)"].figure
    assert list(flat.layout.coloraxis.colorbar.ticktext) == ["3"]
    assert not any("Massive activations" in title for title in charts)  # all 0: nothing to see


def test_each_branch_has_a_map_and_what_was_not_measured_stays_empty(make_run: MakeRun) -> None:
    run = add_steps(make_run("vanilla"))
    table = pd.read_parquet(run / "diagnostics.parquet")
    gone = (table["name"] == "branch_ratio") & (table["step"] == 5) & (table["layer"] == 2)
    table[~gone & (table["name"] != "attn_sink")].to_parquet(run / "diagnostics.parquet")
    charts = charts_of(run)
    branches = [title for title in charts if title.startswith("Branch beside the stream")]
    assert branches == [
        f"Branch beside the stream, {part} (|F| / |h|, logarithmic)" for part in ("attn", "mlp")
    ]
    assert not any("first token" in title for title in charts)
    (trace,) = charts[branches[0]].figure.data
    shown = values_of(trace)
    assert trace.z[2][3] is None and shown.isna().sum().sum() == 1 and np.isnan(shown.loc[2, 5])
    table[~gone & (table["part"] != "mlp")].to_parquet(run / "diagnostics.parquet")
    assert "Branch beside the stream (|F| / |h|, logarithmic)" in charts_of(run)


def test_the_last_step_stands_in_a_table_below_its_map(make_run: MakeRun) -> None:
    run, other = add_steps(make_run("vanilla")), add_steps(make_run("post"), n_layer=12, steps=[0, 1, 9])
    rows = table_below("Gradient of a layer's weights (norm, logarithmic)", run, other)
    assert list(rows.iloc[:, 0]) == ["vanilla, seed 1, step 200", "post, seed 1, step 9"]
    for row, of_run, step in ((0, run, 200), (1, other, 9)):
        last = pivoted(of_run, "grad_norm")[step]
        told = {int(head.split()[1]): text for head, text in rows.iloc[row, 1:].items()}
        assert {layer for layer, text in told.items() if text != "-"} == {*told} & {*last.index}
        for layer in {*told} & {*last.index}:
            assert float(told[layer]) == pytest.approx(last[layer], rel=1e-3)
    assert "layer 0" in rows and "layer 11" in rows
    large = add_steps(make_run("large"), factor=1e4)
    told = table_below("Gradient of a layer's weights (norm, logarithmic)", large).iloc[0, 1:]
    assert list(told) == ["20200", "40400", "60600", "80800"]


def test_what_matters_most_is_open_and_the_rest_folded(make_run: MakeRun) -> None:
    sections = depth_sections(card_of(add_diagnosis(add_steps(make_run("vanilla")))))
    assert [section.kind for section in sections] == ["plain", "folded", "folded"]
    is_open = [block.title for block in sections[0].blocks if isinstance(block, Chart)]
    assert (
        len(is_open) == 4
        and is_open[0] == "Residual stream (RMS, logarithmic)"
        and "without a layer" in is_open[-1]
    )
    folded = [block.title for block in sections[1].blocks if isinstance(block, Chart)]
    assert len(folded) + 3 == len(BY_STEP) + len(PARTED)  # a second part each


def test_eighteen_runs_are_a_map_for_each_design_and_small(make_run: MakeRun) -> None:
    steps = [*(2**power for power in range(14)), 12030]
    names = ("vanilla", "rmsnorm", "post", "parallel", "keel", "mix")
    runs = [
        add_diagnosis(add_steps(make_run(name, seed), n_layer=24, steps=steps), 24)
        for name in names
        for seed in (1, 2, 3)
    ]
    charts = charts_of(*runs)
    payload = 0
    for chart in charts.values():
        layout = chart.figure.layout.to_plotly_json()
        layout.pop("template", None)
        payload += len(
            json.dumps({"data": [t.to_plotly_json() for t in chart.figure.data], "layout": layout})
        )
        assert len(chart.figure.data) in (6, 18)
    assert payload < 290_000
    for trace in charts["Kurtosis over features (1 to C, logarithmic)"].figure.data:
        assert list(trace.x) == steps and (trace.y[0], trace.y[-1]) == (0, 23) and len(trace.y) >= 12
    titles = {note.text for note in charts["Residual stream (RMS, logarithmic)"].figure.layout.annotations}
    assert titles == {f"{name}, seed 1" for name in names}


def test_one_run_is_shown_with_all_its_steps_and_layers(make_run: MakeRun) -> None:
    run = add_diagnosis(add_steps(make_run("vanilla"), n_layer=30), 30)
    charts = charts_of(run)
    (trace,) = charts["Residual stream (RMS, logarithmic)"].figure.data
    assert list(trace.x) == STEPS and list(trace.y) == list(range(30))


def test_more_designs_than_can_be_told_apart_are_named_instead(make_run: MakeRun) -> None:
    runs = [add_steps(make_run(f"design{n}", val_loss=5 + n / 100)) for n in range(12)]
    section = depth_sections(card_of(*runs, baseline="design11"))[0]
    chart = next(block for block in section.blocks if isinstance(block, Chart))
    titles = [note.text for note in chart.figure.layout.annotations]
    assert titles == [f"design{n}, seed 1" for n in (11, *range(7))]
    (about,) = (block for block in section.blocks if isinstance(block, Sentences))
    assert any("design7, design8, design9, design10" in line for line in about.lines)


def test_pairs_of_layers_are_drawn_both_ways(make_run: MakeRun) -> None:
    run = add_diagnosis(make_run("vanilla"))
    section = next(section for section in depth_sections(card_of(run)) if section.id == "depth-pairs")
    charts = [block for block in section.blocks if isinstance(block, Chart)]
    apart = np.abs(np.subtract.outer(range(5), range(5)))
    np.testing.assert_allclose(values_of(charts[0].figure.data[0]), 1 - 0.1 * apart)
    np.testing.assert_allclose(values_of(charts[1].figure.data[0]), 0.05 * apart)
    told = table_below(charts[0].title, run).iloc[0, 1:]
    assert [float(text) for text in told] == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])


def test_costs_of_layers_have_a_line_for_each_run_and_a_table(make_run: MakeRun) -> None:
    runs = add_diagnosis(make_run("vanilla")), add_diagnosis(make_run("rmsnorm"))
    section = depth_sections(card_of(*runs))[0]
    assert any("at step 200" in line for line in section.blocks[0].lines)
    chart = next(block for block in section.blocks if isinstance(block, Chart))
    layout = chart.figure.layout
    panels = ["without the layer", "without its attn", "without its mlp"]
    assert [note.text for note in layout.annotations] == panels
    assert {axis.type for axis in chart.figure.select_yaxes()} == {"log"}
    costs = np.array([0.5, 0.05, 0.0004, -0.02])
    for number, share in enumerate((1, 2, 4)):
        for trace, colour in zip(chart.figure.data[2 * number : 2 * number + 2], ("c0", "c1"), strict=True):
            assert list(trace.customdata) == pytest.approx(costs / share)
            assert list(trace.y) == pytest.approx(np.maximum(costs / share, 0.001))
            assert trace.line.color == f"var(--{colour})"
    assert {shape.y0 for shape in layout.shapes} == {0.01}
    rows = table_below(chart.title, *runs)
    assert list(rows.iloc[1]) == ["vanilla, seed 1", "its attn", "+0.2500", "+0.0250", "+0.0002", "-0.0100"]
    assert list(rows.iloc[3])[:3] == ["rmsnorm, seed 1", "the layer", "+0.5000"]


def test_runs_without_diagnostics_have_no_such_section(make_run: MakeRun) -> None:
    runs = make_run("vanilla"), make_run("rmsnorm")
    assert depth_sections(card_of(*runs)) == []
    add_diagnosis(add_steps(runs[1]))
    charts = charts_of(*runs)
    assert charts and all("rmsnorm, seed 1" in chart.about for chart in charts.values())
    assert not any("vanilla" in chart.about for chart in charts.values())


def lightness(colour: str) -> float:
    """Relative luminance, as WCAG has it, of `#rrggbb` or `rgb(r, g, b)`."""
    if colour.startswith("#"):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    else:
        parts = [int(number) / 255 for number in re.findall(r"\d+", colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
