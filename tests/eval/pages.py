"""A report read as a reader's browser would: its texts, and the charts that it carries compressed."""

import base64
import gzip
import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from eval.evidence.results import read_runs
from eval.page.page import write_page

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page, refusing tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.charts: dict[str, dict[str, Any]] = (
            json.loads(packed.decode()) if (packed := self.unpacked("charts")) else {}
        )

    def unpacked(self, name: str) -> bytes:
        found = re.search(rf'<script type="text/plain" id="{name}">(.*?)</script>', self.text)
        return gzip.decompress(base64.b64decode(found[1])) if found else b""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [attrs[name] for found, attrs in self.tags if found == tag and name in attrs]

    def traces(self, chart: str, **wanted: Any) -> list[dict[str, Any]]:
        """A chart's traces that have these values."""
        traces = self.charts[chart]["data"]
        return [
            trace for trace in traces if wanted.items() <= {key: trace.get(key) for key in wanted}.items()
        ]


def page_of(tmp_path: Path, *folders: Path, baseline: str | None = None) -> Page:
    """The report about runs."""
    write_page(read_runs(folders), tmp_path / "report.html", baseline)
    return Page((tmp_path / "report.html").read_text())


def rewrite(run: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Give a run other metrics."""
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
