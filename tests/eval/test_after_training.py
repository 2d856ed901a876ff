"""The evaluation that follows training by itself, which leaves the run finished whatever becomes of it."""

import json
import pydoc_data.topics
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import train
from eval import check_evaluation
from eval.jobs import run_tasks
from eval.running.evaluation import evaluate_model
from eval.running.job import Job
from model.errors import INTERRUPTED, UserError
from tests.jobs import TIMEOUT, Started, arguments, make_job, run, summary_of, train_main
from tests.processes import ENVIRONMENT
from tests.training.wandb_server import wandb_server
from training.config.evaluation import EvalConfig

from .tiny_runs import Quiet, results_of, write_sets

STEPS = 4
WANDB_END_S = 8.0
"""How long W&B has at the end of these runs."""
ON = ["--eval.after_training", "true"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a recipe without an evaluation, and evaluation sets."""
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    folder = make_job(tmp_path_factory.mktemp("job"), texts, STEPS, tokenizer="bytes")
    write_sets(folder / "sets")
    return folder


@pytest.fixture(scope="module")
def piqa(job: Path) -> list[str]:
    """The options that ask for an evaluation on local items."""
    return [*ON, "--eval.data_dir", str(job / "sets"), "--eval.tasks", "[piqa]"]


@pytest.fixture(scope="module")
def evaluated(job: Path, piqa: list[str]) -> tuple[Path, str]:
    """A run that was evaluated when its training ended, and what it said."""
    done = run(arguments(job, job / "evaluated", *piqa))
    assert done.returncode == 0, done.stderr
    return job / "evaluated", done.stderr


@pytest.fixture
def finished(evaluated: tuple[Path, str], tmp_path: Path) -> Path:
    """The same run as it is without an evaluation."""
    folder = shutil.copytree(evaluated[0], tmp_path / "finished")
    (folder / "eval" / f"step_{STEPS:08d}" / "results.json").unlink()
    summary = summary_of(folder)
    del summary["evaluation"]
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def scores_of_the_command(run_dir: Path, sets: Path, *tasks: str) -> dict[str, Any]:
    config = EvalConfig(tasks, str(sets))
    evaluate_model(Job(run_dir, run_dir, run_dir, STEPS, config), Quiet())
    return results_of(run_dir, STEPS)


def test_the_recipes_tasks_are_scored_when_training_ends(
    job: Path, evaluated: tuple[Path, str], finished: Path
) -> None:
    run_dir, said = evaluated
    lines = said.splitlines()
    assert lines[-1] == f"results in {run_dir}/eval/step_{STEPS:08d}/results.json"
    assert next(n for n, line in enumerate(lines) if " is finished: validation" in line) < len(lines) - 2
    scores = results_of(run_dir, STEPS)
    assert scores.keys() == {"piqa"} and scores == scores_of_the_command(finished, job / "sets", "piqa")
    summary = summary_of(run_dir)
    assert summary["status"] == "finished"
    assert (summary["evaluation"]["status"], summary["evaluation"]["step"]) == ("finished", STEPS)
    assert (run_dir / "logs" / "eval.log").is_file()


def test_started_again_a_finished_run_is_evaluated_once(job: Path, piqa: list[str], finished: Path) -> None:
    for is_missing in (True, False):
        done = run(arguments(job, finished, *piqa))
        assert done.returncode == 0 and done.stderr.startswith(f"{finished} is finished: {STEPS} steps")
        assert ("scoring step" in done.stderr) is is_missing
        assert (len(done.stderr.splitlines()) == 1) is not is_missing
    assert results_of(finished, STEPS).keys() == {"piqa"}
    done = run(
        arguments(job, finished, *piqa, "--eval.tasks", "[wikitext]", "--eval.after_training", "false")
    )
    assert done.returncode == 0 and results_of(finished, STEPS).keys() == {"piqa"}


@pytest.mark.slow
def test_on_two_ranks_it_has_the_scores_of_one(job: Path, piqa: list[str], finished: Path) -> None:
    ours = shutil.copytree(finished, finished.parent / "on_two_ranks")
    words = arguments(job, ours, *piqa, "--eval.tasks", "[piqa,wikitext]")
    done = run(words, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("results in ") == 1
    theirs = scores_of_the_command(finished, job / "sets", "piqa", "wikitext")
    assert results_of(ours, STEPS) == theirs
    assert summary_of(ours)["evaluation"]["status"] == "finished"


def test_without_the_hub_the_run_is_finished_and_says_what_to_do(
    job: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "HF_HOME", str(finished / "empty"))
    done = run(arguments(job, finished, *ON), main=offline_main)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith(
        f"{finished} is finished, but its evaluation failed: task 'wikitext' cannot be had from the Hugging "
    )
    assert "--eval_data DIR reads local evaluation sets; `python -m eval" in said
    command = f"python -m eval {finished} --tasks wikitext,lambada_openai,arc_easy,hellaswag,piqa,winogrande"
    assert f"`{command}` repeats it (traceback in {finished}/logs/eval.log)" in said
    assert "Traceback" in (finished / "logs" / "eval.log").read_text()
    summary = summary_of(finished)
    assert summary["status"] == "finished" and summary["evaluation"]["status"] == "failed"
    assert summary["evaluation"]["command"] == command and "wikitext" in summary["evaluation"]["error"]


def offline_main(words: list[str]) -> int:
    import datasets
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    return train_main(words)


def with_little_time_for_wandb(words: list[str]) -> int:
    from eval.tracked import late
    from training.tracking import tracker

    late.END_S = tracker.END_S = WANDB_END_S
    return train_main(words)


@pytest.mark.slow
def test_rank_0_alone_waits_for_a_wandb_that_hangs_and_not_long(
    job: Path, piqa: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = job / "wandb_hangs"
    with wandb_server("hang_after_start") as (address, runs):
        account = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0123456789" * 4, "WANDB_MODE": "online"}
        for name, value in (account | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}).items():
            monkeypatch.setitem(ENVIRONMENT, name, value)
        started = Started(arguments(job, run_dir, *piqa), 2, False, with_little_time_for_wandb)
        rank_0, rank_1 = started._processes
        assert rank_1.wait(TIMEOUT) == 0, started.printed()
        said = started.printed()[1]
        assert rank_0.poll() is None and " is finished: validation" in said and "results in " in said
        assert rank_0.wait(WANDB_END_S + 60) == 0  # far above 30 s in all, were there no bound it would hang
    *_, lost, unsent = started.printed()[1].splitlines()
    assert runs and lost.startswith("W&B is lost (TimeoutError: it did not end within ")
    assert unsent.startswith(f"W&B has not got the scores of step {STEPS} (ConnectionError: the training has")
    assert unsent.endswith(f": `python -m eval {run_dir}` sends them again")
    summary = summary_of(run_dir)
    assert (summary["status"], summary["evaluation"]["status"]) == ("finished", "finished")


@pytest.mark.slow
def test_out_of_memory_leaves_a_run_finished_that_was_just_trained(job: Path, piqa: list[str]) -> None:
    run_dir = job / "out_of_memory"
    done = run(arguments(job, run_dir, *piqa), main=out_of_memory_main)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()[-1]
    assert "its evaluation failed: OutOfMemoryError: no room; `python -m eval " in said
    summary = summary_of(run_dir)
    assert (summary["status"], summary["evaluation"]["status"]) == ("finished", "failed")
    assert "error" not in summary


def out_of_memory_main(words: list[str]) -> int:
    import torch

    def run_out(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    sys.modules[run_tasks.__module__].run_tasks = run_out  # type: ignore[attr-defined]
    return train_main(words)


def test_a_signal_stops_it_and_the_same_command_goes_on(job: Path, piqa: list[str], finished: Path) -> None:
    words = arguments(job, finished, *piqa, "--eval.tasks", "[piqa,wikitext]")
    started = Started(words, 1, False, waiting_main)
    while started.poll() is None and not (finished / "waits").exists():
        time.sleep(0.02)
    started.send(signal.SIGTERM)
    assert started.wait() == INTERRUPTED
    assert "and its evaluation stops: `python -m eval" in started.printed()[1].splitlines()[-1]
    summary = summary_of(finished)
    assert (summary["status"], summary["evaluation"]["status"]) == ("finished", "interrupted")
    assert results_of(finished, STEPS).keys() == {"piqa"}
    done = run(words)
    assert done.returncode == 0 and "reading wikitext from" in done.stderr
    assert results_of(finished, STEPS).keys() == {"piqa", "wikitext"}


def waiting_main(words: list[str]) -> int:
    """train.py, whose second task does not end."""

    def run_or_wait(gpt, tokenizer, tasks, **options):
        if "wikitext" in tasks:
            Path(words[words.index("--run_dir") + 1], "waits").touch()
            time.sleep(600)
        return run_tasks(gpt, tokenizer, tasks, **options)

    sys.modules[run_tasks.__module__].run_tasks = run_or_wait  # type: ignore[attr-defined]
    return train_main(words)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--eval.tasks", "[hellaswag]"], "task 'hellaswag' reads {sets}/hellaswag/validation.jsonl (or "),
        (["--eval.num_fewshot", "5"], "eval.num_fewshot is 5, but {sets}/piqa/validation.jsonl holds 5 item"),
        (["--eval.tasks", "[piqua]"], "there is no task 'piqua' (did you mean 'piqa'?)"),
    ],
)
def test_what_it_would_refuse_is_refused_before_training(
    job: Path, piqa: list[str], capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert train.main(arguments(job, job / "refused", *piqa, *options)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + sentence.format(sets=job / "sets")) and error.count("\n") == 1
    assert not (job / "refused").exists()


def test_without_it_nothing_of_it_is_refused(tmp_path: Path) -> None:
    check_evaluation(EvalConfig(("piqa",), str(tmp_path), after_training=False))
    with pytest.raises(UserError, match=r"does not exist, or --eval.after_training=false to train without"):
        check_evaluation(EvalConfig(("piqa",), str(tmp_path)))
