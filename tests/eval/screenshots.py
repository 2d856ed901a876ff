"""Pictures of a page, to look at: at 1400 and 390 px, light and dark, and as it is printed.

    python -m tests.eval.screenshots PAGE.html OUT_DIR

The printed page's first sheets become pictures too where `pdftoppm` is installed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser

from .browser import chromium, opened

SHEETS = 6


def take_pictures(browser: Browser, page: Path, out: Path) -> list[Path]:
    """Write the pictures below `out`; gives their files."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for width in (1400, 390):
        for scheme in ("light", "dark"):
            with opened(browser, page, width=width, scheme=scheme) as seen:
                files.append(out / f"{page.stem}_{width}_{scheme}.png")
                seen.page.screenshot(path=files[-1], full_page=True)
    with opened(browser, page) as seen:
        files.append(out / f"{page.stem}.pdf")
        seen.page.pdf(path=files[-1], prefer_css_page_size=True)
    if shutil.which("pdftoppm"):
        words = [
            "pdftoppm",
            "-png",
            "-r",
            "80",
            "-l",
            str(SHEETS),
            str(files[-1]),
            str(out / f"{page.stem}_sheet"),
        ]
        subprocess.run(words, check=True)
        files += sorted(out.glob(f"{page.stem}_sheet*.png"))
    return files


def main(page: Path, out: Path) -> int:
    with chromium() as browser:
        if browser is None:
            print("error: no browser is installed: see tests/eval/browser.py", file=sys.stderr)
            return 2
        for file in take_pictures(browser, page, out):
            print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
