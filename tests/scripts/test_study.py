"""scripts/study.py with the real commands: killed in the middle, it goes on; its plan and its results."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.judging.commands import Command, Ended
from eval.studies.command import read_command
from eval.studies.job import run_study
from tests.jobs import lines_of, run, run_command
from tests.processes import ENVIRONMENT, ROOT

STUDY = {
    "recipe": "recipes/sample.yaml",
    "deepspeed_config": "ds_configs/zero1_bf16_cpu.json",
    "variants": ["rmsnorm"],
    "seeds": [1, 2],
    "selection_seeds": [101],
    "rates": ["1x", "2x"],
    "overrides": {
        "data.tokenizer": "bytes",
        "data.validation_tokens": 4096,
        "model.n_layer": 1,
        "model.n_embd": 32,
        "model.block_size": 32,
        "schedule.warmup": 2,
        "train.steps": 5,
        "train.val_every": 5,
        "train.checkpoint_every": 2,
        "train.compile": False,
        "train.preflight": False,
    },
}


def forked(command: Command, words: Sequence[str], ranks: int = 1) -> Ended:
    """A command, forked where a user's is started."""
    assert command == "train"
    done = run([*words], ranks)
    return Ended(done.returncode, done.stderr)


@pytest.mark.slow
def test_a_study_on_the_sample_is_killed_in_the_middle_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = tmp_path / "tiny.yaml", tmp_path / "runs"
    file.write_text(json.dumps(STUDY))
    words = ["scripts/study.py", str(file), "--runs", str(runs)]
    planned = run_command([*words, "--plan"])
    assert planned.returncode == 0, planned.stderr
    assert "at most 12 runs of 640 tokens" in planned.stdout and "0.005 nats: 5" in planned.stdout
    assert not runs.exists()

    started = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    second = runs / "tiny_sample_rmsnorm_1x_seed1" / "metrics.jsonl"
    while started.poll() is None and not (second.exists() and second.read_text().count("\n") >= 2):
        time.sleep(0.05)
    assert started.poll() is None
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    cells = runs / "studies" / "tiny" / "cells"
    assert [path.name for path in cells.glob("*.json")] == ["sample_vanilla_1x_seed1.json"]
    registered = (cells.parent / "registration.json").read_text()

    assert run_study(read_command(words[1:]), forked, print) == 0
    printed = capsys.readouterr().out
    assert (cells.parent / "registration.json").read_text() == registered
    found = json.loads((cells.parent / "results.json").read_text())
    (row,) = found["rows"]
    assert found["done"] and [one["at"] for one in row["verdicts"]] == ["shared rate", "best rate"]
    assert all(one["seeds"] == 2 and one["documents"] > 1 for one in row["verdicts"])
    assert found["registration"]["there_before"] == [] and found["registration"]["departures"] == []
    for folder in runs.glob("tiny_*"):
        steps = [line["step"] for line in lines_of(folder) if line["kind"] == "train"]
        assert steps == [1, 2, 3, 4, 5]
    count = len(list(runs.glob("tiny_*")))
    assert 8 <= count <= 12 and len(list(cells.glob("*.json"))) == count
    status = run_command([*words, "--status"])
    assert status.returncode == 0 and status.stdout.startswith("pre-registered")
    assert status.stdout in printed


def test_a_mistake_is_one_sentence_before_anything_is_run(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(STUDY | {"variants": ["rmsnrm"]}))
    done = run_command(["scripts/study.py", str(file), "--runs", str(tmp_path / "runs")])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "'rmsnorm'" in done.stderr
    assert not (tmp_path / "runs").exists()
