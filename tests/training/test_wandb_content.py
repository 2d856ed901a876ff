"""What W&B has of a run: its offline files are read back with W&B's own reader."""

import glob
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb

from data import open_data
from model import PRESETS
from model.errors import DIVERGED
from tests.distributed import run_on_ranks
from tests.training.test_reporter import DS, after_step, begun, recipe
from tests.training.wandb_runs import no_account, of_kind, offline_folders, records, rows, summary_of, sync
from tests.training.wandb_server import wandb_server
from training.divergence.policy import Verdict
from training.state import TrainState
from training.tracking.tracker import CONFIG_FACTS, Tracker, TrackingConfig

__all__ = ["no_account"]
LOSSES = {1: 3.5, 2: 3.0, 3: 3.25, 4: 3.125}


@pytest.fixture
def tracker(tmp_path: Path, no_account: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tracker]:
    """tracker(said=[], run_id=None, **keys) -> a tracker of the run folder `run`."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()

    def start(said: list[str] | None = None, run_id: str | None = None, **keys: Any) -> Tracker:
        facts = {"model": {"norm": "rmsnorm"}, "run": {"parameters": 7}}
        say = print if said is None else said.append
        return Tracker(
            TrackingConfig(**keys), tmp_path / "run", run_id, facts, say, tags=("rmsnorm", "x" * 90)
        )

    return start


def test_wandbs_own_reader_finds_what_was_logged(tmp_path: Path, tracker: Callable[..., Tracker]) -> None:
    of_run = tracker(project="norms", group="study")
    of_run.log("train", 1, {"loss": 3.5}, {"tokens": 64})
    of_run.log("train", 2, {"loss": 3.25}, {"tokens": 128})
    of_run.log("val", 2, {"loss": 3.0}, {"tokens": 128})
    of_run.finish({"status": "finished", "val_loss": 3.0, "floors": {"unigram": 7.5}, "parameters": 7})
    of_run.wait()
    found = records(*offline_folders(tmp_path))

    (run,) = of_kind(found, "run")
    assert (run["project"], run["run_group"], run["run_id"]) == ("norms", "study", of_run.id)
    assert (run["display_name"], run["job_type"]) == ("run", "train")
    assert sorted(run["tags"]) == ["rmsnorm", "x" * 64]  # W&B refuses a run with a longer tag
    assert run["config"]["update"]["model"] == {"norm": "rmsnorm"}
    assert rows(found) == {
        1: {"step": 1, "tokens": 64, "train/loss": 3.5},
        2: {"step": 2, "tokens": 128, "train/loss": 3.25, "val/loss": 3.0},
    }
    metrics = {metric.get("name") or metric["glob_name"]: metric for metric in of_kind(found, "metric")}
    assert {"step", "tokens", "total_flops", "gpu_hours"} < metrics.keys()
    drawn = ("*", "train/loss", "val/loss", "val/bits_per_byte", "train/grad_norm")
    assert {metrics[name]["step_metric"] for name in drawn} == {"step"}
    for name in drawn[1:4]:
        assert metrics[name]["summary"]["min"] and metrics[name]["summary"]["last"]
    assert metrics["train/grad_norm"]["summary"]["max"]

    summary = summary_of(found)
    assert (summary["status"], summary["val_loss"], summary["floors"]) == ("finished", 3.0, {"unigram": 7.5})
    assert summary["train/loss"] == {"min": 3.25, "last": 3.25} and "parameters" not in summary
    # beside the status it may hold how many seconds the run took
    assert (found[-1]["num"], found[-1]["type"]) == (len(found), "exit")
    assert found[-1]["exit"]["exit_code"] == 0


def killed_then_diverged(rank: int, folder: Path) -> None:
    """A start that ends after step 3, and one that goes on from a checkpoint at step 2 and diverges at 4."""
    os.environ["WANDB_MODE"] = "offline"
    state = TrainState()
    report, first = begun(folder, state)
    for step in (1, 2, 3):
        after_step(state, report, loss=LOSSES[step])
        if step == 2:
            at_checkpoint = replace(state, bad_documents={}, val_loss=2.5, val_bits_per_byte=0.5)
            validation = open_data(report.recipe.data)[1]
            report.validation(at_checkpoint, np.full(len(validation.tokens) - 1, 2.5), validation)
    report._tracker.finish({})  # type: ignore[union-attr]
    report._tracker.wait()  # type: ignore[union-attr]
    report, second = begun(folder, at_checkpoint)
    for step in (3, 4):
        after_step(at_checkpoint, report, loss=LOSSES[step])
    assert report.end(at_checkpoint, Verdict(False, 4, 4, "the loss was not finite", True), None) == DIVERGED
    report._tracker.wait()  # type: ignore[union-attr]
    (sentence,) = (said for said in first.said if "wandb sync" in said)
    assert sentence in second.said
    (folder / "command").write_text(sentence.rpartition("wandb sync ")[2])


@pytest.fixture(scope="module")
def two_starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was started twice."""
    folder = tmp_path_factory.mktemp("two_starts")
    run_on_ranks(killed_then_diverged, 1, folder)
    return folder


def test_two_starts_are_parts_of_one_run_whose_steps_go_on(two_starts: Path) -> None:
    parts = offline_folders(two_starts)
    (pattern,) = shlex.split((two_starts / "command").read_text())  # one word, which the shell expands
    assert sorted(glob.glob(pattern)) == [str(part) for part in parts] and len(parts) == 2
    first, second = map(records, parts)
    ids = {run["run_id"] for found in (first, second) for run in of_kind(found, "run")}
    assert len(ids) == 1
    assert list(rows(first)) == [1, 2, 3] and list(rows(second)) == [3, 4]
    assert rows(first)[2]["val/loss"] == 2.5 and rows(first)[2]["train/loss"] == 3.0
    for found in (first, second):
        for step, row in rows(found).items():
            assert (row["step"], row["tokens"]) == (step, 128 * step)
            assert row["total_flops"] == 128 * step * summary_config(found)["flops_per_token"]
            assert row["cpu_rank_hours"] > 0 and row["train/loss"] == LOSSES[step]

    # Lowest of all starts: it was in the first.
    summary = summary_of(second)
    assert summary["train/loss"] == {"min": 3.0, "last": 3.125}
    assert summary["val/loss"] == {"min": 2.5, "last": 2.5}
    assert summary["total_flops"] == rows(second)[4]["total_flops"] and summary["tokens"] == 512
    assert summary["cpu_rank_hours"] > 0 and summary["throughput"]["peak_memory_gib"] > 0

    (alert,) = of_kind(second, "alert")
    assert alert["title"] == "run diverged" and alert["level"] == "ERROR" and "step 4" in alert["text"]
    assert of_kind(first, "alert") == []
    assert of_kind(second, "exit")[0]["exit_code"] == DIVERGED and summary["status"] == "diverged"


def test_one_command_sends_all_parts_as_one_run(two_starts: Path, no_account: None) -> None:
    command = f"wandb sync {(two_starts / 'command').read_text()}"
    with wandb_server() as (address, runs):
        sync(command, address)
        ((run_id, run),) = runs.items()
        assert run_id == command.rpartition("-")[2].rstrip("*\n") and run.begun["jobType"] == "train"
        sent = [json.loads(row) for row in run.rows]
        # Step 3 was made twice; W&B moves its own step on, so that nothing of the first part is overwritten.
        assert [row["step"] for row in sent] == [1, 2, 3, 3, 4]
        assert [row["_step"] for row in sent] == [1, 2, 3, 4, 5]
        assert [row["train/loss"] for row in sent] == [LOSSES[step] for step in (1, 2, 3, 3, 4)]
        assert json.loads(run.summary)["train/loss"] == {"min": 3.0, "last": 3.125}
        assert "No runs to sync" in sync(command, address)  # what was sent is not sent again
        assert len(run.rows) == 5


@pytest.mark.parametrize("cut_to", [7, 40_000], ids=["nothing", "a block and a bit"])
def test_a_part_that_a_kill_cut_short_holds_no_other_back(
    tmp_path: Path, tracker: Callable[..., Tracker], cut_to: int
) -> None:
    first = tracker()
    for step in range(1, 301):
        first.log("train", step, {"loss": 3.5, "text": "x" * 200}, {"tokens": step})
    first.finish({})
    first.wait()
    (part,) = offline_folders(tmp_path)
    (file,) = part.glob("*.wandb")
    file.write_bytes(file.read_bytes()[:cut_to])
    part.rename(part.with_name(f"offline-run-20260101_000000-{first.id}-1"))  # the second in a second
    said: list[str] = []
    second = tracker(said, run_id=first.id)
    second.log("train", 301, {"loss": 3.0}, {"tokens": 301})
    second.finish({})
    second.wait()
    with wandb_server() as (address, runs):
        sync(said[0].partition("later with: ")[2], address)
        steps = [json.loads(row)["_step"] for row in runs[first.id].rows]
    assert steps == [*range(1, len(steps)), 301]
    assert (len(steps) == 1) if cut_to == 7 else (20 < len(steps) < 200)  # a row takes 0.4 to 2 KB


def summary_config(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the run's config says under `run`."""
    (run,) = of_kind(found, "run")
    return run["config"]["update"]["run"]


def test_the_config_has_no_states(two_starts: Path) -> None:
    first, second = map(records, offline_folders(two_starts))
    assert summary_config(first) == summary_config(second)  # what a run has come to differs between starts
    assert {"variant", "parameters", "world_size", "source_fingerprint"} < summary_config(first).keys()
    assert summary_config(first).keys() <= set(CONFIG_FACTS)
    assert not summary_config(second).keys() & summary_of(second).keys()
    assert of_kind(first, "run")[0]["tags"] == ["vanilla", "1x8", "fp32"]


def test_a_preset_is_tagged_by_its_name(tmp_path: Path) -> None:
    of_run = recipe(tmp_path)
    medium = replace(of_run, model=replace(of_run.model, **PRESETS["gpt2_medium"]))
    assert medium.tags(DS) == ("vanilla", "gpt2_medium", "fp32")


def test_an_alert_that_fails_does_not_end_the_run(
    tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    of_run = tracker(said)
    monkeypatch.setattr(wandb.Run, "alert", lambda run, **arguments: 1 / 0)
    of_run.alert("run diverged", "step 4")
    of_run.log("train", 5, {"loss": 1.0})
    of_run.finish({})
    of_run.wait()
    assert said[1:] == ["W&B is lost (ZeroDivisionError: division by zero): the run folder has it all"]
    assert of_run.noted["lost"] == "ZeroDivisionError: division by zero"
