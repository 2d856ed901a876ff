"""The main job is told to stop in each of its phases: what it says, how it ends, and how it goes on."""

import os
import pydoc_data.topics
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from model.errors import FAILED, INTERRUPTED
from tests.jobs import (
    Started,
    arguments,
    lines_of,
    make_job,
    run,
    start_until,
    steps_of,
    summary_of,
    train_main,
)
from training.engine.weights import load_model

STEPS = 6
SHORT = ["--data.validation_tokens", "400"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    return make_job(tmp_path_factory.mktemp("job"), texts, STEPS)


@pytest.fixture(scope="module")
def whole(job: Path) -> Path:
    result = run(arguments(job, job / "whole", *SHORT), ranks=2)
    assert result.returncode == 0, result.stderr
    return job / "whole"


def at_call(number: int, function: Callable[..., Any], then: Callable[[], object]) -> Callable[..., Any]:
    """The function, which does something else first at one of its calls."""
    calls = [0]

    def counted(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            then()
        return function(*given, **options)

    return counted


def signal_rank_1(signum: signal.Signals = signal.SIGHUP) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signum)
        time.sleep(1)


def in_step_5(words: list[str]) -> int:
    """The first of its two micro-batches begins."""
    import training.step

    training.step.inputs_and_targets = at_call(9, training.step.inputs_and_targets, signal_rank_1)
    return train_main(words)


def in_the_last_validation(words: list[str]) -> int:
    """After the first of its batches."""
    import training.validation

    validated = training.validation.token_losses

    def losses(*given: Any, **options: Any) -> Any:
        *rest, before_batch = given
        before_batch = at_call(2, before_batch, signal_rank_1) if calls.pop() else before_batch
        return validated(*rest, before_batch, **options)

    calls = [True, False]  # that of step 4 comes first
    training.validation.token_losses = losses
    return train_main(words)


def in_a_checkpoint(words: list[str]) -> int:
    from training.checkpoints.writing import Checkpoints

    Checkpoints.save = at_call(1, Checkpoints.save, signal_rank_1)  # type: ignore[method-assign]
    return train_main(words)


@pytest.mark.parametrize(
    ("main", "step", "lines"),
    [(in_step_5, 4, 5), (in_the_last_validation, 6, 7), (in_a_checkpoint, 3, 3)],
)
def test_stopped_anywhere_a_run_goes_on_as_the_uninterrupted(
    job: Path, whole: Path, main: Callable[[list[str]], int], step: int, lines: int
) -> None:
    run_dir = job / main.__name__
    words = arguments(job, run_dir, *SHORT)
    started = Started(words, 2, False, main)
    started.wait()
    assert [process.returncode for process in started._processes] == [INTERRUPTED, 0]
    said = started.printed()[1]
    assert said.count("SIGHUP was received by rank 1: ") == 1
    assert f"is stopped and saved at step {step}: the same command goes on" in said
    summary = summary_of(run_dir)
    assert (summary["status"], summary["step"]) == ("interrupted", step)
    assert len(lines_of(run_dir)) == lines
    result = run(words, ranks=2)
    assert result.returncode == 0, result.stderr
    assert steps_of(run_dir) == steps_of(whole)
    (ours, _), (theirs, _) = load_model(run_dir), load_model(whole)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    for key in ("status", "val_loss", "best_checkpoint", "tokens"):
        assert summary_of(run_dir)[key] == summary_of(whole)[key]


def in_the_start(words: list[str]) -> int:
    import training

    run_dir = Path(words[words.index("--run_dir") + 1])

    def wait(*given: Any) -> None:
        (run_dir / "waits").touch()
        torch.distributed.TCPStore("127.0.0.1", 0, is_master=True).wait(["never"])  # in C++

    training.design_problem = wait  # type: ignore[assignment]
    return train_main(words)


def test_a_start_that_is_stopped_ends_with_a_sentence(job: Path) -> None:
    started = Started(arguments(job, job / "start"), 1, False, in_the_start)
    wait_for(job / "start" / "waits")
    began = time.monotonic()
    started.send(signal.SIGTERM)
    assert started.wait() == INTERRUPTED and time.monotonic() - began < 30
    last = started.printed()[1].splitlines()[-1]
    assert last == (
        "SIGTERM was received: the run stops before its first step: the same command starts it again"
    )
    assert run(arguments(job, job / "start", *SHORT, "--train.steps", "3")).returncode == 0


def wait_for(file: Path) -> None:
    end = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_stopped_while_it_waits_for_data_a_run_saves(job: Path) -> None:
    options = ["--data.workers", "1", "--data.prefetch", "4", "--train.steps", "10000"]
    started = start_until(arguments(job, job / "waits_for_data", *SHORT, *options), 3, ranks=2)
    worker = min(psutil.Process(started.pid).children(), key=lambda process: process.create_time())
    worker.suspend()
    time.sleep(2)
    os.kill(started._processes[1].pid, signal.SIGTERM)
    assert started.wait() == INTERRUPTED
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    summary = summary_of(job / "waits_for_data")
    assert summary["status"] == "interrupted"
    assert (
        summary["step"]
        == [step for kind, step, *_ in steps_of(job / "waits_for_data") if kind == "train"][-1]
    )


def in_a_long_step(words: list[str]) -> int:
    import training.step

    run_dir = Path(words[words.index("--run_dir") + 1])

    def wait() -> None:
        (run_dir / "waits").touch()
        time.sleep(600)

    training.step.inputs_and_targets = at_call(3, training.step.inputs_and_targets, wait)
    return train_main(words)


def test_a_second_sigint_ends_at_once(job: Path) -> None:
    started = Started(arguments(job, job / "sigint", *SHORT), 1, False, in_a_long_step)
    wait_for(job / "sigint" / "waits")
    started.send(signal.SIGINT)
    end = time.monotonic() + 60
    while "SIGINT was received: the run is saved and stops after this" not in started.printed()[1]:
        assert time.monotonic() < end and started.poll() is None
    started.send(signal.SIGINT)
    assert started.wait() == 130
    assert "a second SIGINT was received" in started.printed()[1]


def test_limits_of_the_recipe_stop_a_run(job: Path) -> None:
    words = arguments(job, job / "limits", *SHORT, "--train.steps", "100000")
    result = run([*words, "--train.max_minutes", "0.1"], ranks=2)
    assert result.returncode == INTERRUPTED and "train.max_minutes, 0.1, are over" in result.stderr
    words = [*words, "--train.stop_file", "STOP"]
    started = start_until(words, len(lines_of(job / "limits")) + 6, ranks=2)
    (job / "limits" / "STOP").touch()
    assert started.wait() == INTERRUPTED
    said = started.printed()[1]
    assert "STOP exists" in said, said
    refused = run(words)
    assert refused.returncode == 2 and refused.stderr.startswith("error: train.stop_file is ")


def impatient(words: list[str]) -> int:
    from training.watch import exchange, hang

    hang.NO_ANSWER_S, exchange.LOOK_AT_OTHERS_S = 4.0, 1.0
    return train_main(words)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_is_stopped_is_named(job: Path, stopped: int) -> None:
    run_dir = job / f"rank_{stopped}_stopped"
    words = arguments(job, run_dir, *SHORT, "--train.steps", "100000")
    started = start_until(words, 3, ranks=2, main=impatient)
    ranks = started._processes
    os.kill(ranks[stopped].pid, signal.SIGSTOP)
    assert ranks[1 - stopped].wait(60) == FAILED
    started.send(signal.SIGKILL)
    assert f"rank {stopped} of 2 gave no sign of life while this rank waited for" in started.printed()[1]
    assert 'File "' in (run_dir / "logs" / f"rank{1 - stopped}.log").read_text()
    summary = summary_of(run_dir)
    assert summary["status"] == "failed" and f"rank {stopped} of 2 gave no sign" in summary["error"]
