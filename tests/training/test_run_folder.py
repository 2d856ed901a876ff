"""The run folder's files: whole or unchanged, one line per step, and only ever one run."""

import json
import math
import os
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml

from model.errors import UserError
from model.files import write_json, write_text
from tests.training.command_lines import be_rank_0
from training.run.changes import check_same_run
from training.run.folder import RunFolder, environment, recipe_as_dict

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Model:
    norm: str = "layernorm"
    n_layer: int = 2
    tags: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Train:
    steps: int = 100
    val_every: int = 10
    limits: dict[str, int] = field(default_factory=lambda: {"low": 1})


DS_CONFIG = {
    "train_batch_size": 8,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95]}},
}


def recipe(**changes: Any) -> dict[str, Any]:
    model = {key: value for key, value in changes.items() if key in Model.__dataclass_fields__}
    train = {key: value for key, value in changes.items() if key in Train.__dataclass_fields__}
    return {"model": replace(Model(), **model), "train": replace(Train(), **train)}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Rank 0's run folder, with its configs written."""
    folder = RunFolder(tmp_path / "run", rank=0)
    folder.path.mkdir()
    folder.write_configs(recipe(), DS_CONFIG, ["--config", "r.yaml"])
    return folder


@pytest.fixture
def begun(run: RunFolder) -> RunFolder:
    """The same after a step."""
    run.append_metrics(kind="train", step=1, loss=1.0)
    return run


def metrics(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


# --- files


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    write_text(file, "the first text, a long one")
    write_text(file, "the second")
    assert file.read_text() == "the second"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    file = tmp_path / "summary.json"
    write_json(file, {"step": 1})

    def fail(*arguments: Any) -> None:
        raise OSError("disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(os, failing, fail)
        with pytest.raises(OSError, match="disk is gone"):
            write_json(file, {"step": 2})
    assert json.loads(file.read_text()) == {"step": 1}
    write_json(file, {"step": 3})
    assert json.loads(file.read_text()) == {"step": 3}
    assert list(tmp_path.iterdir()) == [file]


def test_only_rank_0_writes(tmp_path: Path) -> None:
    other = RunFolder(tmp_path, rank=1)
    other.write_configs(recipe(), DS_CONFIG, [])
    other.update_summary(status="running")
    other.append_metrics(kind="train", step=1, loss=1.0)
    other.record_fingerprints("data", data_fingerprint="data", val_fingerprint="validation")
    other.keep_metrics_until(0)
    assert list(tmp_path.iterdir()) == []
    assert other.summary["status"] == "running"
    RunFolder(tmp_path, rank=0).append_metrics(kind="train", step=1, loss=1.0)
    other.keep_metrics_until(0)
    assert len(metrics(other)) == 1


# --- metrics.jsonl


def test_metrics_are_one_object_per_line_in_order(run: RunFolder) -> None:
    run.append_metrics(kind="train", step=1, tokens=64, loss=2.5, skipped=True)
    run.append_metrics(kind="val", step=1, tokens=64, loss=2.25)
    assert metrics(run) == [
        {"kind": "train", "step": 1, "tokens": 64, "loss": 2.5, "skipped": True},
        {"kind": "val", "step": 1, "tokens": 64, "loss": 2.25},
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null_for_strict_readers_too(run: RunFolder, value: float) -> None:
    run.append_metrics(kind="train", step=1, loss=value, grad_norm=1.5)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((run.path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"kind": "train", "step": 1, "loss": None, "grad_norm": 1.5}


@pytest.mark.parametrize("torn", ["", "\n", '{"kind": "train", "step": 3, "lo', '{"kind"', "{"])
def test_what_came_after_a_step_and_a_torn_last_line_are_dropped(run: RunFolder, torn: str) -> None:
    for step in (1, 2, 3):
        run.append_metrics(kind="train", step=step, loss=float(step))
        if step == 2:
            run.append_metrics(kind="val", step=step, loss=0.5)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(torn)
    run.keep_metrics_until(2)
    kept = [("train", 1), ("train", 2), ("val", 2)]
    assert [(line["kind"], line["step"]) for line in metrics(run)] == kept
    run.append_metrics(kind="train", step=3, loss=3.5)
    assert [(line["kind"], line["step"]) for line in metrics(run)] == [*kept, ("train", 3)]
    assert (run.path / "metrics.jsonl").read_text().endswith("\n")


def test_dropping_metrics_of_a_run_that_has_none_makes_no_file(run: RunFolder) -> None:
    run.keep_metrics_until(0)
    assert not (run.path / "metrics.jsonl").exists()


# --- summary.json


def test_the_summary_is_found_again_and_only_the_given_keys_change(run: RunFolder) -> None:
    run.update_summary(status="running", step=0, val_loss=None)
    run.update_summary(status="finished", step=9)
    expected = {"status": "finished", "step": 9, "val_loss": None}
    assert json.loads((run.path / "summary.json").read_text()) == expected
    assert RunFolder(run.path, rank=1).summary == expected


def test_a_run_goes_on_only_with_the_data_it_began_on(run: RunFolder) -> None:
    run.record_fingerprints("data", data_fingerprint="a" * 64, val_fingerprint="b" * 64)
    run.update_summary(status="running")
    again = RunFolder(run.path, rank=0)
    again.record_fingerprints("data", data_fingerprint="a" * 64, val_fingerprint="b" * 64)
    for key in ("data_fingerprint", "val_fingerprint"):
        with pytest.raises(UserError) as caught:
            RunFolder(run.path, rank=1).record_fingerprints("data", **{key: "c" * 64})
        message = str(caught.value)
        assert "\n" not in message and f"({key} was" in message and str(run.path) in message
        assert "c" * 12 in message and "--run_dir" in message


# --- configs


def test_configs_are_written_as_plain_yaml_and_json(run: RunFolder) -> None:
    written = yaml.safe_load((run.path / "recipe.yaml").read_text())
    assert written == recipe_as_dict(recipe()) == {
        "model": {"norm": "layernorm", "n_layer": 2, "tags": ["a", "b"]},
        "train": {"steps": 100, "val_every": 10, "limits": {"low": 1}},
    }  # fmt: skip
    assert json.loads((run.path / "ds_config.json").read_text()) == DS_CONFIG


def test_the_environment_tells_versions_commit_and_command(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = json.loads((run.path / "environment.json").read_text())
    assert written["command"] == ["--config", "r.yaml"]
    assert written["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert written["packages"]["numpy"] == numpy.__version__
    assert written["cpus"] >= 1
    be_rank_0(monkeypatch, 4)
    assert environment([])["world_size"] == 4


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a git checkout")
def test_the_commit_is_that_of_the_code_wherever_the_command_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    monkeypatch.chdir(tmp_path)
    assert environment([])["git_commit"] == head.stdout.strip()


def test_the_same_configs_go_on(begun: RunFolder) -> None:
    check_same_run(RunFolder(begun.path, rank=1), recipe(), DS_CONFIG, set())


def test_a_folder_without_a_run_takes_any_config(tmp_path: Path) -> None:
    check_same_run(RunFolder(tmp_path / "new", rank=0), recipe(n_layer=5), DS_CONFIG, set())


@pytest.mark.parametrize(
    ("changes", "ds_changes", "words"),
    [
        ({"norm": "rmsnorm"}, {}, "model.norm = 'layernorm', but 'rmsnorm'"),
        ({"tags": ("b", "a")}, {}, "model.tags = ['a', 'b'], but ['b', 'a']"),
        ({"limits": {"low": 2}}, {}, "train.limits.low = 1, but 2"),
        ({"limits": {"low": 1, "high": 5}}, {}, "train.limits.high = None, but 5"),
        ({}, {"train_batch_size": 16}, "ds.train_batch_size = 8, but 16"),
        ({}, {"bf16": {"enabled": True}}, "ds.bf16.enabled = None, but True"),
        ({}, {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.99]}}},
         "ds.optimizer.params.betas = [0.9, 0.95], but [0.9, 0.99]"),
        ({"norm": "rmsnorm", "n_layer": 3, "steps": 7}, {"train_batch_size": 16}, "ds.train_batch_size"),
        ({"norm": "rmsnorm", "n_layer": 3, "steps": 7}, {}, "model.n_layer = 2, but 3"),
    ],
)  # fmt: skip
def test_another_config_is_refused_by_the_first_key_that_differs(
    begun: RunFolder, changes: dict[str, Any], ds_changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_same_run(begun, recipe(**changes), DS_CONFIG | ds_changes, set())
    message = str(caught.value)
    assert words in message and str(begun.path) in message and "--run_dir" in message and "\n" not in message


def test_a_free_key_and_a_free_section_may_change(begun: RunFolder) -> None:
    check_same_run(begun, recipe(steps=7), DS_CONFIG, {"train.steps"})
    check_same_run(begun, recipe(steps=7, val_every=3, limits={"low": 9}), DS_CONFIG, {"train"})
    with pytest.raises(UserError, match=r"train\.val_every = 10, but 3"):
        check_same_run(begun, recipe(steps=7, val_every=3), DS_CONFIG, {"train.steps"})
    with pytest.raises(UserError, match=r"model\.n_layer = 2, but 3"):
        check_same_run(begun, recipe(n_layer=3), DS_CONFIG, {"train", "n_layer"})


def test_a_folder_in_which_a_run_is_under_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    under_way, second, other_rank = RunFolder(tmp_path, 0), RunFolder(tmp_path, 0), RunFolder(tmp_path, 1)
    under_way.claim()
    other_rank.claim()
    with pytest.raises(UserError, match=r"is being trained by another process: wait for it or stop it"):
        second.claim(wait_s=0.1)


def test_a_claim_reads_what_the_run_before_it_wrote_last(tmp_path: Path) -> None:
    before, after = RunFolder(tmp_path, 0), RunFolder(tmp_path, 0)
    before.update_summary(status="failed", step=7, error="OSError: gone", failed_rank=1, log="logs/rank1.log")
    after.claim()
    assert after.summary == {"status": "failed", "step": 7}
