"""The report page: whole, self-contained, and honest about what is missing."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from eval.page.blocks import Chart, Section, Sentences, Table
from eval.page.page import render
from eval.report import main
from tests.eval.cards import documents
from tests.eval.pages import Page, logged, page_of, rewrite

MakeRun = Callable[..., Path]


def chart(name: str, figure: go.Figure) -> Chart:
    return Chart(name, "a title", figure, about="what is to be seen")


def test_page_refers_to_nothing_outside_and_names_every_section(make_run: MakeRun, tmp_path: Path) -> None:
    tasks = {"arc_easy": {"acc": 0.5497, "acc_stderr": 0.0102}}
    folders = [make_run(variant, seed, tasks=tasks) for variant in ("vanilla", "rmsnorm") for seed in (1, 2)]
    page = page_of(tmp_path, *folders)
    shown = re.sub(r'(?s)<script type="text/plain".*?</script>', "", page.text)
    assert not re.search(r"https?:|@import|<img|\bsrc=|url\((?!#)", shown)
    assert page.attributes("link", "href") == ["data:,"]
    sections = page.attributes("section", "id")
    assert [link for link in page.attributes("a", "href") if link != "#main"] == [f"#{id}" for id in sections]
    order = ["validation-loss", "difference", "loss", "schedule", "evaluation", "costs", "runs", "notes"]
    assert [id for id in sections if id in order] == order
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) and len(page.text) < 2_100_000
    assert page.unpacked("library").decode() == get_plotlyjs()


def test_the_same_runs_make_the_same_page(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run("vanilla"), make_run("rmsnorm")]
    assert page_of(tmp_path, *folders).text == page_of(tmp_path, *folders).text


def test_blocks_are_drawn_and_empty_sections_left_out() -> None:
    table = Table(pd.DataFrame({"task": ["piqa"], "score": ["0.61"]}), title="Scores", note="of one seed")
    figure = go.Figure(go.Scatter(x=[1.0, 2.0], y=[0.123456789, float("nan")], line={"color": "var(--c3)"}))
    sections = [
        Section("one", "First", [table, Sentences(["All is well."])]),
        Section("two", "Second", []),
        Section("three", "Third", [chart("curve", figure)], kind="folded"),
    ]
    page = Page(render(sections, "Headline", ["verdict"]))
    assert {"Headline", "verdict", "piqa", "0.61", "Scores", "of one seed", "All is well."} <= set(page.texts)
    assert page.attributes("section", "id") == ["one", "three"] and "Second" not in page.texts
    assert page.charts["curve"]["data"][0]["y"] == [0.123457, None]
    assert "template" not in page.charts["curve"]["layout"]
    assert page.attributes("div", "aria-label")[-1] == "what is to be seen"


def test_a_page_without_charts_carries_no_library() -> None:
    text = render([Section("one", "First", [Sentences(["a", "b"])])], "Headline")
    assert len(text) < 50_000 and 'id="library"' not in text and "JavaScript" not in text


def test_arrays_become_few_digits() -> None:
    """Plotly has arrays as the bytes of their numbers, which do not compress."""
    frame = pd.DataFrame({"x": range(40), "y": [n / 3 for n in range(40)]})
    heat = go.Heatmap(z=frame.to_numpy())
    figures = [chart("a", go.Figure(go.Scatter(x=frame["x"], y=frame["y"]))), chart("b", go.Figure(heat))]
    page = Page(render([Section("s", "S", [*figures])], "Headline"))
    assert page.charts["a"]["data"][0]["x"] == list(range(40))
    assert page.charts["a"]["data"][0]["y"] == pytest.approx([n / 3 for n in range(40)], rel=1e-5)
    assert page.charts["a"]["data"][0]["y"][1] == 0.333333
    assert page.charts["b"]["data"][0]["z"][2] == [2, 0.666667]


def test_hostile_names_are_text(make_run: MakeRun, tmp_path: Path) -> None:
    name = "</script><script>alert('1')</script>\"><b>x</b>&"
    seen = [documents(seed, 0.1) for seed in (1, 2)]
    page = page_of(
        tmp_path,
        make_run("vanilla", documents=seen[0]),
        make_run(name, folder="hostile", val_loss=5.3, documents=seen[1]),
    )
    assert name in page.texts and "b" not in [tag for tag, _ in page.tags]
    assert [tag for tag, _ in page.tags].count("script") == 3  # the library, the charts, the page's own
    assert "alert('1')" not in page.text
    drawn = [
        trace.get("name", "") for chart in ("loss-1", "difference-1") for trace in page.charts[chart]["data"]
    ]
    assert any("alert" in trace for trace in drawn) and not any("<" in trace for trace in drawn)
    assert "<b>x" not in str(page.charts["forest"]["layout"]["annotations"])


def test_a_diverged_run_with_null_losses_is_drawn_to_its_end(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("post", status="diverged", step=100, val_loss=None)
    gone = {"loss": None, "grad_norm": None}
    rewrite(run, [line | gone if line["step"] > 60 else line for line in logged(run)])
    page = page_of(tmp_path, make_run("vanilla"), run)
    assert [trace["x"] for trace in page.traces("loss-1", text=["diverged"])] == [[60 * 8192]]
    (line,) = [trace for trace in page.traces("loss-1", mode="lines") if trace["legendgroup"] == "post"]
    assert line["x"][-1] == 60 * 8192


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
