"""The report in headless Chromium: 18 runs of full length, and two small ones, at any width and on paper."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator

from eval.evidence.results import read_runs
from eval.page.page import write_page

from .browser import PAPER, Opened, browser, opened, settle
from .full_length_runs import write_runs
from .made_up_run import build_run

__all__ = ["browser"]  # a fixture

LEAST_TEXT = 11
"""CSS pixels."""
LEAST_CONTRAST = 4.5
"""Of text to what is behind it: WCAG 2.2, level AA."""
LOSS, DIFFERENCE = "loss-1", "difference-1"
"""Names of charts."""
LOOKS = [(width, scheme) for width in (1400, 390) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def full_length(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full_length")
    write_page(read_runs(write_runs(folder / "runs")), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    runs = [build_run(folder, "vanilla", val_loss=5.41), build_run(folder, "rmsnorm", val_loss=5.4)]
    write_page(read_runs(runs), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module", params=["full_length", "small"])
def page(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def on_desk(browser: Browser, full_length: Path) -> Iterator[Opened]:
    """The long page at 1400 px, for tests that leave it as it was."""
    with opened(browser, full_length) as seen:
        yield seen


def test_page_is_small_enough_to_send(page: Path) -> None:
    assert page.stat().st_size < 3_000_000


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_page_can_be_read(browser: Browser, page: Path, width: int, scheme: Any) -> None:
    with opened(browser, page, width=width, scheme=scheme) as seen:
        open_all(seen)
        check_reading(seen)
        assert seen.complaints == [] and seen.requests == []


def check_reading(seen: Opened, on_screen: bool = True) -> None:
    assert seen.check("smallTexts", LEAST_TEXT) == []
    assert seen.check("faintTexts", LEAST_CONTRAST) == []
    assert seen.check("cut", on_screen) == []


def open_all(seen: Opened) -> None:
    seen.page.evaluate("for (const fold of document.querySelectorAll('section > details')) fold.open = true")
    settle(seen.page)


def test_paper_shows_everything_and_cuts_nothing(browser: Browser, page: Path) -> None:
    with opened(browser, page, width=PAPER, media="print") as seen:
        assert seen.check("closedFolds") == []
        check_reading(seen, on_screen=False)
        printed = seen.page.pdf()
    assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", printed)) >= 2


def test_after_printing_the_folds_are_closed_again(browser: Browser, full_length: Path) -> None:
    with opened(browser, full_length) as seen:
        before = seen.check("closedFolds")
        seen.page.emulate_media(media="print")
        settle(seen.page)
        assert before and seen.check("closedFolds") == []
        seen.page.emulate_media(media="screen")
        settle(seen.page)
        assert seen.check("closedFolds") == before


def test_every_section_of_the_contents_is_there(on_desk: Opened) -> None:
    targets = on_desk.page.eval_on_selector_all("nav a", "links => links.map(link => link.hash.slice(1))")
    assert len(targets) >= 5 and len(set(targets)) == len(targets)
    for target in targets:
        assert on_desk.page.locator(f"section[id='{target}']").count() == 1


def test_what_a_browser_must_draw_stays_bounded(on_desk: Opened) -> None:
    """12,031 steps of 18 runs are 216,558 points a chart, which nobody can see and a phone cannot draw."""
    work = on_desk.check("work")
    assert work["charts"] >= 4
    assert work["points"] < 150_000 and work["elements"] < 40_000


# ---- what is shown first ----
def test_first_chart_shows_the_difference(on_desk: Opened) -> None:
    assert "ifference" in on_desk.page.locator("figure figcaption").first.inner_text()


@pytest.mark.parametrize("width", [1400, 390])
def test_two_hundredths_of_a_nat_can_be_seen(browser: Browser, full_length: Path, width: int) -> None:
    """In the chart of differences over tokens, whose range a spike of 2 nats and a diverged run would set."""
    with opened(browser, full_length, width=width) as seen:
        chart = chart_called(seen, DIFFERENCE)
        axis = chart.evaluate("({_fullLayout: {yaxis}}) => ({range: yaxis.range, px: yaxis._length})")
        low, high = axis["range"]
        assert axis["px"] * 0.02 / abs(high - low) >= 15


def chart_called(seen: Opened, name: str) -> Locator:
    return seen.page.locator(f"[data-chart='{name}']")


# ---- the keyboard ----
def test_tab_reaches_whatever_can_be_used(browser: Browser, page: Path) -> None:
    with opened(browser, page, width=390) as seen:
        open_all(seen)
        count = seen.check("watchFocus")
        assert count > 10
        for _ in range(count + 20):
            seen.page.keyboard.press("Tab")
        assert seen.check("unreached") == []


def tools_of(chart: Locator, text: str | re.Pattern[str]) -> Locator:
    figure = chart.locator("xpath=ancestor::figure")
    return figure.get_by_role("button", name=text)


def lines_in(chart: Locator) -> int:
    return chart.locator(".scatterlayer .trace path").count()


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_legend_hides_and_shows_a_design(on_desk: Opened, key: str) -> None:
    chart = chart_called(on_desk, LOSS)
    before = lines_in(chart)
    entry = tools_of(chart, re.compile("rmsnorm_parallel"))
    entry.focus()
    on_desk.page.keyboard.press(key)
    settle(on_desk.page)
    assert entry.get_attribute("aria-pressed") == "false"
    assert 0 < lines_in(chart) < before
    on_desk.page.keyboard.press(key)
    settle(on_desk.page)
    assert entry.get_attribute("aria-pressed") == "true" and lines_in(chart) == before


def ticks(chart: Locator, letter: str) -> list[str]:
    return chart.locator(f".{letter}tick text").all_text_contents()


def test_log_button_changes_the_axis(on_desk: Opened) -> None:
    chart = chart_called(on_desk, LOSS)
    for letter, name in (("x", "log horizontal"), ("y", "log vertical")):
        before, kind = ticks(chart, letter), f"box => box._fullLayout.{letter}axis.type"
        button = tools_of(chart, name)
        button.focus()
        on_desk.page.keyboard.press("Enter")
        settle(on_desk.page)
        assert chart.evaluate(kind) == "log" and ticks(chart, letter) != before
        button.click()
        settle(on_desk.page)
        assert chart.evaluate(kind) == "linear" and ticks(chart, letter) == before


def test_axis_buttons_change_the_horizontal_quantity(on_desk: Opened) -> None:
    chart = chart_called(on_desk, LOSS)
    figure = chart.locator("xpath=ancestor::figure")
    buttons = figure.get_by_role("group", name="Horizontal axis").get_by_role("button")
    assert buttons.count() >= 2
    seen = {}
    for button in [*buttons.all(), buttons.first]:
        button.click()
        settle(on_desk.page)
        assert button.get_attribute("aria-pressed") == "true"
        seen[button.inner_text()] = chart.locator(".xtitle").text_content(), *ticks(chart, "x")
    assert len(set(seen.values())) == buttons.count()
    assert any("hour" in text for text in seen) and any("token" in text for text in seen)


def test_folds_open_by_the_keyboard_and_draw_their_charts(browser: Browser, full_length: Path) -> None:
    with opened(browser, full_length) as seen:
        folds = seen.page.locator("section > details", has=seen.page.locator("[data-chart]"))
        assert folds.count() >= 1
        for fold in folds.all():
            assert fold.get_attribute("open") is None
            fold.locator("summary").focus()
            seen.page.keyboard.press("Enter")
            settle(seen.page)
            assert fold.get_attribute("open") is not None
            for chart in fold.locator("[data-chart]").all():
                assert chart.locator("svg.main-svg").first.bounding_box()["width"] > 300
        assert seen.complaints == []


# ---- mouse and finger ----
def axis_range(chart: Locator, letter: str) -> list[float]:
    return chart.evaluate(f"box => [...box._fullLayout.{letter}axis.range]")


def middle(chart: Locator) -> tuple[float, float, float, float]:
    """Left, top, width and height of the chart's inside."""
    chart.scroll_into_view_if_needed()
    box = chart.locator(".nsewdrag").first.bounding_box()
    assert box
    return box["x"], box["y"], box["width"], box["height"]


def test_dragging_zooms_and_a_button_resets(on_desk: Opened) -> None:
    chart = chart_called(on_desk, LOSS)
    (low, high), rows = axis_range(chart, "x"), axis_range(chart, "y")
    left, top, width, height = middle(chart)
    mouse = on_desk.page.mouse
    mouse.move(left + 0.5 * width, top + 0.3 * height)
    mouse.down()
    mouse.move(left + 0.75 * width, top + 0.6 * height, steps=5)
    mouse.up()
    settle(on_desk.page)
    nearer = axis_range(chart, "x")
    assert axis_range(chart, "y") != rows
    assert nearer == pytest.approx([low + 0.5 * (high - low), low + 0.75 * (high - low)], rel=0.05)
    tools_of(chart, "reset zoom").click()
    settle(on_desk.page)
    assert axis_range(chart, "x") == pytest.approx([low, high])
    assert axis_range(chart, "y") == pytest.approx(rows)


def test_a_tap_shows_the_values(browser: Browser, full_length: Path) -> None:
    with opened(browser, full_length, width=390, touch=True) as seen:
        chart = chart_called(seen, DIFFERENCE)
        assert chart.locator(".hoverlayer text").count() == 0
        left, top, width, height = middle(chart)
        seen.page.touchscreen.tap(left + width / 2, top + height / 2)
        chart.locator(".hoverlayer text").first.wait_for()
        said = " ".join(chart.locator(".hoverlayer text").all_text_contents())
        assert "peri_ln" in said and re.search(r"\d\.\d", said)
        assert seen.check("smallTexts", LEAST_TEXT) == []


def test_dark_and_light_have_their_own_colours(browser: Browser, full_length: Path) -> None:
    found = []
    for scheme in ("light", "dark"):
        with opened(browser, full_length, scheme=scheme) as seen:
            chart = chart_called(seen, LOSS)
            stroke = "path => getComputedStyle(path).stroke"
            found.append(
                (
                    seen.page.evaluate("getComputedStyle(document.body).backgroundColor"),
                    seen.page.evaluate("getComputedStyle(document.body).color"),
                    chart.locator(".scatterlayer .trace path").first.evaluate(stroke),
                )
            )
    assert all(one != other for one, other in zip(*found, strict=True))


def test_a_change_of_scheme_recolours_the_charts(browser: Browser, full_length: Path) -> None:
    with opened(browser, full_length) as seen:
        text = chart_called(seen, LOSS).locator(".xtick text").first
        before = text.evaluate("text => getComputedStyle(text).fill")
        seen.page.emulate_media(color_scheme="dark")
        settle(seen.page)
        assert text.evaluate("text => getComputedStyle(text).fill") != before
        assert seen.check("faintTexts", LEAST_CONTRAST) == []
