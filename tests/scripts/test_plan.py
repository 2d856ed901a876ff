"""What a run needs before a GPU is rented, as the command prints it."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
model: {variant: rmsnorm, n_layer: 2, n_head: 2, n_embd: 64, block_size: 64, vocab_size: 512}
data: {source: sample, tokenizer: bytes}
train: {steps: 1000, compile: false}
"""
DS_CONFIG = {
    "train_batch_size": 24,
    "train_micro_batch_size_per_gpu": 3,
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "ds.json").write_text(json.dumps(DS_CONFIG))
    return tmp_path


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    """The command, imported once: its imports take longer than most plans."""
    spec = importlib.util.spec_from_file_location("plan", ROOT / "scripts" / "plan.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["plan"] = module
    spec.loader.exec_module(module)
    return module.main


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(main: Callable[[list[str]], int], files: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*options: str) -> tuple[int, str, str]:
        words = ["--config", str(files / "tiny.yaml"), "--deepspeed_config", str(files / "ds.json"), *options]
        status = main(words)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def numbers(plan: Run, files: Path) -> Callable[..., dict[str, Any]]:
    def run(*options: str) -> dict[str, Any]:
        status, _, errors = plan(*options, "--json", str(files / "plan.json"))
        assert status == 0, errors
        return json.loads((files / "plan.json").read_text())

    return run


def test_a_plan_adds_up_and_says_where_data_parallel_ends(numbers: Callable[..., dict[str, Any]]) -> None:
    facts = numbers("--gpus", "4xH100", "--mfu", "0.5")
    row = facts["plan"]
    assert (row["gpus"], row["micro_batch"], row["accumulation"]) == (4, 3, 2)
    assert row["peak_bytes"] == max(facts["memory"]["phases"].values()) <= facts["memory"]["usable"]
    tokens = 24 * 64
    assert row["tokens_per_s"] == pytest.approx(tokens / row["step_s"])
    assert row["days"] == pytest.approx(1000 * row["step_s"] / 86400)
    assert row["gpu_hours"] == pytest.approx(4 * 24 * row["days"])
    compute = facts["flops_per_token"] * tokens / (4 * 989e12 * 0.5)
    assert row["step_s"] * (1 - row["communication_share"]) == pytest.approx(compute)
    assert [r["gpus"] for r in facts["scaling"]] == [2**i for i in range(13)]  # up to 4,096
    assert any("from 32 GPUs on ZeRO-1 data parallel has more GPUs than" in said for said in facts["limits"])
    assert facts["largest_micro_batch"] > 100


@pytest.mark.slow
def test_the_largest_micro_batch_fits_and_the_next_does_not(numbers: Callable[..., dict[str, Any]]) -> None:
    shape = ["--model.n_layer", "6", "--model.n_embd", "1024", "--model.n_head", "16", "--gpus", "8xRTX4090"]
    size = ["--model.block_size", "1024", "--ds.train_batch_size", "4096"]
    largest = numbers(*shape, *size, "--ds.train_micro_batch_size_per_gpu", "1")["largest_micro_batch"]
    assert largest >= 1
    for micro_batch, fits in ((largest, True), (largest + 1, False)):
        batch = str(8 * micro_batch)
        sizes = ["--ds.train_batch_size", batch, "--ds.train_micro_batch_size_per_gpu", str(micro_batch)]
        facts = numbers(*shape, *size[:2], *sizes)
        assert (facts["memory"]["peak"] <= facts["memory"]["usable"]) == fits


def test_batch_sizes_that_do_not_divide_get_a_plan_and_what_to_set(
    plan: Run, numbers: Callable[..., dict[str, Any]]
) -> None:
    status, text, _ = plan("--gpus", "7xA100")
    assert status == 0
    assert "train.py would refuse this" in text and "do not divide" in text
    assert "--ds.train_batch_size 28 --ds.train_micro_batch_size_per_gpu 2" in text
    facts = numbers("--gpus", "7xA100")
    assert facts["plan"]["steps"] == pytest.approx(1000 * 24 / 28)  # the recipe's tokens, in larger batches
    assert facts["scaling"] == numbers("--gpus", "1xA100")["scaling"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "--gpus is missing: a number, an x and one of B200"),
        (("--gpus", "8xH900"), "--gpus is '8xH900', but it must be a number from 1 to 4096"),
        (("--gpus", "5000xH100"), "from 1 to 4096"),
        (("--gpus", "8xH100", "--mfu", "40"), "--mfu is '40', but it must be above 0 and at most 1"),
        (("--gpus", "8xH100", "--model.n_layr", "3"), "unknown key 'model.n_layr'"),
        (("--gpus", "8xH100", "--ds.zero_optimization.stage", "7"), "'zero_optimization.stage'"),
    ],
)
def test_a_mistake_gets_one_sentence(plan: Run, options: tuple[str, ...], sentence: str) -> None:
    status, text, errors = plan(*options)
    assert (status, text) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1 and sentence in errors
