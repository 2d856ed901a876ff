"""The served page in a browser: it changes in place, and the reader's view of it stays."""

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from eval.page.live.follower import Follower
from eval.page.live.server import PageServer
from eval.page.live.sources import Sources
from eval.report import draw

from .browser import chromium
from .study_folders import make_study

WAIT_MS = 60_000


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of a phone's width."""
    with chromium() as browser:
        if browser is None:
            pytest.skip("no Chromium is installed")
        opened = browser.new_page(viewport={"width": 390, "height": 700})
        opened.set_default_timeout(WAIT_MS)
        yield opened


def served(follower: Follower) -> PageServer:
    server = PageServer("127.0.0.1", 0)
    server.follower = follower
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


def wait_for(page: Page, follower: Follower) -> None:
    """Until the browser shows the page as it is now."""
    page.wait_for_function(
        f"document.documentElement.dataset.version === '{follower.snapshot.state['version']}'"
    )


def test_a_study_goes_on_under_the_readers_eyes(tmp_path: Path, page: Page) -> None:
    (later := tmp_path / "later").mkdir()
    finished = make_study(later)
    (now := tmp_path / "now").mkdir()
    study = make_study(now, ended=68)
    follower = Follower(
        Sources([study.folder]),
        lambda reading: draw(reading, None, follows_server=True),
        say=lambda text: None,
    )
    server = served(follower)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(server.url)
    wait_for(page, follower)
    assert page.locator("h1").inner_text().startswith("At size small so far, with 68 of ")
    assert re.match(r"updated \d\d:\d\d:\d\d, no runs under way", page.locator("#live").inner_text())

    page.evaluate("window.mark = 'not loaded again'")
    page.locator("#study-runs summary").click()
    rates = page.locator("figure#chart-study-rates-0")
    rates.locator("button", has_text="rmsnorm_post").click()
    chart = "document.querySelector('#chart-study-rates-0 .chart')"
    page.evaluate(f"Plotly.relayout({chart}, {{'yaxis.range': [2.9, 2.95]}})")
    page.evaluate("document.querySelector('#study-gates').scrollIntoView({behavior: 'instant'})")
    place = "document.querySelector('#study-gates').getBoundingClientRect().top"
    before = page.evaluate(place)
    assert -1 < before < 700  # pixels: in sight

    shutil.copy(finished.folder / "results.json", study.folder / "results.json")
    assert follower.refresh()
    wait_for(page, follower)
    assert page.evaluate("window.mark") == "not loaded again"
    headline = page.locator("h1").inner_text()
    assert headline.startswith("At size medium, 3 paired seeds: rmsnorm_post is better")
    assert page.locator("#chart-study-forest-1 .main-svg").count() > 0  # a chart that was not there
    assert page.locator("nav a", has_text="Over the sizes").count() == 1
    assert page.evaluate(f"{chart}.layout.yaxis.range") == [2.9, 2.95]
    hidden = f"{chart}.data.filter(one => one.name === 'rmsnorm_post').map(one => one.visible)"
    assert page.evaluate(hidden) == [False, False]
    assert rates.locator("button", has_text="rmsnorm_post").get_attribute("aria-pressed") == "false"
    assert page.locator("#study-runs details").get_attribute("open") is not None
    assert page.evaluate(place) == pytest.approx(before, abs=2)
    assert "the study study is done" in page.locator("#live [role=status]").inner_text()
    assert said == []

    page.context.set_offline(True)
    page.wait_for_function("document.querySelector('#live').innerText.includes('cannot be reached')")
    assert page.locator("h1").inner_text().startswith("At size medium")
    server.shutdown()
    server.server_close()
