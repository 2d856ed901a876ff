"""The report command: what it writes, what it serves until Ctrl-C, and what it refuses."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from eval.page.blocks import Chart
from eval.page.live.sources import Sources
from eval.page.study.contents import contents_of
from eval.report import main
from training.config.recipe import Recipe

from .studied import Trainer, make_files, noise, run
from .study_folders import make_study

MakeRun = Callable[..., Path]
ROOT = Path(__file__).parents[2]


TRAINED = (
    '{{"kind": "train", "step": {step}, "tokens": {tokens}, "loss": 2.5, "lr": 0.001, "grad_norm": 1}}\n'
)


def loss_of(recipe: Recipe, peak: float) -> float:
    return 2.5 + noise(recipe) + {"layernorm_no_bias": 0.2, "rmsnorm": -0.1}.get(recipe.variant, 0.0)


def test_a_study_with_its_runs_becomes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_files(tmp_path)
    sizes = {"small": {"model.n_embd": 16}, "medium": {}}
    variants = ["layernorm_no_bias", "rmsnorm"]  # the first stays behind at the gate
    assert run(tmp_path, Trainer(loss_of), variants=variants, seeds=[1, 2], sizes=sizes) == 0
    for file in tmp_path.iterdir():  # neither the study nor its recipe is at hand
        if file.is_file():
            file.unlink()
    for folder in tmp_path.glob("runs/study_*"):
        with (folder / "metrics.jsonl").open("a") as metrics:
            metrics.writelines(TRAINED.format(step=step, tokens=128 * step) for step in range(1, 5))
    study, out = tmp_path / "runs" / "studies" / "study", tmp_path / "pages" / "study.html"
    assert main([str(study), "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {out}\n")
    text = out.read_text()
    assert "rmsnorm is better than vanilla (-0." in text and 'id="chart-study-forest-0"' in text
    assert 'id="runs-of-size"' in text and 'id="loss"' in text and 'id="forest"' not in text
    assert 'id="runs-of-size-1"' in text  # size small, folded
    assert "/sections" not in text  # a file asks no server

    sections = contents_of(Sources([study]).read()).sections
    charts = [block for section in sections for block in section.blocks if isinstance(block, Chart)]
    assert len({chart.name for chart in charts}) == len(charts)
    of_rmsnorm = [
        (trace.line.color or trace.marker.color)
        for chart in charts
        for trace in chart.figure.data
        if "rmsnorm" in (trace.name, trace.legendgroup)
    ]
    assert len(of_rmsnorm) > 4 and set(of_rmsnorm) - {None} == {"var(--c2)"}


def test_a_study_whose_runs_are_elsewhere_becomes_a_page_too(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    assert main([str(study.folder), "--out", str(tmp_path / "study.html")]) == 0
    text = (tmp_path / "study.html").read_text()
    assert "Noise floor" in text and 'id="runs-of-size"' not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["RUN"], "say where the page goes: --out report.html, or --serve"),
        (["RUN", "--out", "OUT", "--host", "0.0.0.0"], "--host says where --serve listens: add --serve"),
        (
            ["--serve", "RUN", "RUN"],
            "but a port is a number up to 65535: give the folders first, or",
        ),
        (["RUN", "--serve", "70000"], "--serve is '70000', but a port is a number up to 65535"),
        (["RUN", "--serve", "0", "--host", "203.0.113.7"], "which is no address of this machine"),
        (["RUN", "STUDY", "--out", "OUT"], "is a study, which has its runs itself: give its folder alone"),
        (
            ["STUDY", "--out", "OUT", "--baseline", "rmsnorm"],
            "names its baseline itself: leave out",
        ),
        (["STUDY", "--out", "OUT"], "has no results.json yet"),
        (["NONE", "--serve", "0"], "there is no run folder"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    (study := tmp_path / "studies" / "mine").mkdir(parents=True)
    content = {"time": "", "sha256": "", "plan": {}, "there_before": [], "departures": []}
    (study / "registration.json").write_text(json.dumps(content))
    names = {"RUN": make_run(), "STUDY": study, "OUT": tmp_path / "out.html", "NONE": tmp_path / "none"}
    assert main([str(names.get(word, word)) for word in words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "out.html").exists()


def test_ctrl_c_ends_the_server(make_run: MakeRun, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    words = [str(make_run()), str(make_run("rmsnorm", val_loss=5.3)), "--serve", "0", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "eval.report", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in its background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    url = re.match(r"(http://localhost:\d+/) follows ", said)
    assert url is not None
    with urlopen(url[1]) as answer:
        page = answer.read().decode()
    assert "/sections" in page and "rmsnorm" in page
    assert out.read_text().partition("<main")[2].partition("</main>")[0] in page
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert process.stdout.read() == "stopped\n"
    process.stdout.close()
