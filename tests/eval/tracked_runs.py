"""Runs that W&B tracks, without a training: what their trackers log, and the files that they leave."""

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import wandb

from model.files import write_json
from tests.training.wandb_server import Run, wandb_server
from training.tracking.tracker import Tracker, TrackingConfig

SUMMARY = {"status": "finished", "step": 4, "tokens": 256, "tokens_per_step": 64, "flops_per_token": 10}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Run]]:
    """The runs of a server that this process knows an account of."""
    with wandb_server() as (address, runs):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        yield runs
        wandb.teardown()


def trained(run_dir: Path, steps: range, run_id: str | None = None) -> tuple[Tracker, list[str]]:
    """A start of a run that took these steps and is not over yet, and what it said."""
    said: list[str] = []
    tracker = Tracker(TrackingConfig(), run_dir, run_id, {"run": {"tokens_per_step": 64}}, said.append)
    write_json(run_dir / "summary.json", SUMMARY | {"status": "running", "wandb": tracker.noted})
    with open(run_dir / "metrics.jsonl", "a") as file:
        for step in steps:
            tracker.log("train", step, {"loss": 4.0 - step / 2, "mfu": 0.5}, {"tokens": 64 * step})
            line = {"kind": "train", "step": step, "tokens": 64 * step, "loss": 4.0 - step / 2, "mfu": 0.5}
            file.write(json.dumps(line) + "\n")
    return tracker, said


def finished(run_dir: Path, steps: range, run_id: str | None = None) -> tuple[Tracker, list[str]]:
    """The same, over."""
    tracker, said = trained(run_dir, steps, run_id)
    tracker.finish(SUMMARY)
    tracker.wait()
    write_json(run_dir / "summary.json", SUMMARY | {"wandb": tracker.noted})
    return tracker, said


def settle(tracker: Tracker) -> None:
    """Until W&B's thread has done what it was given so far."""
    done = Event()
    tracker._thread.put(done.set)
    assert done.wait(60)


def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"
