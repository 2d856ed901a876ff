"""A page in headless Chromium, as a reader sees it: at a width, in a scheme, on a screen or on paper."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHECKS = Path(__file__).with_name("page_checks.js")
PAPER = 703
"""Of A4 at 96 px per inch what the page's margins of 12 mm leave."""
TIMEOUT_MS = 60_000
"""For a busy machine: what is there is not waited for."""
DRAWN = (
    """() => !document.querySelector('[data-chart]') || document.documentElement.dataset.charts === 'drawn'"""
)


@dataclass
class Opened:
    """An open page and what it has said.

    Attributes:
        page: playwright's.
        complaints: what stood on the console as a warning or an error, and exceptions that nobody caught.
        requests: addresses that the page asked for beside its own.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self, name: str, *arguments: Any) -> Any:
        """What a function of page_checks.js gives for the page as it is now."""
        return self.page.evaluate("([name, given]) => window.checks[name](...given)", [name, list(arguments)])


def find_chromium(playwright: Playwright) -> str | None:
    """The program: one that is installed, else playwright's own; None where there is neither."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    own = playwright.chromium.executable_path
    return found or (own if Path(own).is_file() else None)


@contextmanager
def chromium() -> Iterator[Browser | None]:
    """A headless browser; None where none is installed."""
    with sync_playwright() as playwright:
        program = find_chromium(playwright)
        if program is None:
            yield None
            return
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of a file; the test is skipped where none is installed.

    Not one for all files: while it runs, the thread has an event loop, and code that starts one of its own
    would be refused.
    """
    with chromium() as found:
        if found is None:
            pytest.skip(
                f"no browser is installed (one of {', '.join(NAMES)}, or `playwright install chromium`)"
            )
        yield found


@contextmanager
def opened(
    browser: Browser,
    address: Path | str,
    *,
    width: int = 1400,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    media: Literal["screen", "print"] = "screen",
    touch: bool = False,
) -> Iterator[Opened]:
    """A file or an address in a window of its own, with its charts drawn."""
    url = address.resolve().as_uri() if isinstance(address, Path) else address
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch
    )
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    seen = Opened(page)
    page.on("console", lambda said: note(seen, said.type, said.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda asked: seen.requests.append(asked.url))
    try:
        page.goto(url)
        seen.requests[:] = [asked for asked in seen.requests if asked != url and not is_inside(asked)]
        page.wait_for_function(DRAWN)
        page.add_script_tag(path=CHECKS)
        if media == "print":
            page.emulate_media(media="print", color_scheme=scheme)
            page.wait_for_function("() => matchMedia('print').matches")
            settle(page)
        yield seen
    finally:
        context.close()


def note(seen: Opened, kind: str, text: str) -> None:
    if kind in ("warning", "error", "trace"):  # the charts' library warns by the last
        seen.complaints.append(text)


def is_inside(address: str) -> bool:
    """Whether it names what the page holds itself."""
    return address.startswith(("data:", "blob:"))


def settle(page: Page) -> None:
    """Wait until observers of sizes and media have had their turn and the page was painted."""
    page.evaluate(
        """() => new Promise(done =>
            requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"""
    )
