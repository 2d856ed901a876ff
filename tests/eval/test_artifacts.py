"""Checkpoints and exports as W&B's artifacts: where they lie, and which was made from which."""

import json
from pathlib import Path

import pytest
import wandb

from eval.tracked.exports import log_export
from model.files import write_json
from tests.eval.tracked_runs import SUMMARY, offline, run_folder, server, trained
from tests.training.wandb_runs import no_account, of_kind, offline_folders, records
from tests.training.wandb_server import Run
from training.state import TrainState

__all__ = ["no_account", "offline", "server"]


@pytest.fixture(autouse=True)
def without_account(no_account: None) -> None:
    """No test here may know the machine's W&B account."""


def checkpoint(run_dir: Path, step: int) -> Path:
    """A folder where a checkpoint would lie."""
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"\0" * 8)
    return folder


def test_checkpoints_are_references_and_an_export_names_its_own(tmp_path: Path, offline: None) -> None:
    run_dir = run_folder(tmp_path)
    tracker, _ = trained(run_dir, range(1, 5))
    for step, best in ((2, 2), (4, 2)):
        state = TrainState(step=step, tokens=64 * step, best_step=best, val_loss=2.5)
        tracker.log_checkpoint(checkpoint(run_dir, step), state, {"variant": "rmsnorm", "status": "running"})
    tracker.finish(SUMMARY)
    tracker.wait()
    (of_run,) = map(records, offline_folders(tmp_path))
    first, second = of_kind(of_run, "artifact")
    assert first["name"] == second["name"] == f"run-{tracker.id}-checkpoints" and first["type"] == "model"
    assert sorted(first["aliases"]) == ["best", "last", "latest", "step_2"]
    assert sorted(second["aliases"]) == ["last", "latest", "step_4"]
    expected = {"variant": "rmsnorm", "step": 4, "tokens": 256, "latest_val_loss": 2.5}
    assert json.loads(second["metadata"]) == expected
    (file,) = second["manifest"]["contents"]
    assert (
        file["ref"] == (run_dir / "checkpoints/step_00000004/weights").as_uri() and "local_path" not in file
    )

    said: list[str] = []
    write_json(run_dir / "summary.json", SUMMARY | {"wandb": tracker.noted})
    log_export(run_dir, 2, checkpoint(tmp_path / "export", 0), said.append)
    (of_export,) = map(records, sorted(set(offline_folders(tmp_path)) - {offline_folders(tmp_path)[0]}))
    (run,), (artifact,) = of_kind(of_export, "run"), of_kind(of_export, "artifact")
    assert run["job_type"] == "export" and run["run_id"] != tracker.id and run["run_id"] in said[0]
    assert artifact["name"] == f"run-{tracker.id}-export"
    assert json.loads(artifact["metadata"])["checkpoint"] == f"{first['name']}:step_2"


def test_an_export_is_linked_to_its_checkpoint_online(
    tmp_path: Path, server: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = run_folder(tmp_path)
    tracker, said = trained(run_dir, range(1, 5))
    state = TrainState(step=4, tokens=256, best_step=4)
    tracker.log_checkpoint(checkpoint(run_dir, 4), state, {})
    tracker.finish(SUMMARY)
    tracker.wait()
    used = []
    monkeypatch.setattr(wandb.Run, "use_artifact", lambda run, name: used.append((run.id, name)))
    log_export(run_dir, 4, checkpoint(tmp_path / "export", 0), said.append)
    (made,) = server[tracker.id].artifacts
    (export_id,) = server.keys() - {tracker.id}
    assert used == [(export_id, f"{made['artifactCollectionName']}:step_4")]
    (artifact,) = server[export_id].artifacts
    assert artifact["artifactCollectionName"] == f"run-{tracker.id}-export" and said == []


def test_an_export_of_a_run_that_wandb_does_not_know_says_so(tmp_path: Path, server: dict[str, Run]) -> None:
    run_dir = run_folder(tmp_path)
    write_json(
        run_dir / "summary.json", SUMMARY | {"wandb": {"name": "run", "id": "unsent00", "mode": "online"}}
    )
    said: list[str] = []
    log_export(run_dir, 4, checkpoint(tmp_path / "export", 0), said.append)
    (sentence,) = said
    assert sentence.startswith("W&B: the export is not linked to run-unsent00-checkpoints:step_4 (")
    (run,) = server.values()
    assert [artifact["artifactCollectionName"] for artifact in run.artifacts] == ["run-unsent00-export"]


def test_a_server_that_takes_no_artifact_keeps_the_run(
    tmp_path: Path, server: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = run_folder(tmp_path)
    monkeypatch.setattr(wandb.Run, "log_artifact", lambda run, artifact, aliases: 1 / 0)
    tracker, said = trained(run_dir, range(1, 3))
    tracker.log_checkpoint(checkpoint(run_dir, 2), TrainState(step=2), {})
    tracker.log("train", 3, {"loss": 2.0})
    tracker.finish(SUMMARY)
    tracker.wait()
    assert said == [f"W&B does not take run-{tracker.id}-checkpoints (ZeroDivisionError: division by zero)"]
    assert [json.loads(row)["step"] for row in server[tracker.id].rows] == [1, 2, 3]
