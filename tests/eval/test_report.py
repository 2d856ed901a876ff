"""The report page: whole, self-contained, and honest about what is missing."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.evidence.charts import thin, ticks
from eval.evidence.page import write_page
from eval.evidence.results import read_runs
from eval.report import main

MakeRun = Callable[..., Path]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page, refusing tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        blobs = re.findall(r'<script type="application/json">(.*?)</script>', text)
        self.tooltips = [json.loads(blob) for blob in blobs]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def curves(self, figure: int) -> list[dict[str, str | None]]:
        """The smoothed curves of the n-th chart."""
        starts = [at for at, (tag, _) in enumerate(self.tags) if tag == "figure"] + [len(self.tags)]
        tags = self.tags[starts[figure] : starts[figure + 1]]
        return [attrs for tag, attrs in tags if tag == "path" and (attrs["class"] or "").startswith("curve")]


def page_of(tmp_path: Path, *folders: Path, baseline: str | None = None) -> Page:
    write_page(read_runs(folders), tmp_path / "report.html", baseline)
    return Page((tmp_path / "report.html").read_text())


def test_page_shows_every_run_and_refers_to_nothing_outside(make_run: MakeRun, tmp_path: Path) -> None:
    tasks = {"arc_easy": {"acc": 0.5497, "acc_stderr": 0.0102}}
    folders = [make_run(variant, seed, tasks=tasks) for variant in ("vanilla", "rmsnorm") for seed in (1, 2)]
    page = page_of(tmp_path, *folders)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|@import|<link|<img|\bsrc=|\bhref=|url\((?!#)", text)
    assert len(page.curves(0)) == 4 and len(page.curves(1)) == 2
    for title in ("vanilla, seed 1", "vanilla, seed 2", "rmsnorm, seed 1", "rmsnorm, seed 2"):
        assert title in page.texts
    assert "54.97 ± 1.02" in page.texts and "uniform 10.82" in page.texts and "unigram 7.31" in page.texts
    assert "prefers-color-scheme: dark" in text


def test_tooltip_data_is_the_curve(make_run: MakeRun, tmp_path: Path) -> None:
    curve = page_of(tmp_path, make_run("vanilla")).tooltips[0]["curves"][0]
    assert len(curve["x"]) == len(curve["y"]) == 200 and curve["x"][-1] == 1638400
    assert curve["y"][-1] == pytest.approx(5.4, abs=0.4)


def test_difference_chart_is_the_difference(make_run: MakeRun, tmp_path: Path) -> None:
    """Runs of one seed have the same noise here, so the curve is flat at the difference of their losses."""
    page = page_of(tmp_path, make_run("vanilla", val_loss=5.4), make_run("rmsnorm", val_loss=5.3))
    assert page.tooltips[1]["curves"][0]["y"] == pytest.approx([-0.1] * 200, rel=1e-4)


def test_tokenizers_share_a_chart_in_bits_per_byte_only(make_run: MakeRun, tmp_path: Path) -> None:
    other = {"tokenizer": "bytes", "val_fingerprint": "77b0", "val_loss": 1.2, "val_bits_per_byte": 1.73}
    floors = {"uniform": 5.549, "unigram": 3.1}
    folders = [make_run("vanilla"), make_run("vanilla", folder="bytes", floors=floors, **other)]
    page = page_of(tmp_path, *folders)
    titles = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and "aria-label" in attrs]
    losses = ["Loss, tokenizer gpt2", "Loss, tokenizer bytes", "Validation loss of all tokenizers"]
    assert titles[:3] == losses
    assert [len(page.curves(figure)) for figure in range(3)] == [1, 1, 2]
    assert "uniform 10.82" in page.texts and "uniform 5.55" in page.texts
    assert page.tooltips[2]["curves"][0]["y"][-1] == pytest.approx(0.32 * 5.4, rel=0.05)
    assert "1.7300" in page.texts


def test_hostile_names_are_text(make_run: MakeRun, tmp_path: Path) -> None:
    name = "</script><script>alert('1')</script>\"><b>x</b>&"
    run = make_run(name, folder="hostile", val_loss=5.3)
    page = page_of(tmp_path, make_run("vanilla"), run)
    assert f"{name}, seed 1" in page.texts
    assert "b" not in [tag for tag, _ in page.tags]
    assert [tag for tag, _ in page.tags].count("script") == 5  # four charts' data and the page's own
    assert "alert('1')" not in (tmp_path / "report.html").read_text()


def test_a_diverged_run_with_null_losses_is_drawn_to_its_end(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("post", status="diverged", step=100, val_loss=None)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line | {"loss": None, "grad_norm": None} if line["step"] > 60 else line for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(tmp_path, make_run("vanilla"), run)
    assert any("diverged" in text and "✕" in text for text in page.texts)
    assert "NaN" not in (tmp_path / "report.html").read_text().replace("isNaN", "")
    assert len(page.curves(0)) == 2


def test_page_without_any_metrics_or_losses(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(status="running", val_loss=None, step=0, tokens=0)
    (run / "metrics.jsonl").unlink()
    page = page_of(tmp_path, run)
    assert "No run has finished yet." in page.texts
    assert "No run has logged a training loss yet." in page.texts


def test_page_with_the_barest_summary(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    (run / "summary.json").write_text('{"status": "running", "variant": "vanilla"}')
    assert "No run has finished yet." in page_of(tmp_path, run).texts


def test_command_writes_the_page_or_says_why_not(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pages" / "report.html"
    assert main([str(make_run()), "--out", str(out)]) == 0
    assert out.exists()
    assert main([str(tmp_path / "none"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_thinning_keeps_spikes_and_ends() -> None:
    values = pd.Series(np.random.default_rng(0).random(50_000))
    values.iloc[31_234] = 40.0
    thinned = thin(values, most=1000)
    assert len(thinned) <= 1000 and thinned.max() == 40.0
    assert (thinned.index[0], thinned.index[-1]) == (0, 49_999)
    assert thinned.index.is_monotonic_increasing


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.9, 11.3), (-0.013, 0.0071), (0, 7.1e9), (5.0, 5.0001)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    marks = ticks(low, high, about=6)
    assert 2 <= len(marks) <= 7 and low <= marks[0] and marks[-1] <= high
