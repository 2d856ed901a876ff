"""Records that are lists, empty, cut, no UTF-8, folders or of other types: a sentence that names the file."""

import json
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import eval.judging.commands as commands
from eval import export, report, scorecard
from tests.eval.judged import MadeUp, make_judged
from tests.eval.judged import words as judge_words
from tests.eval.made_up_run import build_run
from tests.eval.studied import Trainer, gain, make_files, run, write_study
from tests.eval.tiny_runs import make_run, write_sets
from tests.processes import ROOT
from training.run.__main__ import main as standing

Main = Callable[[list[str]], int]
study: Main = runpy.run_path(str(ROOT / "scripts" / "study.py"), run_name="study")["main"]
judge: Main = runpy.run_path(str(ROOT / "scripts" / "judge.py"), run_name="judge")["main"]
ODD = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-9],
    "a list": lambda content: b"[1]",
    "a number": lambda content: b"7",
    "no UTF-8": lambda content: b"\xff\xfe" + content,
    "Latin 1": lambda content: content[:-4] + "ü".encode("latin-1") + content[-4:],
    "deep": lambda content: b"[" * 100_000,
}
OF_LOOKS = ("study", "candidate", "baseline", "data", "length")
"""Keys of a ledger's line that are read."""
OTHERS: tuple[Any, ...] = (7.5, [1])


def places(content: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    """The keys of a JSON, those inside its objects and first list entries too."""
    items = content.items() if isinstance(content, dict) else enumerate(content[:1])
    for key, value in items:
        yield (key,)
        if depth and isinstance(value, dict | list):
            yield from ((key, *inner) for inner in places(value, depth - 1))


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    content = json.loads(json.dumps(content))
    at = content
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return content


def check(
    main: Main,
    words: list[str],
    file: Path,
    capfd: pytest.CaptureFixture[str],
    skip: str = "",
    depth: int = 0,
) -> None:
    """That a command says one sentence about each odd form of a file, and has a stack trace for none."""
    whole = file.read_bytes()
    assert main(words) in (0, 1), capfd.readouterr()
    for name, make in ODD.items():
        if name == "empty" and file.suffix == ".jsonl":
            continue  # it has no lines
        file.write_bytes(make(whole))
        assert refusal(main, words, file, capfd), f"{file.name} is {name}"
    file.unlink()
    file.mkdir()
    assert refusal(main, words, file, capfd), f"{file.name} is a folder"
    file.rmdir()
    content, *rest = whole.splitlines() if file.suffix == ".jsonl" else [whole]
    refused = 0
    for place in places(json.loads(content), depth):
        if place[0] != skip and (not rest or place[0] in OF_LOOKS):
            for value in OTHERS:
                odd = json.dumps(changed(json.loads(content), place, value)).encode()
                file.write_bytes(b"\n".join([odd, *rest]) + b"\n")
                refused += refusal(main, words, file, capfd)
    assert refused
    file.write_bytes(whole)


def refusal(main: Main, words: list[str], file: Path, capfd: pytest.CaptureFixture[str]) -> bool:
    """Whether a command is refused, in one sentence that names the file."""
    status = main(words)
    out, err = capfd.readouterr()
    said = [line for line in (out + err).splitlines() if line.startswith(("error: ", "refused: "))]
    assert len(said) == (status == 2) and "Traceback" not in out + err
    assert status != 2 or file.name in said[0]
    return status == 2


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that has ended, two sizes of two seeds, and a projection of a third."""
    folder = make_files(tmp_path_factory.mktemp("study"))
    sizes = {"small": {"model.n_embd": 16}, "medium": {"model.n_embd": 32, "train.steps": 8}}
    target = {"model.n_embd": 64, "train.steps": 16}
    assert run(folder, Trainer(gain), seeds=[1, 2], sizes=sizes, target=target) == 0
    return folder


@pytest.mark.parametrize("name", ["registration.json", "projections.json", "cells/*vanilla_1x_seed1.json"])
def test_a_study_names_its_odd_records(studied: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    file = next((studied / "runs" / "studies" / "study").glob(name))
    words = [str(studied / "study.yaml"), "--runs", str(studied / "runs"), "--status"]
    check(study, words, file, capfd, skip="plan", depth=int(name == "projections.json"))


def test_a_study_names_an_odd_ledger(studied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [str(studied / "study.yaml"), "--runs", str(studied / "runs"), "--status"]
    check(study, words, studied / "runs" / "ledger.jsonl", capfd)


def test_a_report_names_odd_records_of_a_study(studied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = studied / "runs" / "studies" / "study"
    words = [str(folder), "--out", str(studied / "page.html")]
    check(report.main, words, folder / "results.json", capfd)


def test_a_study_trains_nothing_beside_odd_records(studied: Path, tmp_path: Path) -> None:
    shutil.copytree(studied, tmp_path / "copy")
    for name in ("cells/small_vanilla_1x_seed1.json", "registration.json", "projections.json"):
        file = tmp_path / "copy" / "runs" / "studies" / "study" / name
        whole = file.read_bytes()
        file.write_bytes(b"[1]")
        trainer = Trainer(gain)
        words = [str(write_study(studied)), "--runs", str(tmp_path / "copy" / "runs"), "--retry"]
        commands_before = commands.Commands
        commands.Commands = lambda trainer=trainer: trainer  # type: ignore[assignment, misc]
        try:
            assert study(words) == 2 and trainer.trained == []
        finally:
            commands.Commands = commands_before  # type: ignore[misc]
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", ["ledger", "check", "check of a run"])
def test_a_judgment_names_odd_records(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = make_judged(tmp_path)
    words = judge_words(folder, "--seeds", "1")
    checks = [{"name": "causality", "status": "fail", "detail": "it looks ahead"}]
    refused = json.dumps({"passed": False, "checks": checks})
    file = folder / "preflight.json"
    start: Any = MadeUp()
    if kind == "ledger":
        monkeypatch.setattr(commands, "Commands", lambda: start)
        assert judge(words) == 0
        file = folder / "runs" / "ledger.jsonl"
    elif kind == "check":
        file.write_text(refused)
        monkeypatch.setattr(commands, "Commands", lambda: Checking(file))
    else:
        file = folder / "runs" / "recipe_mine+pre_seed1" / "preflight.json"
        file.parent.mkdir(parents=True)
        file.write_text(refused)
        monkeypatch.setattr(commands, "Commands", lambda: MadeUp({("mine+pre", 1): "mistake"}))
    whole = file.read_bytes()
    odd = [make(whole) for name, make in ODD.items() if (name, kind) != ("empty", "ledger")]
    odd.append(whole.replace(b'"passed": false', b'"passed": "x"'))
    for content in odd:
        file.write_bytes(content.replace(b'"design_identity": "', b'"design_identity": 7, "x": "'))
        assert judge(words) == 2
        out, err = capfd.readouterr()
        (said,) = [line for line in (out + err).splitlines() if line.startswith(("error: ", "refused: "))]
        assert file.name in said and "Traceback" not in out + err


class Checking(MadeUp):
    """Its pre-flight check leaves what a file holds."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def __call__(self, command: commands.Command, words: Any, ranks: int = 1) -> commands.Ended:
        if command != "preflight":
            return super().__call__(command, words, ranks)
        Path(words[-1]).write_bytes(self.file.read_bytes())
        return commands.Ended(1, "")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run with all of its files."""
    tasks = {"piqa": {"acc": 0.5, "acc_stderr": 0.1}}
    made = build_run(tmp_path, tasks=tasks, recipe={"data": {"tokenizer": "gpt2"}}, heartbeat=1.0)
    facts = {"command": ["--a"], "world_size": 1, "gpus": ["H100"], "cpus": 2, "git_commit": None}
    (made / "environment.json").write_text(json.dumps(facts))
    (made / "ds_config.json").write_text(json.dumps({"optimizer": {"type": "AdamW", "params": {"lr": 1}}}))
    return made


RESULTS = "eval/step_00000200/results.json"


@pytest.mark.parametrize("name", ["summary.json", "environment.json", "ds_config.json", RESULTS])
def test_a_scorecard_names_odd_files(trained: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    check(scorecard.main, [str(trained)], trained / name, capfd)


@pytest.mark.parametrize("name", ["environment.json", RESULTS])
def test_a_report_names_odd_files(trained: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    words = [str(trained), "--out", str(trained / "page.html")]
    check(report.main, words, trained / name, capfd)


@pytest.mark.parametrize("form", ["words", "--json"])
def test_where_a_run_stands_names_an_odd_summary(
    trained: Path, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    words = [str(trained), *([form] if form == "--json" else [])]
    check(standing, words, trained / "summary.json", capfd)
    # what only adds to the answer is left out of it
    facts = {"rank": 1, "host": "h", "signal": None, "step": 3, "sentence": "E: x", "log": "logs/rank1.log"}
    summary = json.loads((trained / "summary.json").read_text())
    (trained / "summary.json").write_text(json.dumps(summary | {"status": "failed", "error": "E"}))
    for name in ("failure.json", "environment.json", "preflight.json"):
        whole = json.dumps(facts if name == "failure.json" else {"command": ["--a"], "gpus": []})
        odd = [make(whole.encode()) for make in ODD.values()]
        odd += [json.dumps(changed(json.loads(whole), (key,), 7.5)).encode() for key in json.loads(whole)]
        for content in odd:
            (trained / name).write_bytes(content)
            assert standing(words) == 1 and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("content", ["", "[1]", "model: 7", "model: [1]", "\x00", "a: b: c"])
@pytest.mark.parametrize("command", ["export", "report", "scorecard"])
def test_an_odd_recipe_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, content: str
) -> None:
    made = make_run(tmp_path / "run", {1: 5.0}, write_sets(tmp_path / "sets"))
    (made / "recipe.yaml").write_text(content)
    main = {"export": export.main, "report": report.main, "scorecard": scorecard.main}[command]
    words = [] if command == "scorecard" else ["--out", str(tmp_path / "out")]
    assert refusal(main, [str(made), *words], made / "recipe.yaml", capfd)
