"""Damage to a run's files, command by command: one sentence that names the file, or the step before."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import eval.__main__ as evaluate
from eval import diagnose, export, generate, report, scorecard
from tests.eval.tiny_runs import make_run, write_sets

LAST = "checkpoints/step_00000002"


def replaced(text: str | bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(text if isinstance(text, bytes) else text.encode())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def manifest_of(step: int, name: str, size: object, sha256: object = "0" * 64) -> Callable[[Path], object]:
    return replaced(json.dumps({"step": step, "files": {name: {"size": size, "sha256": sha256}}}))


MANIFEST, WEIGHTS = f"{LAST}/manifest.json", f"{LAST}/mp_rank_00_model_states.pt"
OF_CHECKPOINT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights cut": (WEIGHTS, cut),
    "weights missing": (WEIGHTS, Path.unlink),
    "manifest missing": (MANIFEST, Path.unlink),
    "manifest empty": (MANIFEST, replaced("")),
    "manifest a list": (MANIFEST, replaced("[]")),
    "manifest deep": (MANIFEST, replaced("[" * 100_000)),
    "no file": (MANIFEST, replaced('{"step": 2, "files": {}}')),
    "files a list": (MANIFEST, replaced('{"step": 2, "files": [1]}')),
    "another step": (MANIFEST, manifest_of(7, "mp_rank_00_model_states.pt", 1)),
    "absolute path": (MANIFEST, manifest_of(2, "/etc/hostname", 1)),
    "path above": (MANIFEST, manifest_of(2, "../../recipe.yaml", 1)),
    "huge size": (MANIFEST, manifest_of(2, "mp_rank_00_model_states.pt", 10**30)),
    "size a text": (MANIFEST, manifest_of(2, "mp_rank_00_model_states.pt", "1")),
    "hash a number": (MANIFEST, manifest_of(2, "mp_rank_00_model_states.pt", 1, 7)),
}
OF_FILE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "recipe empty": ("recipe.yaml", replaced("")),
    "recipe cut": ("recipe.yaml", replaced("model: {n_layer: 1")),
    "recipe odd": ("recipe.yaml", replaced("model: {n_layer: two}")),
    "recipe unknown": ("recipe.yaml", replaced("model: {layers: 2}")),
    "summary empty": ("summary.json", replaced("")),
    "summary cut": ("summary.json", cut),
    "summary a list": ("summary.json", replaced("[1]")),
    "summary odd": ("summary.json", replaced('{"status": "finished", "variant": "v", "step": "7"}')),
}
COMMANDS: dict[str, tuple[Callable[[list[str]], object], list[str]]] = {
    "eval": (evaluate.main, ["--tasks", "piqa"]),
    "export": (export.main, ["--out"]),
    "generate": (generate.main, ["--prompt", "a", "--max_tokens", "1"]),
    "diagnose": (diagnose.main, ["--sequences", "1"]),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", {1: 5.0, 2: 4.0}, write_sets(tmp_path / "sets"))


@pytest.mark.parametrize("damage", OF_CHECKPOINT)
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_taken(
    run: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    file, harm = OF_CHECKPOINT[damage]
    harm(run / file)
    assert generate.main([str(run), "--prompt", "a", "--max_tokens", "1"]) == 0
    said = capfd.readouterr().err
    assert f"{run / LAST} is damaged" in said and said.count("is damaged") == 1
    assert f"step 1 of {run}" in said
    assert generate.main([str(run), "--prompt", "a", "--step", "2"]) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"error: {run / LAST} is damaged (") and said.count("\n") == 1
    assert "--step takes one of 1" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_refuses_a_damaged_checkpoint_that_it_was_asked_for(
    run: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    cut(run / WEIGHTS)
    assert start(command, run, "--step", "2") == 2
    said = capfd.readouterr().err
    assert said.startswith(f"error: {run / LAST} is damaged (mp_rank_00_model_states.pt is missing or has")
    assert said.count("\n") == 1


@pytest.mark.parametrize("damage", OF_FILE)
@pytest.mark.parametrize("command", [*COMMANDS, "scorecard", "report"])
def test_a_damaged_file_gets_one_sentence_with_its_name(
    run: Path, capfd: pytest.CaptureFixture[str], damage: str, command: str
) -> None:
    name, harm = OF_FILE[damage]
    harm(run / name)
    status = start(command, run)
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if not line.startswith("note: ")]
    if status == 0:  # a command that does not read what is damaged
        assert (command, name) in READS_LITTLE or damage == "recipe unknown"
        return
    errors = [line for line in lines if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and str(run / name) in errors[0]


READS_LITTLE = {("generate", "summary.json"), ("export", "summary.json"), ("diagnose", "summary.json")}


def start(command: str, run: Path, *options: str) -> object:
    if command == "scorecard":
        return scorecard.main([str(run)])
    if command == "report":
        return report.main([str(run), "--out", str(run.parent / "page.html")])
    main, words = COMMANDS[command]
    words = [*words, str(run.parent / "out")] if command == "export" else words
    words = [*words, "--eval_data", str(run.parent / "sets")] if command == "eval" else words
    return main([str(run), *words, *options])


@pytest.mark.parametrize("harm", [cut, replaced(""), replaced("[1]"), replaced("{}")], ids=range(4))
@pytest.mark.parametrize("command", ["scorecard", "report"])
def test_results_that_are_damaged_get_one_sentence(
    run: Path, capfd: pytest.CaptureFixture[str], harm: Callable[[Path], object], command: str
) -> None:
    (run / "summary.json").write_text(
        json.dumps({"status": "finished", "variant": "vanilla", "step": 2, "val_loss": 4.0})
    )
    file = run / "eval" / "step_00000002" / "results.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"results": {}, "normlab": {"limit": null}}')
    harm(file)
    assert start(command, run) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ") and str(file) in said and said.count("\n") == 1
