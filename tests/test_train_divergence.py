"""Divergence through the main job: seen, passed over, explained, the same after a kill."""

import json
import pydoc_data.topics
from pathlib import Path

import pytest
import torch

from model.errors import DIVERGED
from tests.diverging import block, main_killed_while_going_back, main_that_cannot_look, main_without, mark
from tests.jobs import DS_CONFIG, Started, arguments, lines_of, make_job, run, steps_of, summary_of
from tests.processes import ENVIRONMENT
from training.engine.weights import load_model

STEPS = 12
BATCH = 5
"""The one that breaks the model: of step 6, between the checkpoints of steps 3 and 6."""
ROLLBACK = ("--train.on_divergence", "rollback")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job, and beside it the run `without` that never had the batch."""
    folder = make_job(tmp_path_factory.mktemp("job"), list(pydoc_data.topics.topics.values()), STEPS)
    for stage in (0, 3):
        config = DS_CONFIG | {"zero_optimization": {"stage": stage}}
        (folder / f"zero{stage}.json").write_text(json.dumps(config))
    (folder / "zero0_bf16.json").write_text(
        json.dumps(DS_CONFIG | {"bf16": {"enabled": True}} | {"zero_optimization": {"stage": 0}})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "LEFT_OUT", str(BATCH))
        words = arguments(folder, folder / "without", "--model.block", block(folder, []))
        assert run(words, main=main_without).returncode == 0
    return folder


def broken(job: Path, what: str = "nan", sequence: int = 0) -> str:
    return block(job, [mark(job, BATCH, sequence)], what)


def assert_same_run(run_dir: Path, other: Path) -> None:
    assert steps_of(run_dir) == steps_of(other)
    assert [line["grad_norm"] for line in lines_of(run_dir) if line["kind"] == "train"] == [
        line["grad_norm"] for line in lines_of(other) if line["kind"] == "train"
    ]
    ours, theirs = load_model(run_dir)[0].state_dict(), load_model(other)[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("every", ["3", "50"])  # where no checkpoint was due yet, the initial weights are one
def test_a_rollback_equals_a_run_without_the_batch(job: Path, every: str) -> None:
    run_dir = job / f"rolled_back_{every}"
    words = ["--model.block", broken(job), *ROLLBACK, "--train.checkpoint_every", every]
    result = run(arguments(job, run_dir, *words))
    assert result.returncode == 0, result.stderr
    back = 3 if every == "3" else 0
    assert f"the loss of step 6 is not finite: back to step {back}" in result.stderr
    assert_same_run(run_dir, job / "without")
    summary = summary_of(run_dir)
    assert (summary["status"], summary["rollbacks"], summary["passed_batches"]) == ("finished", 1, 1)


def test_a_kill_during_a_rollback_changes_nothing(job: Path) -> None:
    run_dir = job / "killed"
    words = arguments(job, run_dir, "--model.block", broken(job), *ROLLBACK)
    assert run(words, main=main_killed_while_going_back).returncode == 9
    assert (run_dir / "rollbacks.json").is_file()
    assert run(words).returncode == 0
    assert_same_run(run_dir, job / "without")
    assert summary_of(run_dir)["rollbacks"] == 1


def test_rollbacks_are_limited_over_the_life_of_a_run(job: Path) -> None:
    run_dir = job / "limited"
    marked = block(job, [mark(job, BATCH), mark(job, BATCH + 2)])
    words = arguments(job, run_dir, "--model.block", marked, *ROLLBACK, "--train.max_rollbacks", "1")
    result = run(words)
    assert result.returncode == DIVERGED
    # Batch 5 is passed over: step 7 has batch 7.
    assert "diverged at step 7: the loss of step 7 is not finite" in result.stderr
    assert run(words).returncode == DIVERGED and summary_of(run_dir)["rollbacks"] == 1


@pytest.mark.parametrize("mode", ["zero0", "zero3", "zero0_bf16", "bf16"])
def test_stop_names_step_layer_and_rank(job: Path, mode: str) -> None:
    run_dir = job / f"stopped_{mode}"
    words = ["--model.block", broken(job, sequence=1), "--train.on_divergence", "stop"]
    result = run(arguments(job, run_dir, *words, ds_config=f"{mode}.json"), ranks=2)
    assert result.returncode == DIVERGED, result.stderr
    summary = summary_of(run_dir)
    found = summary["divergence"]
    assert (summary["status"], found["step"], found["rank"]) == ("diverged", 6, 1)
    assert found["layer"].endswith("1.mark")
    assert found["layer"] in result.stderr and "on rank 1" in result.stderr
    losses = [line["loss"] for line in lines_of(run_dir) if line["kind"] == "train"]
    assert summary["last_losses"] == losses and losses[-1] is None and len(losses) == 6


def test_broken_gradients_behind_a_finite_loss_are_named(job: Path) -> None:
    run_dir = job / "gradient"
    words = ["--model.block", broken(job, "gradient"), "--train.on_divergence", "stop"]
    assert run(arguments(job, run_dir, *words)).returncode == DIVERGED
    found = summary_of(run_dir)["divergence"]
    assert (found["step"], found["rank"]) == (6, 0)
    assert ".1.mlp.c_proj" in found["layer"]  # the backward pass reaches the last branch of layer 1 first


@pytest.mark.parametrize("ranks", ["1", "01"])
def test_a_layer_that_cannot_be_found_out_ends_all_ranks_as_diverged(
    job: Path, monkeypatch: pytest.MonkeyPatch, ranks: str
) -> None:
    """One rank fails, and the other is in a collective; or both do."""
    run_dir = job / f"no_room_{ranks}"
    monkeypatch.setitem(ENVIRONMENT, "FAILING", ranks)
    words = ["--model.block", broken(job, "gradient"), "--train.on_divergence", "stop"]
    words = arguments(job, run_dir, *words, ds_config="zero3.json")
    started = Started(words, 2, False, main_that_cannot_look)
    started.wait()
    said = started.printed()[1]
    assert [process.returncode for process in started._processes] == [DIVERGED, 0], said
    summary = summary_of(run_dir)
    found = summary["divergence"]
    assert (summary["status"], found["step"], found["layer"]) == ("diverged", 6, None)
    assert found["sentence"].endswith("; where could not be found out (OutOfMemoryError: no room)")
    assert f"{run_dir} diverged at step 6: {found['sentence']}" in said and "Traceback" not in said


def test_skipping_goes_on_and_counts(job: Path) -> None:
    run_dir = job / "skipped"
    result = run(arguments(job, run_dir, "--model.block", broken(job)))
    assert result.returncode == 0
    summary = summary_of(run_dir)
    assert (summary["status"], summary["skipped_steps"], summary["rollbacks"]) == ("finished", 1, 0)


def test_a_run_that_ends_above_its_floor_says_so(job: Path) -> None:
    run_dir = job / "above"
    (job / "loud.json").write_text(
        json.dumps(DS_CONFIG | {"optimizer": {"type": "AdamW", "params": {"lr": 3.0, "torch_adam": True}}})
    )
    result = run(arguments(job, run_dir, ds_config="loud.json"))
    summary = summary_of(run_dir)
    assert summary["val_loss"] > summary["floors"]["uniform"] + 0.5, "the job does not make the case"
    assert summary["ended_above_floor"] and "ended above its floor" in result.stderr
    assert not summary_of(job / "without")["ended_above_floor"]
