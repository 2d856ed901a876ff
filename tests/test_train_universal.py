"""A run that goes on on another number of ranks, with DeepSpeed's key for it."""

import pydoc_data.topics
import signal
from pathlib import Path

import pytest

from tests.jobs import arguments, lines_of, make_job, run, run_until, summary_of

STEPS = 12
UNIVERSAL = ["--ds.checkpoint.load_universal", "true"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of real English, and a recipe without dropout, which ranks draw for themselves."""
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    folder = make_job(tmp_path_factory.mktemp("job"), texts, STEPS)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("dropout: 0.1", "dropout: 0.0"))
    return folder


@pytest.fixture(scope="module")
def whole(job: Path) -> Path:
    """The run on one rank, never stopped."""
    result = run(arguments(job, job / "whole"))
    assert result.returncode == 0, result.stderr
    return job / "whole"


def test_stopped_on_two_ranks_a_run_goes_on_on_one_and_then_on_two(job: Path, whole: Path) -> None:
    run_dir = job / "moved"
    run_until(arguments(job, run_dir), 5, signal.SIGKILL, ranks=2)
    assert summary_of(run_dir)["status"] == "running"

    refused = run(arguments(job, run_dir))
    assert refused.returncode != 0
    assert "was written on 2 rank(s), but 1 are running: resume on the same number, or set" in refused.stderr

    run_until(arguments(job, run_dir, *UNIVERSAL), 9, signal.SIGKILL)
    assert summary_of(run_dir)["world_size"] == 1
    result = run(arguments(job, run_dir, *UNIVERSAL), ranks=2)
    assert result.returncode == 0, result.stderr
    assert "resumed from" in result.stderr and summary_of(run_dir)["world_size"] == 2

    ours, theirs = lines_of(run_dir), lines_of(whole)
    assert [(line["kind"], line["step"], line["tokens"]) for line in ours] == [
        (line["kind"], line["step"], line["tokens"]) for line in theirs
    ]
    # The same tokens in every global batch; fp32 sums over them in another order, step upon step.
    for left, right in zip(ours, theirs, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5), left
    left_over = [path.name for path in (run_dir / "checkpoints").iterdir() if "universal" in path.name]
    assert left_over == []


def test_another_global_batch_is_still_another_run(job: Path, whole: Path) -> None:
    result = run(arguments(job, whole, *UNIVERSAL, "--ds.train_batch_size", "16"))
    assert result.returncode == 2 and "ds.train_batch_size = 8, but 16" in result.stderr
