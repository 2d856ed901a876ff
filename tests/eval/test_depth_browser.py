"""Maps by depth in headless Chromium: side by side where there is room, each cell's value at a touch."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator

from eval.page.depth.section import depth_sections
from eval.page.page import render

from .browser import browser, opened, settle
from .cards import card_of
from .test_depth_report import add_diagnosis, add_steps, pivoted

__all__ = ["browser"]  # a fixture

MakeRun = Callable[..., Path]
NAMES = ("vanilla", "rmsnorm", "post", "parallel")


@pytest.fixture
def runs(make_run: MakeRun) -> list[Path]:
    return [add_diagnosis(add_steps(make_run(name), n_layer=6), 6) for name in NAMES]


@pytest.fixture
def page(runs: list[Path], tmp_path: Path) -> Path:
    file = tmp_path / "page.html"
    file.write_text(render(depth_sections(card_of(*runs)), "By depth"))
    return file


def boxes_of(panels: Locator) -> list[dict[str, float]]:
    """Where the panels' insides are."""
    found = [box for panel in panels.all() if (box := panel.bounding_box())]
    return [dict(box) for box in found]


def test_maps_are_side_by_side_on_a_desk_and_stacked_on_a_phone(browser: Browser, page: Path) -> None:
    with opened(browser, page) as seen:
        chart = seen.page.locator("[data-chart='depth-resid-rms']")
        panels = chart.locator(".nsewdrag")
        wide, height = boxes_of(panels), chart.bounding_box()
        assert len(wide) == len(NAMES) and len({box["x"] for box in wide}) == 3
        assert [box["y"] == wide[0]["y"] for box in wide] == [True, True, True, False]

        seen.page.set_viewport_size({"width": 390, "height": 900})
        seen.page.wait_for_function(
            "() => document.querySelector(\"[data-chart='depth-resid-rms']\")._fullLayout.width < 390"
        )
        settle(seen.page)
        narrow, taller = boxes_of(panels), chart.bounding_box()
        assert len({box["x"] for box in narrow}) == 1 and len({box["y"] for box in narrow}) == len(NAMES)
        assert height and taller and taller["height"] > 1.6 * height["height"]
        assert narrow[0]["height"] == pytest.approx(wide[0]["height"], rel=0.05)
        assert seen.complaints == []


def test_a_tap_on_a_cell_says_what_was_measured_there(browser: Browser, page: Path, runs: list[Path]) -> None:
    with opened(browser, page, width=390, touch=True) as seen:
        chart = seen.page.locator("[data-chart='depth-resid-rms']")
        panel = chart.locator(".nsewdrag").nth(2)
        panel.scroll_into_view_if_needed()
        box = panel.bounding_box()
        assert box
        measured = pivoted(runs[2], "resid_rms")
        layer, place = 4, 6
        x = box["x"] + box["width"] * (place + 0.5) / measured.shape[1]
        y = box["y"] + box["height"] * (1 - (layer + 0.5) / len(measured))
        seen.page.touchscreen.tap(x, y)
        chart.locator(".hoverlayer text").first.wait_for()
        said = " ".join(chart.locator(".hoverlayer text").all_text_contents())
        step, value = measured.columns[place], measured.iloc[layer, place]
        told = re.search(rf"step {step}, layer {layer}: ([\d.]+)", said)
        assert told and float(told[1]) == pytest.approx(value, rel=1e-3)
        assert "post, seed 1" in said


def test_each_colour_bar_has_both_its_ends_in_numbers(browser: Browser, page: Path) -> None:
    with opened(browser, page, width=390) as seen:
        seen.page.evaluate(
            "for (const fold of document.querySelectorAll('section > details')) fold.open = true"
        )
        settle(seen.page)
        charts = seen.page.locator("[data-chart]:not([data-chart='depth-costs'])")
        assert charts.count() > 10
        for chart in charts.all():
            labels, box = chart.locator(".colorbar text"), chart.bounding_box()
            assert labels.count() == 5 and box
            for label in (labels.first, labels.last):
                there = label.bounding_box()
                assert there and there["x"] >= box["x"] - 1
                assert there["x"] + there["width"] <= box["x"] + box["width"] + 1
