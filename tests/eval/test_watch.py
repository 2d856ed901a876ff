"""Runs under way, watched: checkpoints are scored as they appear, until training ends, however it does."""

import fcntl
import json
import pydoc_data.topics
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eval.__main__ import main, parse
from eval.running import watch
from eval.running.job import Job, check_requests
from eval.running.watch import how_it_ended, watched
from tests.jobs import Started, arguments, make_job, start_until, summary_of

from .tiny_runs import add_checkpoint, eval_main, make_run, results_of, write_sets


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that has just begun."""
    return make_run(tmp_path / "one", {}, write_sets(tmp_path / "sets"), status="running")


@contextmanager
def trained(run: Path) -> Iterator[None]:
    """As long as its process lives."""
    (run / "logs").mkdir(exist_ok=True)
    with (run / "logs" / "rank0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def set_status(run: Path, status: str) -> None:
    (run / "summary.json").write_text(json.dumps({"status": status}))


def jobs_and_words(
    monkeypatch: pytest.MonkeyPatch, run: Path, step: str, happens: list[Callable[[], None]]
) -> tuple[list[Job], list[str]]:
    """What is scored, and said, where one thing after another happens between the looks."""
    said: list[str] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: happens.pop(0)())
    requests = check_requests(parse([str(run), "--watch", "--step", step]))
    return list(watched(requests, said.append)), said


@pytest.mark.parametrize(("step", "scored"), [("all", [1, 2, 4, 6]), ("last", [1, 4, 6]), ("best", [1, 4])])
def test_checkpoints_are_scored_as_they_appear(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, step: str, scored: list[int]
) -> None:
    def two() -> None:
        add_checkpoint(run_dir, 2, 3.5)
        add_checkpoint(run_dir, 4, 2.0)

    def end() -> None:
        add_checkpoint(run_dir, 6, 2.5)
        set_status(run_dir, "finished")

    happens = [lambda: None, lambda: add_checkpoint(run_dir, 1, 3.0), two, end]
    with trained(run_dir):
        jobs, said = jobs_and_words(monkeypatch, run_dir, step, happens)
    assert [job.step for job in jobs] == scored and not happens
    assert said == [f"waiting for checkpoints of {run_dir}", f"{run_dir} is finished"]


def test_a_run_ends_when_it_says_so_or_nobody_trains_it(run_dir: Path) -> None:
    with trained(run_dir):
        for status in ("running", "interrupted"):  # the latter of the start before
            set_status(run_dir, status)
            assert how_it_ended(run_dir) is None
        set_status(run_dir, "finished")
        assert how_it_ended(run_dir) == f"{run_dir} is finished"
    for status in ("interrupted", "diverged", "failed"):
        set_status(run_dir, status)
        assert how_it_ended(run_dir) == f"{run_dir} is {status}"
    set_status(run_dir, "running")
    assert how_it_ended(run_dir) == f"{run_dir} is not trained any more: its process ended without a word"
    (run_dir / "summary.json").unlink()
    assert how_it_ended(run_dir) == f"{run_dir} is not being trained"


def test_a_model_without_a_run_is_not_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    like = make_run(tmp_path / "like", {1: None}, write_sets(tmp_path / "sets"))
    assert main([str(tmp_path / "gpt2"), "--validation_like", str(like), "--watch"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'gpt2'} is one model: --watch is for runs\n"


@pytest.mark.slow
def test_a_run_that_is_killed_is_watched_no_longer(tmp_path: Path) -> None:
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    job = make_job(tmp_path, texts, 100_000, tokenizer="bytes")
    sets, run_dir = write_sets(tmp_path / "sets"), tmp_path / "run"
    training = start_until(arguments(job, run_dir, "--train.keep_checkpoints", "1"), 8)
    words = [str(run_dir), "--watch", "--step", "all", "--tasks", "piqa", "--eval_data", str(sets)]
    watching = Started(words, 1, False, eager_main)

    def scored() -> int:
        return sum("results in " in line for line in watching.printed()[1].splitlines())

    while scored() < 2:
        assert watching.poll() is None and training.poll() is None, watching.printed()[1]
        time.sleep(0.02)
    training.send(signal.SIGKILL)
    assert training.wait() == -signal.SIGKILL and summary_of(run_dir)["status"] == "running"
    assert watching.wait() == 0
    last = max(int(path.name.split("_")[1]) for path in (run_dir / "checkpoints").glob("step_*"))
    assert results_of(run_dir, last).keys() == {"piqa"}
    said = watching.printed()[1].splitlines()[-1]
    assert said == f"{run_dir} is not trained any more: its process ended without a word"


def eager_main(words: list[str]) -> int:
    watch.LOOK_EVERY_S = 0.02
    return eval_main(words)
