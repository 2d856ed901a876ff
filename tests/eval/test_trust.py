"""What docs/trust.md says: text of runs is never markup, and which commands execute a run's designs."""

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval import diagnose, export, generate, report, scorecard
from eval.report import main
from tests.eval.cards import documents
from tests.eval.pages import Page
from tests.eval.test_depth_report import add_diagnosis, add_steps
from tests.eval.tiny_runs import make_run as make_tiny_run
from tests.eval.tiny_runs import write_sets
from tests.processes import ROOT
from training.run.__main__ import main as standing

from .study_folders import make_study

MakeRun = Callable[..., Path]
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)><b>"
MEANT = ("<br>", "<b>", "</b>", "<extra>", "</extra>")
"""What the page itself puts into Plotly's texts."""
NO_TEXT = ("legendgroup", "shape", "dtype")
"""Keys of a figure that Plotly compares and never shows; the page shows them as text."""


def drawn_texts(figure: Any, key: str = "") -> Iterator[str]:
    """All that Plotly may take for markup."""
    if isinstance(figure, dict):
        for name, value in figure.items():
            yield from drawn_texts(value, name)
    elif isinstance(figure, list):
        for value in figure:
            yield from drawn_texts(value, key)
    elif isinstance(figure, str) and key not in NO_TEXT:
        yield figure


def check_page(text: str) -> list[str]:
    """That nothing of `EVIL` is markup; returns what the page shows."""
    page = Page(text)
    assert {"img", "b"}.isdisjoint(tag for tag, _ in page.tags)
    assert [tag for tag, _ in page.tags].count("script") == 3  # the library, the charts, the page's own
    assert "alert(" not in text.replace("&lt;script&gt;alert(1)", "").replace("onerror=alert(2)&gt;", "")
    drawn = [text for one in page.charts.values() for text in drawn_texts([one["data"], one["layout"]])]
    assert any("alert(" in text for text in drawn)
    for markup in MEANT:
        drawn = [text.replace(markup, "") for text in drawn]
    assert not [text for text in drawn if "<" in text]
    return page.texts


def evil(content: Any) -> Any:
    """A JSON with `EVIL` before each of its texts, keys left as they are."""
    if isinstance(content, dict):
        return {key: evil(value) for key, value in content.items()}
    if isinstance(content, list):
        return list(map(evil, content))
    return EVIL + content if isinstance(content, str) else content


def test_no_text_of_a_run_is_markup_in_the_report(make_run: MakeRun, tmp_path: Path) -> None:
    runs = []
    for number, name in enumerate(("vanilla", EVIL + "design")):
        runs.append(
            make_run(
                name,
                folder=f"{number}<b>{number}",
                tasks={EVIL + "task": {"acc": 0.5, "acc_stderr": 0.01, EVIL: 0.1}},
                documents=documents(1, 0.1 * number),
                recipe={
                    "model": {"norm": f"{EVIL}design" if number else "layernorm"},
                    "data": {"source": EVIL, "tokenizer": EVIL},
                },
                engine={"optimizer": {"type": EVIL, "params": {"lr": 1e-3 + number}}},
                error=EVIL,
                model=EVIL,
                evaluation={"status": EVIL, "error": EVIL},
                divergence={"sentence": EVIL},
                throughput={"device": EVIL},
            )
        )
        (runs[-1] / "environment.json").write_text(json.dumps({"gpus": [EVIL], "platform": EVIL}))
        add_diagnosis(add_steps(runs[-1]))
    assert main([*map(str, runs), "--out", str(tmp_path / "page.html")]) == 0
    assert EVIL + "design" in " ".join(check_page((tmp_path / "page.html").read_text()))


def test_no_text_of_a_study_is_markup_in_the_report(tmp_path: Path) -> None:
    folder = make_study(tmp_path).folder
    file = folder / "results.json"
    content = json.loads(file.read_text())
    for name in content["sizes"][0]["rates"]:
        content = json.loads(json.dumps(content).replace(json.dumps(name), json.dumps(EVIL + name)))
    file.write_text(json.dumps(content | {"study": EVIL + "study"}))
    registration = folder / "registration.json"
    stored = json.loads(registration.read_text())
    registration.write_text(json.dumps(stored | {"time": EVIL, "there_before": [EVIL]}))
    assert main([str(folder), "--out", str(tmp_path / "page.html")]) == 0
    shown = " ".join(check_page((tmp_path / "page.html").read_text()))
    assert EVIL + "rmsnorm_post" in shown and EVIL + "study" in shown


DESIGN = """
import pathlib
import torch

MARK = pathlib.Path({mark!r}).touch()


class LayerNorm(torch.nn.LayerNorm):
    def __init__(self, ndim, bias):
        super().__init__(ndim, bias=bias)
        self.mark = MARK
"""
EXECUTES: dict[str, tuple[Callable[[list[str]], object], list[str]]] = {
    "generate": (generate.main, ["--prompt", "a", "--max_tokens", "1"]),
    "export": (export.main, ["--out", "OUT"]),
    "diagnose": (diagnose.main, ["--sequences", "1"]),
}
READS: dict[str, tuple[Callable[[list[str]], object], list[str]]] = {
    "report": (report.main, ["--out", "OUT"]),
    "scorecard": (scorecard.main, []),
    "training.run": (standing, []),
}


@pytest.mark.parametrize("kept", ["the copy", "no copy"])
@pytest.mark.parametrize("command", [*EXECUTES, *READS])
def test_designs_of_a_run_are_executed_where_its_model_is_built(
    tmp_path: Path, command: str, kept: str
) -> None:
    run = make_tiny_run(tmp_path / "run", {1: 5.0}, write_sets(tmp_path / "sets"))
    marks = {"kept": tmp_path / "kept was executed", "named": tmp_path / "named was executed"}
    named = tmp_path / "named.py"
    named.write_text(DESIGN.format(mark=str(marks["named"])))
    if kept == "the copy":
        (run / "designs").mkdir()
        (run / "designs" / "norm.py").write_text(DESIGN.format(mark=str(marks["kept"])))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["norm"] = f"{named}:LayerNorm"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    start, words = {**EXECUTES, **READS}[command]
    start([str(run), *(str(tmp_path / "out") if word == "OUT" else word for word in words)])
    executed = [name for name, mark in marks.items() if mark.exists()]
    if command in READS:
        assert executed == []
    else:
        assert executed == ["kept" if kept == "the copy" else "named"]


RISKY = {
    "model/designs.py": {"importlib"},  # module:Class
    "model/export.py": {"importlib"},  # of NormLab itself, and which packages a design needs
    "model/siblings.py": {"exec"},  # a design's file
    "training/engine/libraries.py": {"importlib"},  # of NormLab itself and torch
    "training/checkpoints/safe_loading.py": {"pickle", "torch.load"},
    "training/config/recipe_file.py": {"yaml.load"},  # with a loader of plain values
    "data/parallel.py": {"pickle"},  # between a run's own processes
    "data/workers/sequences.py": {"pickle"},
    "data/sources/remote/footers.py": {"np.load"},  # without pickles
    "scripts/bench_remote.py": {"importlib"},  # of NormLab itself
    "scripts/faults/server.py": {"importlib", "runpy"},  # forks NormLab's own commands
}
"""What could execute a file's code. Another one has to be found in docs/trust.md before it stands here."""
LOADERS = ("torch.load", "np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle")
BUILT_IN = ("exec", "eval", "__import__")
MODULES = ("importlib", "runpy", "pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle")
HARMLESS = ("importlib.metadata", "importlib.util", "importlib.resources")


def risks_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (name for name in names if name.partition(".")[0] in MODULES and name not in HARMLESS)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module not in HARMLESS:
            if (top := str(node.module).partition(".")[0]) in MODULES:
                yield top
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in LOADERS:
            yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BUILT_IN:
                yield node.func.id
            yield from (
                f"{word.arg}=True"
                for word in node.keywords
                if word.arg in ("shell", "allow_pickle", "trust_remote_code")
                and isinstance(word.value, ast.Constant)
                and word.value.value
            )


def test_what_could_execute_a_file_is_known() -> None:
    folders = [ROOT / name for name in ("model", "data", "training", "eval", "scripts")]
    files = [ROOT / "train.py", *(file for folder in folders for file in folder.rglob("*.py"))]
    found = {file.relative_to(ROOT).as_posix(): set(risks_of(file)) for file in files}
    assert {file: risks for file, risks in found.items() if risks} == RISKY
