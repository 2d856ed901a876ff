"""The cause of death: when one rank of two fails, the terminal, the summary and the exit status name it."""

import json
import pydoc_data.topics
from pathlib import Path

import pytest

from tests.jobs import arguments, make_job, run, summary_of

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
