"""The cause of death: when one rank of two fails, the terminal, the summary and the exit status name it."""

import json
import os
import pydoc_data.topics
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import TIMEOUT, Started, arguments, make_job, run, summary_of, train_main
from tests.processes import ENVIRONMENT

NORM = """
import os
import signal
import torch

class Failing(torch.nn.LayerNorm):
    def __init__(self, ndim, bias):
        super().__init__(ndim, bias=bias)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if os.environ["RANK"] == "1" and self.calls > 6:  # 2 forwards per step
            {failure}
        return super().forward(x)
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"), list(pydoc_data.topics.topics.values()), 12)


def norm(job: Path, failure: str) -> str:
    (job / "failing.py").write_text(NORM.format(failure=failure))
    return f"{job / 'failing.py'}:Failing"


@pytest.mark.slow
def test_the_first_rank_that_fails_is_named_not_the_survivor(job: Path) -> None:
    run_dir = job / "raised"
    failing = norm(job, 'raise RuntimeError("CUDA out of memory\\nTried to allocate 2 GiB")')
    result = run(arguments(job, run_dir, "--model.norm", failing), ranks=2, typed=True)
    assert result.returncode == 1
    log = run_dir / "logs" / "rank1.log"
    assert result.stderr.count(f"RuntimeError: CUDA out of memory (traceback in {log})") == 1
    assert "Connection closed" not in result.stderr and "Traceback" not in result.stderr
    summary = summary_of(run_dir)
    assert (summary["status"], summary["failed_rank"]) == ("failed", 1)
    assert (summary["error"], summary["log"]) == ("RuntimeError: CUDA out of memory", "logs/rank1.log")
    assert "Tried to allocate 2 GiB" in log.read_text()
    survivor = (run_dir / "logs" / "rank0.log").read_text()
    assert "rank 1 failed first: RuntimeError: CUDA out of memory" in survivor


def failing_start(words: list[str]) -> int:
    """train.py, whose rank 1 fails at a place of the start."""
    import data
    import training

    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyError("by chance") if place == "load_libraries" else OSError(f"{place} is out of reach")

    place = os.environ["PLACE"]
    module = data if place == "open_data" else training
    if os.environ["RANK"] == "1":
        vars(module)[place] = fail
    return train_main(words)


def test_a_rank_that_fails_before_the_ranks_have_joined_is_named(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = job / "start"
    for earlier, place in enumerate(("open_data", "load_libraries", "newest_checkpoint")):
        monkeypatch.setitem(ENVIRONMENT, "PLACE", place)
        started = Started(arguments(job, run_dir), 2, False, failing_start)
        rank_0, rank_1 = started._processes
        assert rank_1.wait(TIMEOUT) == 1
        if place != "newest_checkpoint":  # which is after they have
            os.kill(rank_0.pid, signal.SIGTERM)  # as a launcher does
        started.wait()
        said, failure = started.printed()[1], json.loads((run_dir / "failure.json").read_text())
        sentence = "KeyError: 'by chance'" if place == "load_libraries" else f"{place} is out of reach"
        assert failure["rank"] == 1 and failure["step"] is None, failure
        assert failure["sentence"].endswith(sentence) and "in fail\n" in failure["traceback"]
        assert sentence in (run_dir / failure["log"]).read_text()
        assert place == "load_libraries" or said.count(f"error: {sentence}") == 1, said
        summary = summary_of(run_dir)
        assert (summary["status"], summary["failed_rank"]) == ("failed", 1)
        assert summary["error"] == failure["sentence"]
        assert len(list(run_dir.glob("failure_*.json"))) == earlier


@pytest.mark.slow
def test_a_rank_that_was_killed_is_named_with_its_signal(job: Path) -> None:
    run_dir = job / "killed"
    failing = norm(job, "os.kill(os.getpid(), signal.SIGKILL)")
    result = run(arguments(job, run_dir, "--model.norm", failing), ranks=2)
    assert result.returncode != 0
    failure, summary = json.loads((run_dir / "failure.json").read_text()), summary_of(run_dir)
    assert (failure["rank"], failure["signal"], failure["log"]) == (1, "SIGKILL", "logs/rank1.log")
    assert (summary["status"], summary["failed_rank"]) == ("failed", 1)
    assert summary["error"] == failure["sentence"]
    assert result.stderr.count(f"error: {failure['sentence']}") == 1 and "Traceback" not in result.stderr
