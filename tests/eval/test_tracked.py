"""Evaluations in the training's W&B run: offline files read back, and a server that takes what is sent."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wandb
from filelock import FileLock

from eval.tracked import log_late
from eval.tracked.late import is_being_trained
from model.files import write_json
from tests.eval.tracked_runs import SUMMARY, finished, offline, run_folder, server, settle, trained
from tests.training.wandb_runs import no_account, of_kind, offline_folders, records, rows, summary_of, sync
from tests.training.wandb_server import Run, wandb_server

__all__ = ["no_account", "offline", "server"]


@pytest.fixture(autouse=True)
def without_account(no_account: None) -> None:
    """No test here may know the machine's W&B account."""


def evaluated(run_dir: Path, step: int, scores: dict[str, Any], has_slices: bool = False) -> None:
    """The files of an evaluation, as `python -m eval` leaves them."""
    folder = run_dir / "eval" / f"step_{step:08d}"
    write_json(
        folder / "results.json",
        {"results": scores, "n-samples": {task: {"effective": 30} for task in scores}, "normlab": {}},
    )
    if has_slices:
        columns = {"kind": ["position"] * 3, "low": [0, 1, 1], "high": [0, 1, 1], "document": [0, 0, 1]}
        pq.write_table(
            pa.table(columns | {"tokens": [2, 3, 1], "loss": [8.0, 9.0, 1.0]}), folder / "slices.parquet"
        )


ARC = {"arc": {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.125, "acc_norm,none": 0.5}}
ARC_LATER = {"arc": {"acc,none": 0.75, "acc_stderr,none": "N/A", "acc_norm,none": float("nan")}}
GSM = {"gsm": {"exact_match,strict": 0.0625, "exact_match_stderr,strict": 0.03}}
AT_STEP_2 = {"step": 2, "tokens": 128, "total_flops": 1280.0, "eval/arc/acc": 0.25, "eval/arc/acc_norm": 0.5}


def without_table(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(("_", "evaluation"))}


def test_late_scores_and_slices_are_a_row_at_their_checkpoint(tmp_path: Path, offline: None) -> None:
    run_dir = run_folder(tmp_path)
    tracker, said = finished(run_dir, range(1, 5))
    evaluated(run_dir, 4, ARC_LATER)
    evaluated(run_dir, 2, ARC, has_slices=True)
    late: list[str] = []
    log_late(run_dir, 2, late.append)
    assert late == said  # where it lies, and the same command sends both parts
    _, part = map(records, offline_folders(tmp_path))
    slices = {"slices/position/0": 4.0, "slices/position/1": 2.5}
    found = rows(part)
    assert list(map(without_table, found.values())) == [
        AT_STEP_2 | slices,
        {"step": 4, "tokens": 256, "total_flops": 2560.0, "eval/arc/acc": 0.75},
    ]
    assert list(found) == [5, 6]  # W&B's own steps go on

    (run,) = of_kind(part, "run")
    assert run["run_id"] == tracker.id and run["project"] == "normlab" and run["display_name"] == "run"
    summary = summary_of(part)
    assert (summary["eval/arc/acc"], summary["eval/arc/acc_norm"]) == (0.75, 0.5)  # the latest of each
    assert (summary["step"], summary["status"], summary["train/loss"]) == (
        4,
        "finished",
        {"min": 2, "last": 2},
    )
    assert summary["train/mfu"] == 0.5 and "tokens_per_step" not in summary

    (table,) = offline_folders(tmp_path)[1].glob("files/media/table/evaluation*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["step", "task", "metric", "value", "standard error", "items"]
    assert content["data"] == [
        [2, "arc", "acc", 0.25, 0.125, 30],
        [2, "arc", "acc_norm", 0.5, None, 30],
        [4, "arc", "acc", 0.75, None, 30],
    ]


def test_what_was_sent_is_not_sent_again(tmp_path: Path, offline: None) -> None:
    run_dir = run_folder(tmp_path)
    finished(run_dir, range(1, 5))
    evaluated(run_dir, 2, ARC)
    log_late(run_dir, 2, print)
    log_late(run_dir, 2, print)
    assert len(offline_folders(tmp_path)) == 2
    evaluated(run_dir, 2, ARC | GSM)
    log_late(run_dir, 2, print)
    _, _, part = map(records, offline_folders(tmp_path))
    axes = {key: AT_STEP_2[key] for key in ("step", "tokens", "total_flops")}
    assert [without_table(row) for row in rows(part).values()] == [
        axes | {"eval/gsm/exact_match,strict": 0.0625}
    ]
    assert list(rows(part)) == [6]


def test_one_command_sends_trainings_and_evaluations_in_turn(tmp_path: Path, offline: None) -> None:
    run_dir = run_folder(tmp_path)
    tracker, said = finished(run_dir, range(1, 5))
    evaluated(run_dir, 2, ARC)
    log_late(run_dir, 2, print)
    finished(run_dir, range(5, 7), tracker.id)
    evaluated(run_dir, 4, ARC_LATER)
    log_late(run_dir, 4, print)
    (pattern,) = shlex.split(said[0].rpartition("wandb sync ")[2])
    with wandb_server() as (address, runs):
        sync(f"wandb sync {pattern}", address)
        ((run_id, run),) = runs.items()
    assert run_id == tracker.id
    sent = [json.loads(row) for row in run.rows]
    assert [row["step"] for row in sent] == [1, 2, 3, 4, 2, 5, 6, 4]
    assert [row["_step"] for row in sent] == list(range(1, 9))
    assert [row.get("eval/arc/acc") for row in sent if "eval/arc/acc" in row] == [0.25, 0.75]
    summary = json.loads(run.summary)  # the server has that of the last part
    assert summary["eval/arc/acc"] == 0.75 and summary["train/loss"] == {"min": 1, "last": 1}
    assert [artifact["artifactTypeName"] for artifact in run.artifacts] == ["run_table"] * 2


def test_online_late_scores_and_later_steps_all_arrive(tmp_path: Path, server: dict[str, Run]) -> None:
    run_dir = run_folder(tmp_path)
    tracker, said = finished(run_dir, range(1, 5))
    evaluated(run_dir, 2, ARC)
    log_late(run_dir, 2, said.append)
    log_late(run_dir, 2, said.append)
    finished(run_dir, range(4, 7), tracker.id)  # step 4 is made again
    evaluated(run_dir, 4, ARC_LATER)
    log_late(run_dir, 4, said.append)
    assert said == [] and list(server) == [tracker.id]
    run = server[tracker.id]
    sent = [json.loads(row) for row in run.rows]
    assert [row["step"] for row in sent] == [1, 2, 3, 4, 2, 5, 6, 4]  # W&B has step 4 already
    assert without_table(sent[4]) == AT_STEP_2 and sent[7]["eval/arc/acc"] == 0.75
    summary = json.loads(run.summary)
    assert summary["eval/arc/acc"] == 0.75 and summary["train/loss"] == {"min": 1, "last": 1}
    assert summary["step"] == 4 == SUMMARY["step"]


def test_after_parts_that_were_not_sent_a_run_stays_offline(
    tmp_path: Path, server: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = run_folder(tmp_path)
    with monkeypatch.context() as without_network:
        without_network.setenv("WANDB_MODE", "offline")
        tracker, said = finished(run_dir, range(1, 3))
    command = f"wandb sync {said[0].rpartition('wandb sync ')[2]}"
    evaluated(run_dir, 2, ARC)
    log_late(run_dir, 2, said.append)  # the server would have it before the rows of the training
    expected = f"W&B: offline run (its earlier parts were not sent yet); send it later with: {command}"
    assert said[1:] == [expected] and not server
    sync(command, os.environ["WANDB_BASE_URL"])
    evaluated(run_dir, 2, ARC | GSM)
    log_late(run_dir, 2, said.append)
    assert len(said) == 2
    sent = [json.loads(row) for row in server[tracker.id].rows]
    assert [row["step"] for row in sent] == [1, 2, 2, 2]


def test_a_training_sends_what_is_scored_meanwhile(tmp_path: Path, offline: None) -> None:
    run_dir = run_folder(tmp_path)
    tracker, _ = trained(run_dir, range(1, 3))
    settle(tracker)
    said: list[str] = []
    evaluated(run_dir, 2, ARC)
    with FileLock(run_dir / "logs" / "rank0.lock"):  # as each rank of a training does
        assert is_being_trained(run_dir)
        log_late(run_dir, 2, said.append)
    assert not is_being_trained(run_dir)
    assert said == [
        f"W&B: {run_dir} is being trained, and sends the scores of step 2 itself after its next validation"
    ]
    tracker.log("train", 3, {"loss": 3.0})
    tracker.log("val", 3, {"loss": 3.5})
    tracker.log("sample", 3, {"The": " end"})
    tracker.log("train", 4, {"loss": 2.0})
    settle(tracker)
    evaluated(run_dir, 4, ARC_LATER)  # its end sends these
    tracker.finish(SUMMARY)
    tracker.wait()
    (part,) = map(records, offline_folders(tmp_path))
    found = rows(part)
    assert [(row["step"], without_table(row).get("eval/arc/acc")) for row in found.values()] == [
        (1, None), (2, None), (3, None), (2, 0.25), (4, None), (4, 0.75),
    ]  # fmt: skip
    assert found[3]["val/loss"] == 3.5 and found[3]["sample/The"] == " end"
    log_late(run_dir, 4, said.append)
    assert len(said) == 1 and len(offline_folders(tmp_path)) == 1


def test_results_that_cannot_be_read_end_no_training(tmp_path: Path, offline: None) -> None:
    run_dir = run_folder(tmp_path)
    tracker, said = trained(run_dir, range(1, 3))
    evaluated(run_dir, 2, ARC)
    (run_dir / "eval/step_00000002/results.json").write_text("{")
    tracker.log("val", 3, {"loss": 3.5})
    tracker.log("train", 4, {"loss": 2.0})
    settle(tracker)
    evaluated(run_dir, 2, ARC)  # again, whole
    tracker.finish(SUMMARY)
    tracker.wait()
    (sentence,) = said[1:]
    assert sentence.startswith("W&B has not got all evaluations (UserError: ")
    (part,) = map(records, offline_folders(tmp_path))
    assert [row["step"] for row in rows(part).values()] == [1, 2, 3, 4, 2]


def test_a_run_without_wandb_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = run_folder(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    _, said = finished(run_dir, range(1, 3))
    evaluated(run_dir, 2, ARC)
    log_late(run_dir, 2, said.append)
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_late(run_dir, 2, said.append)
    (run_dir / "summary.json").unlink()
    log_late(run_dir, 2, said.append)
    assert (
        said == []
        and offline_folders(tmp_path) == []
        and not (run_dir / "eval/step_00000002/wandb.json").exists()
    )


def test_a_failing_wandb_leaves_the_evaluation_alone(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = run_folder(tmp_path)
    finished(run_dir, range(1, 3))
    evaluated(run_dir, 2, ARC)
    said: list[str] = []
    with monkeypatch.context() as broken:
        broken.setattr(wandb, "init", lambda **arguments: 1 / 0)
        log_late(run_dir, 2, said.append)
    assert said == ["W&B is lost (ZeroDivisionError: division by zero): the run folder has it all"]
    log_late(run_dir, 2, said.append)  # and another try succeeds
    assert without_table(rows(records(offline_folders(tmp_path)[-1]))[3])["eval/arc/acc"] == 0.25
    (run_dir / "summary.json").write_text("{")
    evaluated(run_dir, 2, ARC_LATER)
    log_late(run_dir, 2, said.append)
    assert said[-1].startswith("W&B has not got the scores of step 2 (UserError: ") and "\n" not in said[-1]
