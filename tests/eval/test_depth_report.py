"""The report's section by depth: the maps show the runs' values, on one scale, and it stays small."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eval.evidence.depth.maps import PALETTE, Scale
from eval.evidence.depth.measures import BY_STEP
from eval.evidence.depth.section import depth_section
from tests.eval.cards import card_of
from tests.eval.test_report import page_of

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


def section_of(*runs: Path) -> dict[str, Any]:
    section = depth_section(card_of(*runs))
    assert section is not None
    return section


def group_of(section: dict[str, Any], title: str) -> dict[str, Any]:
    return next(group for group in section["groups"] if group["title"] == title)


def colours_of(chart: dict[str, Any]) -> dict[tuple[int, int], str]:
    """By layer (from the bottom) and column, what a browser would paint."""
    painted = {}
    for fill, path in chart["paths"]:
        for x, y, length in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path):
            for column in range(int(x), int(x) + int(length)):
                assert (chart["height"] - 1 - int(y), column) not in painted
                painted[chart["height"] - 1 - int(y), column] = fill
    return painted


def lightness(colour: str) -> float:
    """Relative luminance, as WCAG has it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_maps_of_variants_show_their_values_on_one_scale(make_run: MakeRun) -> None:
    section = section_of(add_steps(make_run("vanilla")), add_steps(make_run("rmsnorm"), factor=8.0))
    group = group_of(section, "Residual stream")
    assert [chart["title"] for chart in group["maps"]] == ["vanilla, seed 1", "rmsnorm, seed 1"]
    painted: dict[float, set[str]] = {}
    for factor, chart in zip((1.0, 8.0), group["maps"], strict=True):
        hover = chart["hover"]
        assert (hover["rows"], hover["columns"], hover["column"]) == ([0, 1, 2, 3], STEPS, "step")
        of_chart = colours_of(chart)
        for layer in range(4):
            for column, step in enumerate(STEPS):
                value = factor * (1 + layer) * (2 + step) / 100
                assert hover["values"][layer][column] == pytest.approx(value, rel=1e-3)
                painted.setdefault(value, set()).add(of_chart[layer, column])
    assert all(len(fills) == 1 for fills in painted.values())  # equal values have equal colours
    low, high = min(painted), max(painted)
    assert painted[low] == {PALETTE[0]} and painted[high] == {PALETTE[-1]}
    lights = [lightness(painted[value].copy().pop()) for value in sorted(painted)]
    assert lights == sorted(lights)  # it reads without colours
    middle = float(np.sqrt(low * high))
    ticks = [float(tick) for tick in group["legend"]["ticks"]]
    assert ticks == pytest.approx([low, middle, high], rel=0.01) and group["legend"]["unit"] == "RMS"


def test_places_on_a_scale_are_shares_of_its_range_or_ratio() -> None:
    values = np.array([1.0, 10.0, 100.0, np.nan])
    assert Scale.of(values, by_ratio=True).place(values)[:3].tolist() == pytest.approx([0, 0.5, 1])
    assert Scale.of(values, by_ratio=False).place(values)[:3].tolist() == pytest.approx([0, 9 / 99, 1])
    assert np.isnan(Scale.of(values, by_ratio=True).place(values)[3])
    with_zero = np.array([0.0, 1.0, 100.0])
    assert Scale.of(with_zero, by_ratio=True).place(with_zero).tolist() == pytest.approx([0, 0, 1])
    flat = np.array([3.0, 3.0])
    assert Scale.of(flat, by_ratio=True).place(flat).tolist() == [0.5, 0.5]
    assert Scale.of(np.array([-2.0, -1.0]), by_ratio=True).by_ratio is False


def test_each_branch_has_a_map_and_what_was_not_measured_stays_empty(make_run: MakeRun) -> None:
    run = add_steps(make_run("vanilla"))
    table = pd.read_parquet(run / "diagnostics.parquet")
    gone = (table["name"] == "branch_ratio") & (table["step"] == 5) & (table["layer"] == 2)
    table[~gone & (table["name"] != "attn_sink")].to_parquet(run / "diagnostics.parquet")
    section = section_of(run)
    titles = [group["title"] for group in section["groups"]]
    assert {"Branch beside the stream, attn", "Branch beside the stream, mlp"} <= {*titles}
    assert "Branch beside the stream" not in titles and not any("first token" in t for t in titles)
    table[~gone & (table["part"] != "mlp")].to_parquet(run / "diagnostics.parquet")
    assert "Branch beside the stream" in [group["title"] for group in section_of(run)["groups"]]
    chart = group_of(section, "Branch beside the stream, attn")["maps"][0]
    assert (2, 3) not in colours_of(chart) and len(colours_of(chart)) == 4 * len(STEPS) - 1
    assert chart["hover"]["values"][2][3] is None


def test_many_steps_and_layers_are_thinned_out_and_small(make_run: MakeRun, tmp_path: Path) -> None:
    steps = [0, *np.unique(np.geomspace(1, 19000, 24).astype(int))]
    runs = [add_steps(make_run(name), n_layer=48, steps=steps) for name in ("vanilla", "post")]
    for run in runs:
        add_diagnosis(run, 48)
    section = section_of(*runs)
    hover = group_of(section, "Kurtosis over features")["maps"][0]["hover"]
    assert len(hover["columns"]) == 16 and hover["columns"][0] == 0 and hover["columns"][-1] == 19000
    assert len(hover["rows"]) == 24 and hover["rows"][0] == 0 and hover["rows"][-1] == 47
    page_of(tmp_path, *runs)
    with_section = (tmp_path / "report.html").stat().st_size
    for run in runs:
        (run / "diagnostics.parquet").unlink()
        (run / "eval" / "step_00000200" / "diagnosis.parquet").unlink()
    page_of(tmp_path, *runs)
    assert with_section - (tmp_path / "report.html").stat().st_size < 2 * 200_000


def test_pairs_of_layers_are_drawn_both_ways(make_run: MakeRun) -> None:
    section = section_of(add_diagnosis(make_run("vanilla")))
    assert section["checkpoints"] == "200"
    values = group_of(section, "Linear CKA of two layers")["maps"][0]["hover"]["values"]
    expected = [[1 - 0.1 * abs(one - other) for other in range(5)] for one in range(5)]
    assert np.allclose(values, expected)
    angles = group_of(section, "Angle between two layers")["maps"][0]["hover"]["values"]
    assert np.allclose(angles, [[0.05 * abs(one - other) for other in range(5)] for one in range(5)])


def test_bars_are_the_costs_on_a_logarithmic_axis(make_run: MakeRun) -> None:
    costs = section_of(add_diagnosis(make_run("vanilla")))["costs"]
    axis = {float(text): 1 - share for share, text in costs["y_labels"]}
    assert axis == pytest.approx({0.001: 0, 0.01: 1 / 3, 0.1: 2 / 3, 1: 1}, abs=1e-3)
    (chart,) = costs["charts"]
    heights = [bar["height"] for bar in chart["bars"]]
    expected = [max(0.0, np.log10(cost / share / 1e-3) / 3) for cost in (0.5, 0.05) for share in (1, 2, 4)]
    assert heights == pytest.approx([*expected, *[0.0] * 6], abs=1e-3)
    assert chart["hover"]["values"][3][0] == "without the layer -0.0200 nats"
    assert [name for name, _ in costs["legend"]][1:] == ["without its attn", "without its mlp"]


def test_runs_without_diagnostics_have_no_such_section(make_run: MakeRun, tmp_path: Path) -> None:
    runs = make_run("vanilla"), make_run("rmsnorm")
    assert depth_section(card_of(*runs)) is None
    assert "By depth" not in page_of(tmp_path, *runs).texts
    page = page_of(tmp_path, runs[0], add_diagnosis(add_steps(runs[1])))
    assert "By depth" in page.texts
    maps = [attrs for tag, attrs in page.tags if tag == "figure" and "map" in (attrs["class"] or "")]
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and "by layer" in str(attrs)]
    assert len(maps) == len(labels) + 1 and all("rmsnorm, seed 1: " in str(label) for label in labels)
