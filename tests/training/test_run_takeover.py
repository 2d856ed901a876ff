"""A start that failed is no run: the next command takes its folder over, but never that of a run."""

import json
from pathlib import Path

import pytest

from model.errors import UserError
from training.run.changes import check_same_run
from training.run.folder import RunFolder

from .test_run_folder import DS_CONFIG, recipe

STEP = json.dumps({"kind": "train", "step": 1, "tokens": 64, "loss": 2.5})


def failed_start(path: Path) -> RunFolder:
    """A folder in which a start wrote all that it writes before its first step."""
    path.mkdir()
    run = RunFolder(path, rank=0)
    run.claim()
    run.write_configs(recipe(), DS_CONFIG, [])
    (path / "designs").mkdir()
    (path / "designs" / "norm.py").write_text("raise")
    for name, text in (("preflight.json", "{}"), ("metrics.jsonl", ""), ("logs/rank0.log", "a trace")):
        (path / name).write_text(text)
    run.record_fingerprints("data", data_fingerprint="a" * 64)
    run.update_summary(status="failed", error="RuntimeError: no", preflight="passed", step=0)
    run._lock.release()  # its process has ended
    return run


@pytest.mark.parametrize("rank", [0, 1])
def test_a_start_that_failed_is_taken_over_by_any_command(tmp_path: Path, rank: int) -> None:
    failed_start(tmp_path / "run")
    run = RunFolder(tmp_path / "run", rank)
    check_same_run(run, recipe(norm="rmsnorm", n_layer=7), DS_CONFIG | {"train_batch_size": 16}, set())
    run.claim()
    run.record_fingerprints("data", data_fingerprint="b" * 64)
    assert run.summary == {"data_fingerprint": "b" * 64}
    run.write_configs(recipe(n_layer=7), DS_CONFIG, [])
    run.update_summary(status="running")
    left = {path.name for path in run.path.iterdir()}
    if rank == 0:
        assert left == {"recipe.yaml", "ds_config.json", "environment.json", "summary.json", "logs"}
        assert "n_layer: 7" in (run.path / "recipe.yaml").read_text()
        summary = json.loads((run.path / "summary.json").read_text())
        assert summary == {"data_fingerprint": "b" * 64, "status": "running"}
    else:
        assert {"designs", "preflight.json", "metrics.jsonl"} < left


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.jsonl", STEP + "\n"),
        ("metrics.jsonl", STEP[:9]),  # cut short as the step was written
        ("summary.json", json.dumps({"status": "failed", "step": 3, "data_fingerprint": "a" * 64})),
    ],
)
def test_a_folder_with_a_step_or_a_checkpoint_is_never_taken_over(
    tmp_path: Path, rank: int, file: str, text: str
) -> None:
    failed_start(tmp_path / "run")
    (tmp_path / "run" / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / file).write_text(text)
    run = RunFolder(tmp_path / "run", rank)
    with pytest.raises(UserError, match=r"is a run with model\.n_layer = 2, but 7 is asked for"):
        check_same_run(run, recipe(n_layer=7), DS_CONFIG, set())
    check_same_run(run, recipe(), DS_CONFIG, set())
    run.claim()
    with pytest.raises(UserError, match="began on other data"):
        run.record_fingerprints("data", data_fingerprint="b" * 64)
    run.write_configs(recipe(), DS_CONFIG, [])
    assert (run.path / "designs" / "norm.py").exists() and (run.path / file).exists()


def test_a_run_that_begins_between_the_check_and_the_claim_is_kept(tmp_path: Path) -> None:
    before = failed_start(tmp_path / "run")
    after = RunFolder(before.path, rank=0)
    check_same_run(after, recipe(n_layer=7), DS_CONFIG, set())
    before.append_metrics(kind="train", step=1, loss=1.0)
    with pytest.raises(UserError, match=r"is a run with model\.n_layer = 2, but 7"):
        after.claim()


def test_a_folder_of_the_users_own_files_loses_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "designs").mkdir()
    (tmp_path / "designs" / "mine.py").write_text("x = 1")
    run = RunFolder(tmp_path, rank=0)
    check_same_run(run, recipe(), DS_CONFIG, set())
    run.claim()
    run.write_configs(recipe(), DS_CONFIG, [])
    assert (tmp_path / "designs" / "mine.py").read_text() == "x = 1"
