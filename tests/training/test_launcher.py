"""What a launcher's variables may say: all or nothing, and numbers that go together."""

import re
from pathlib import Path

import pytest

from model.errors import LauncherError, UserError, print_error
from tests.distributed import of_rank
from tests.processes import ROOT
from tests.training.command_lines import command, recipe_folder
from training.config import read_command
from training.engine.environment import (
    LAUNCHER,
    OF_HOST,
    OURS,
    Launch,
    environment_notes,
    launch_from_environment,
    rank_from_environment,
    world_size_from_environment,
)

WHOLE = of_rank(1, 4, 29500)


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHER, *OF_HOST, "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "DEEPSPEED_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


def refusal(monkeypatch: pytest.MonkeyPatch, **given: str) -> str:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LauncherError) as caught:
        launch_from_environment()
    return str(caught.value)


def test_all_of_the_variables_or_none_make_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch_from_environment() is None
    assert (rank_from_environment(), world_size_from_environment()) == (0, 1)
    for name in LAUNCHER:
        monkeypatch.setenv(name, "")
    assert launch_from_environment() is None
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert launch_from_environment() == Launch(1, 1, 4, "127.0.0.1", 29500, 4)
    assert (rank_from_environment(), world_size_from_environment()) == (1, 4)
    monkeypatch.delenv("LOCAL_SIZE")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun's name for it
    assert launch_from_environment() == Launch(1, 1, 4, "127.0.0.1", 29500, 2)


@pytest.mark.parametrize("left_out", [{name} for name in LAUNCHER] + [{*LAUNCHER} - {n} for n in LAUNCHER])
def test_some_of_the_variables_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, left_out: set[str]
) -> None:
    sentence = refusal(monkeypatch, **{name: WHOLE[name] for name in LAUNCHER if name not in left_out})
    given = [name for name in LAUNCHER if name not in left_out]
    there, missing, remedy = re.split(" set in the environment, but | not: ", sentence)
    assert set(re.findall("[A-Z_]{2,}", there)) == set(given)
    assert set(re.findall("[A-Z_]{2,}", missing)) == left_out
    assert remedy.startswith(f"`unset {' '.join(given)}` trains on one rank") and "deepspeed" in remedy


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"RANK": "x"}, "RANK is 'x' in the environment, but it must be a whole number of at least 0"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "4"}, "RANK is 4 in the environment, but WORLD_SIZE is 4 and ranks count from 0"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' in the environment, but it must be a whole number of at "),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE is '2.0'"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK is 4 in the environment, but LOCAL_SIZE is 4"),
        ({"LOCAL_SIZE": "many"}, "LOCAL_SIZE is 'many'"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is 0 in the environment, but it must be from 1 to 65535"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
        ({"MASTER_PORT": "29500 "}, "MASTER_PORT is '29500 '"),
    ],
)  # fmt: skip
def test_variables_that_do_not_go_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], words: str
) -> None:
    sentence = refusal(monkeypatch, **(WHOLE | changed))
    assert sentence.startswith(words) and "`unset RANK LOCAL_RANK WORLD_SIZE" in sentence, sentence


def test_any_rank_says_what_is_wrong_with_its_launcher(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert print_error(UserError("of all ranks")) == print_error(LauncherError("of this rank")) == 2
    assert capfd.readouterr().err == "error: of this rank\n"


@pytest.mark.parametrize(
    "words", [["--local_rank", "0"], ["--local_rank=0"], ["--local-rank", "0"], ["--local-rank=0"], []]
)
def test_a_launchers_option_is_taken_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    folder = recipe_folder(tmp_path, monkeypatch)
    for name, value in of_rank(0, 2, 29500).items():
        monkeypatch.setenv(name, value)
    assert read_command(command(folder, *words))[1].train_batch_size == 576


@pytest.mark.parametrize(
    ("words", "environment", "sentence"),
    [
        (["--local-rank", "1"], {}, "--local_rank is 1, but no launcher's variables are set"),
        (["--local_rank=1"], of_rank(0, 2, 29500), "--local_rank is 1, but LOCAL_RANK is 0"),
        (["--local_rank", "x"], {}, "--local_rank is 'x', but it must be a whole number"),
        ([], {"DEEPSPEED_TIMEOUT": "0.5"}, "DEEPSPEED_TIMEOUT is '0.5' in the environment"),
        ([], {"DEEPSPEED_TIMEOUT": "0"}, "DEEPSPEED_TIMEOUT is '0' in the environment"),
        ([], {"WORLD_SIZE": "2"}, "WORLD_SIZE is set in the environment, but RANK, LOCAL_RANK"),
    ],
)
def test_train_py_refuses_what_its_launcher_gets_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    environment: dict[str, str],
    sentence: str,
) -> None:
    folder = recipe_folder(tmp_path, monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LauncherError, match=re.escape(sentence)):
        read_command(command(folder, *words))


def test_help_comes_before_what_is_wrong_with_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as left:
        read_command(["--help"])
    assert left.value.code == 0 and "--local_rank" in capsys.readouterr().out


def test_variables_and_processes_that_do_nothing_are_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in OURS:
        monkeypatch.setenv(name, "somewhere")
    assert environment_notes() == []
    monkeypatch.setenv("NORMLAB_SAMPLE_DIRR", "x")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    misspelt, alone = environment_notes()
    assert misspelt.startswith("NORMLAB_SAMPLE_DIRR is set") and "'NORMLAB_SAMPLE_DIR'" in misspelt
    assert alone.startswith("srun started 8 processes, of which this one trains alone")
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert len(environment_notes()) == 1


def test_the_variables_that_are_read_are_the_known_ones() -> None:
    found = set()
    for directory in ("model", "data", "training", "eval"):
        for path in (ROOT / directory).rglob("*.py"):
            found |= set(re.findall(r"\bNORMLAB_[A-Z_]*[A-Z]\b", path.read_text()))
    assert found == set(OURS)
