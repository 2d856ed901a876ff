"""A researcher's own design through the main job: checked, trained, pinned, evaluated, or refused."""

import json
import pydoc_data.topics
from pathlib import Path

import pytest
import torch

from model.treatment import Treatment
from tests.jobs import arguments, make_job, run, summary_of
from tests.own_designs import CAST, LEFTOVER
from training.engine.weights import load_model

STEPS = 4
NORM = """
import torch
import torch.nn as nn

class LayerNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))

    def forward(self, x):
        centred = x.float() - x.float().median(-1, keepdim=True).values
        return (centred / (centred.abs().mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.weight

learning_rate = 6e-4
raise SystemExit("this is training code")
"""
LAYERED = """
from .norms import Median

class LayerNorm(Median):
    def __init__(self, ndim, bias, layer_idx):
        super().__init__(ndim, bias)
        self.layer = layer_idx
"""
PEEK = """
import torch.nn as nn

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.mlp = MLP(config)

    def forward(self, x):
        return x + self.mlp(x - x.mean(1, keepdim=True))
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    folder = make_job(tmp_path_factory.mktemp("job"), texts, STEPS)
    (folder / "candidate.py").write_text(NORM)
    result = run(arguments(folder, folder / "run", *design(folder)))
    assert result.returncode == 0, result.stderr
    return folder


def design(folder: Path) -> list[str]:
    return ["--model.variant", str(folder / "candidate.py"), "--train.preflight", "true"]


def test_a_candidate_file_is_checked_trained_and_kept(job: Path) -> None:
    summary = summary_of(job / "run")
    assert summary["status"] == "finished" and summary["variant"] == "candidate+pre"
    assert summary["preflight"].startswith("passed")
    report = json.loads((job / "run" / "preflight.json").read_text())
    assert report["passed"] and len(report["checks"]) >= 10
    assert (job / "run" / "designs" / "norm.py").read_text() == NORM


@pytest.mark.slow
def test_a_changed_design_does_not_go_on_in_the_same_run(job: Path) -> None:
    more = ["--train.steps", "6", "--schedule.steps", str(STEPS)]
    try:
        (job / "candidate.py").write_text(NORM.replace("median(-1", "mean(-1").replace(".values", ""))
        result = run(arguments(job, job / "run", *design(job), *more))
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert "began on other code than its recipe finds now" in result.stderr
        # evaluation has the code that was trained
        gpt, _ = load_model(job / "run")
        x = torch.randn(5, 32)
        centred = x - x.median(-1, keepdim=True).values
        expected = centred / (centred.abs().mean(-1, keepdim=True) + 1e-5)
        norm = gpt.transformer["ln_f"]
        torch.testing.assert_close(norm(x), expected * norm.weight)
    finally:
        (job / "candidate.py").write_text(NORM)
    (job / "candidate.py").write_text(NORM.replace("6e-4", "1e-3"))  # training code is not the design
    result = run(arguments(job, job / "run", *design(job), *more))
    assert result.returncode == 0, result.stderr
    assert summary_of(job / "run")["step"] == 6


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_candidate_that_looks_ahead_is_refused_before_anything_is_built(job: Path, ranks: int) -> None:
    (job / "peek.py").write_text(PEEK)
    run_dir = job / f"peek{ranks}"
    given = ["--model.variant", str(job / "peek.py")]
    result = run(arguments(job, run_dir, *given, "--train.preflight", "true"), ranks, typed=ranks == 2)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert "pre-flight fail: causality" in result.stderr
    assert "the pre-flight check refuses layernorm+peek: `python -m model.preflight " in result.stderr
    assert f"--model.block {job / 'peek.py'}:Block" in result.stderr
    assert not (run_dir / "metrics.jsonl").exists() and not (run_dir / "checkpoints").exists()
    assert not json.loads((run_dir / "preflight.json").read_text())["passed"]


def test_without_the_check_it_trains_and_the_summary_says_so(job: Path) -> None:
    (job / "peek.py").write_text(PEEK)
    result = run(arguments(job, job / "skipped", "--model.variant", str(job / "peek.py")))
    assert result.returncode == 0, result.stderr
    assert summary_of(job / "skipped")["preflight"] == "skipped"


def test_the_files_beside_a_candidate_are_kept_and_evaluated(job: Path) -> None:
    helper = NORM.replace("class LayerNorm", "class Median")
    (job / "norms.py").write_text(helper)
    (job / "layered.py").write_text(LAYERED)
    result = run(arguments(job, job / "layered", "--model.variant", str(job / "layered.py")))
    assert result.returncode == 0, result.stderr
    kept = job / "layered" / "designs" / "norm"
    assert (kept / "norms.py").read_text() == helper and (kept / "layered.py").read_text() == LAYERED
    (job / "norms.py").write_text("class Median:\n    pass\n")
    gpt, _ = load_model(job / "layered")
    assert [block.ln_1.layer for block in gpt.blocks] == [0, 1] and gpt.transformer["ln_f"].layer == 2
    result = run(arguments(job, job / "layered", "--model.variant", str(job / "layered.py")))
    assert "is finished" in result.stderr


def test_what_is_decided_about_tensors_stays_with_the_run(job: Path) -> None:
    (job / "both.py").write_text(CAST + LEFTOVER)
    given = ["--model.variant", str(job / "both.py"), "--train.preflight", "true"]
    more = ["--train.steps", "6", "--schedule.steps", str(STEPS)]
    for options in (given, [*given, *more]):
        result = run(arguments(job, job / "both", *options, ds_config="bf16.json"))
        assert result.returncode == 0, result.stderr
        summary = summary_of(job / "both")
        assert summary["buffers"] == "cast" and len(summary["cast_buffers"]) == 5
        # two norms, each a vector, and two linear layers with biases that nothing calls
        assert len(summary["unused_parameters"]) == 2 * 3
    assert "6 parameters get no gradient" not in result.stderr  # it was said once
    assert "resumed from" in result.stderr
    gpt, step = load_model(job / "both")
    assert step == 6 and gpt.treatment == Treatment.of(summary)
    assert summary["parameters"] == sum(p.numel() for p in gpt.parameters()) - 2 * (32 + 32 * 32 + 32)
    assert gpt.bfloat16().transformer["ln_f"].scale.dtype == torch.bfloat16
    assert gpt(torch.zeros(1, 8, dtype=torch.long))[0].isfinite().all()
