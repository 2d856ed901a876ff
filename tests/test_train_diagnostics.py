"""Diagnostics of a run: training stays the same bit for bit, resuming too, and none of them ends a run."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from tests.jobs import DS_CONFIG, arguments, lines_of, make_job, run, summary_of, train_main
from tests.processes import ROOT
from training.diagnostics.recorder import diagnostic_steps
from training.engine.weights import load_model

STEPS = 7
TEXTS = [f"document {i} speaks of {i * i} things, of {i % 7} others, and of these again" for i in range(60)]
WITH = ("--train.diagnostics", "true")
HAS_A_LOCK = """
import threading
import torch.nn as nn

class LayerNorm(nn.LayerNorm):
    def __init__(self, ndim, bias):
        super().__init__(ndim, bias=bias)
        self.lock = threading.Lock()
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_job(tmp_path_factory.mktemp("diagnosed"), TEXTS, STEPS, "bytes")
    (folder / "zero0.json").write_text(json.dumps(DS_CONFIG | {"zero_optimization": {"stage": 0}}))
    return folder


@pytest.fixture(scope="module")
def diagnosed(job: Path) -> Path:
    options = (*WITH, "--train.keep_checkpoints", "3")
    result = run(arguments(job, job / "zero0_with", *options, ds_config="zero0.json"), ranks=2)
    assert result.returncode == 0, result.stderr
    return job / "zero0_with"


def numbers(run_dir: Path) -> list[tuple[Any, ...]]:
    """What training computes, and no time."""
    keys = ("kind", "step", "tokens", "loss", "grad_norm", "lr", "bits_per_byte")
    return [tuple(line.get(key) for key in keys) for line in lines_of(run_dir)]


def table(run_dir: Path) -> pd.DataFrame:
    return pq.read_table(run_dir / "diagnostics.parquet").to_pandas()


def test_steps_are_powers_of_two_and_the_last() -> None:
    assert sorted(diagnostic_steps(80)) == [1, 2, 4, 8, 16, 32, 64, 80]
    assert sorted(diagnostic_steps(64)) == [1, 2, 4, 8, 16, 32, 64]
    assert diagnostic_steps(1) == {1} and len(diagnostic_steps(12_030)) == 15


@pytest.mark.parametrize("mode", ["zero0", "bf16"])
def test_training_is_the_same_bit_for_bit(job: Path, diagnosed: Path, mode: str) -> None:
    """With dropout, whose random numbers it must not draw."""
    runs = [job / f"{mode}_without", job / f"{mode}_with"]
    for run_dir, options in zip(runs, ((), WITH), strict=True):
        if run_dir != diagnosed:
            result = run(arguments(job, run_dir, *options, ds_config=f"{mode}.json"), ranks=2)
            assert result.returncode == 0, result.stderr
    assert numbers(runs[0]) == numbers(runs[1]) and len(numbers(runs[0])) == STEPS + 2
    plain, measured = (load_model(run_dir)[0].state_dict() for run_dir in runs)
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    assert not (runs[0] / "diagnostics.parquet").exists()
    found = table(runs[1])
    assert found["step"].unique().tolist() == [1, 2, 4, STEPS]
    assert found["tokens"].tolist() == (256 * found["step"]).tolist()
    assert not found.duplicated(["step", "name", "layer", "part"]).any()
    assert found["value"].map(lambda value: value == value).all()


def test_a_resumed_run_has_the_same_table(job: Path, diagnosed: Path) -> None:
    """It goes on from step 3: what an earlier start measured at 4 and 7 is measured again."""
    resumed = job / "resumed"
    shutil.copytree(diagnosed, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_00000007")
    shutil.rmtree(resumed / "checkpoints" / "step_00000006")
    summary = summary_of(resumed) | {"status": "interrupted", "step": 3}
    (resumed / "summary.json").write_text(json.dumps(summary))
    whole = table(resumed)
    broken = whole.assign(value=whole["value"].where(whole["step"] <= 3, -1.0))
    broken.to_parquet(resumed / "diagnostics.parquet", index=False)
    result = run(arguments(job, resumed, *WITH, ds_config="zero0.json"), ranks=2)
    assert result.returncode == 0 and "step_00000003" in result.stderr, result.stderr
    pd.testing.assert_frame_equal(table(resumed), whole, check_exact=True)


def test_updates_and_weights_are_those_of_the_checkpoints(job: Path, diagnosed: Path) -> None:
    """At the last step, between whose checkpoint and the one before lies that step alone."""
    after, before = (load_model(diagnosed, step)[0].state_dict() for step in (7, 6))
    found = table(diagnosed).query("step == 7").set_index(["name", "layer", "part"])["value"]
    for layer, part, prefix in [
        (0, "", "transformer.h.0."),
        (1, "mlp", "transformer.h.1.mlp."),
        (1, "ln_2", "transformer.h.1.ln_2."),
        (0, "embedding", "transformer.w"),
        (2, "head", "transformer.ln_f."),
    ]:
        names = [name for name in after if name.startswith(prefix)]
        old, new = (torch.cat([w[n].double().flatten() for n in names]) for w in (before, after))
        assert found["weight_norm", layer, part] == pytest.approx(new.norm().item(), rel=1e-6)
        assert found["update_ratio", layer, part] == pytest.approx(
            ((new - old).norm() / old.norm()).item(), rel=1e-5
        )


def without_memory(words: list[str]) -> int:
    """train.py where rank 0 finds no memory for the diagnostics of step 2."""
    from training.diagnostics import recorder

    measure = recorder.measure
    calls = []

    def fails(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.20 GiB")
        return measure(*given)

    recorder.measure = fails
    return train_main(words)


def test_diagnostics_that_fail_end_with_a_sentence_and_the_run_goes_on(job: Path, diagnosed: Path) -> None:
    result = run(arguments(job, job / "poor", *WITH, ds_config="zero0.json"), ranks=2, main=without_memory)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("no diagnostics from step 2 on (OutOfMemoryError: CUDA out of memory.") == 1
    assert result.stderr.count("diagnostics from") == 1
    assert table(job / "poor")["step"].unique().tolist() == [1]
    assert numbers(job / "poor") == numbers(diagnosed)


def on_a_full_machine(words: list[str]) -> int:
    """train.py where next to no memory is free."""
    from training.diagnostics import recorder

    recorder.psutil.virtual_memory = lambda: SimpleNamespace(available=2**10)  # type: ignore[assignment]
    return train_main(words)


def test_a_full_machine_has_no_diagnostics_and_keeps_the_run(job: Path, diagnosed: Path) -> None:
    result = run(arguments(job, job / "full", *WITH, ds_config="zero0.json"), ranks=2, main=on_a_full_machine)
    assert result.returncode == 0, result.stderr
    assert re.search(r"no diagnostics from step 1 on \(MemoryError: they need 0\.\d GiB", result.stderr)
    assert not (job / "full" / "diagnostics.parquet").exists()
    assert numbers(job / "full") == numbers(diagnosed)


def test_a_design_that_cannot_be_copied_trains_without_diagnostics(job: Path) -> None:
    (job / "locked.py").write_text(HAS_A_LOCK)
    result = run(arguments(job, job / "locked", *WITH, "--model.norm", f"{job / 'locked.py'}:LayerNorm"))
    assert result.returncode == 0, result.stderr
    assert "no diagnostics (TypeError: cannot pickle '_thread.lock' object)" in result.stderr
    assert not (job / "locked" / "diagnostics.parquet").exists()


def test_the_documented_lines_read_the_table(diagnosed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "diagnostics.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(lines.replace("runs/vanilla", str(diagnosed)))
    printed = capsys.readouterr().out
    assert "resid_rms" in printed and "update_ratio" in printed
    documented = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| `.*? \|", text, re.MULTILINE))))
    assert set(table(diagnosed)["name"]) <= documented
