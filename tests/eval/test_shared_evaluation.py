"""Several processes at one checkpoint: as ranks of one evaluation, and as evaluations beside each other."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.jobs import run_tasks
from eval.running.locks import take_turns
from tests.distributed import free_port
from tests.jobs import Started, run
from tests.processes import ENVIRONMENT, ROOT, run_forked

from .tiny_runs import TASKS, eval_main, make_run, results_of, write_sets


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sets = write_sets(tmp_path_factory.mktemp("sets"))
    return make_run(tmp_path_factory.mktemp("runs") / "one", {1: None}, sets)


@pytest.fixture(scope="module")
def of_one_rank(trained: Path) -> dict[str, Any]:
    alone = shutil.copytree(trained, trained.parent / "alone")
    assert run([str(alone)], main=eval_main).returncode == 0
    return results_of(alone, 1)


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "one")


def test_two_ranks_have_the_results_of_one_and_one_speaks(run_dir: Path, of_one_rank: dict[str, Any]) -> None:
    done = run([str(run_dir)], ranks=2, main=eval_main)
    assert done.returncode == 0, done.stderr
    assert results_of(run_dir, 1) == of_one_rank
    assert done.stderr.count("results in ") == done.stderr.count("reading piqa, wikitext from ") == 1
    assert (run_dir / "logs" / "eval_rank1.log").is_file()


def test_what_cannot_be_scored_ends_all_ranks_with_one_sentence(run_dir: Path) -> None:
    (run_dir / "checkpoints" / "step_00000001" / "manifest.json").write_text(
        '{"files": {"mp_rank_00_model_states.pt": {"size": 0, "sha256": ""}}}'
    )
    words = [str(run_dir), "--step", "1"]
    for damage in ("is damaged (its manifest.json cannot be read)", "is damaged ("):
        done = run(words, ranks=2, main=eval_main)
        assert done.returncode == 2
        assert damage in done.stderr and done.stderr.count("error: ") == 1, done.stderr
        weights = run_dir / "checkpoints" / "step_00000001" / "mp_rank_00_model_states.pt"
        (weights.parent / "manifest.json").write_text(
            f'{{"files": {{"{weights.name}": {{"size": {weights.stat().st_size}, "sha256": "another"}}}}}}'
        )


@pytest.mark.slow
def test_deepspeeds_launcher_starts_it(run_dir: Path, of_one_rank: dict[str, Any]) -> None:
    launcher = ["-m", "deepspeed.launcher.runner", "--quiet", "--num_accelerators", "2"]
    words = [*launcher, "--master_port", str(free_port()), "--module", "eval", str(run_dir)]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert results_of(run_dir, 1) == of_one_rank


def test_a_task_that_another_process_scores_is_waited_for(run_dir: Path, of_one_rank: dict[str, Any]) -> None:
    first = started_until_it_scores(run_dir, "piqa", "--tasks", "piqa")
    second = Started([str(run_dir)], 1, False, eval_main)
    wait_until(second, lambda: "waiting for it" in second.printed()[1])
    said = second.printed()[1]
    assert f"process {first.pid} on " in said and f" scores piqa at step 1 of {run_dir}: waiting" in said
    assert results_of(run_dir, 1).keys() == {"wikitext"}  # what nobody was at came first
    (run_dir / "go on").touch()
    assert first.wait() == second.wait() == 0
    assert "piqa            :" not in second.printed()[1]  # no bar of its own
    assert results_of(run_dir, 1) == of_one_rank


def test_a_killed_process_holds_no_task(run_dir: Path) -> None:
    killed = started_until_it_scores(run_dir, "piqa", "--tasks", "piqa")
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    (run_dir / "go on").touch()
    done = run([str(run_dir)], main=eval_main)
    assert done.returncode == 0 and "waiting" not in done.stderr
    assert results_of(run_dir, 1).keys() == set(TASKS)


def test_different_tasks_that_end_together_are_all_there(run_dir: Path) -> None:
    both = [started_until_it_scores(run_dir, task, "--tasks", task) for task in TASKS]
    (run_dir / "go on").touch()
    assert [one.wait() for one in both] == [0, 0]
    assert results_of(run_dir, 1).keys() == set(TASKS)


def test_a_task_is_left_to_others_until_the_next_is_asked_for(tmp_path: Path) -> None:
    said: list[str] = []
    turns = take_turns(tmp_path, 1, ["a", "b", "c"], lambda name: name == "b", said.append)
    assert next(turns) == "a"
    run_forked(see_what_is_left, tmp_path)
    assert list(turns) == ["c"] and not said  # b was done by then


def see_what_is_left(run_dir: Path) -> None:
    def say(sentence: str) -> None:
        raise BlockingIOError(sentence)

    turns = take_turns(run_dir, 1, ["a", "b", "c"], lambda name: False, say)
    assert [next(turns), next(turns)] == ["b", "c"]
    with pytest.raises(BlockingIOError, match=r"^process \d+ on .* scores a at step 1 of "):
        next(turns)


def started_until_it_scores(run_dir: Path, task: str, *words: str) -> Started:
    """An evaluation that waits in this task for the file `go on`."""
    started = Started([str(run_dir), *words], 1, False, waiting_main)
    wait_until(started, lambda: (run_dir / f"scores {task}").exists())
    return started


def wait_until(started: Started, happens: Callable[[], bool]) -> None:
    while not happens():
        assert started.poll() is None, started.printed()[1]
        time.sleep(0.02)


def waiting_main(words: list[str]) -> int:
    def run_later(gpt, tokenizer, tasks, **options):
        Path(words[0], f"scores {next(iter(tasks))}").touch()
        while not Path(words[0], "go on").exists():
            time.sleep(0.02)
        return run_tasks(gpt, tokenizer, tasks, **options)

    sys.modules[run_tasks.__module__].run_tasks = run_later  # type: ignore[attr-defined]
    return eval_main(words)
