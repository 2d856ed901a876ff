"""The plan beside what was measured on GPUs, and its sums of what interrupts the steps, done by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data import DataConfig
from model import PRESETS, GPTConfig
from training.config import DeepSpeedConfig, EvalConfig, Recipe, TrackingConfig, TrainConfig
from training.config.candidate import Overrides
from training.config.deepspeed import read_deepspeed_config
from training.engine.hardware import GPUS
from training.explain import explanation
from training.plan.accounting import COPIED, FIRST_COPY, STALL, WRITTEN, StepTime, pauses
from training.plan.memory import MemoryModel
from training.plan.report import told
from training.schedule import ScheduleConfig

ROOT = Path(__file__).resolve().parents[2]
MEASURED_GIB = [("gpt2_medium", 48, 44.5), ("gpt2_medium", 24, 26.2), ("gpt2_small", 24, 10.6)]
"""Peaks on an H200 and, of the first, on an H100 too: docs/gpu.md."""
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=64)


def of_reference(micro_batch: int, accumulation: int, **overrides: str) -> DeepSpeedConfig:
    sizes = {
        "train_micro_batch_size_per_gpu": str(micro_batch),
        "train_batch_size": str(micro_batch * accumulation),
    }
    return read_deepspeed_config(ROOT / "ds_configs" / "zero1_bf16.json", sizes | overrides, 1)


@pytest.mark.parametrize(("preset", "micro_batch", "measured"), MEASURED_GIB)
def test_peaks_measured_on_gpus_are_planned(preset: str, micro_batch: int, measured: float) -> None:
    config = GPTConfig(**PRESETS[preset], block_size=1024, vocab_size=50304)
    memory = MemoryModel(config, of_reference(micro_batch, 2), compiled=True)
    assert memory.of(1, micro_batch, 2).peak / 2**30 == pytest.approx(measured, rel=0.1)


def test_a_budget_and_checkpointing_take_less_and_do_not_add_up() -> None:
    config = replace(TINY, n_layer=6, n_embd=64, block_size=128)
    checkpointing = {"activation_checkpointing": "{}"}

    def activations(compiled: bool, budget: float, **overrides: str) -> int:
        memory = MemoryModel(config, of_reference(16, 2, **overrides), compiled=compiled, budget=budget)
        return memory.of(1, 16, 2).activations

    whole, less, least = (activations(True, budget) for budget in (1.0, 0.6, 0.2))
    assert activations(False, 1.0) > whole > less > least
    assert activations(False, 0.2) == activations(False, 1.0)
    recomputed = activations(True, 1.0, **checkpointing)
    assert recomputed < 0.7 * whole
    assert activations(True, 0.2, **checkpointing) == recomputed


def test_micro_batches_in_between_are_near_their_own_trace() -> None:
    between = MemoryModel(replace(TINY, block_size=64), of_reference(16, 2), compiled=True).of(1, 11, 2)
    exact = MemoryModel(replace(TINY, block_size=64), of_reference(11, 2), compiled=True).of(1, 11, 2)
    assert between.activations == pytest.approx(exact.activations, rel=0.02)


def test_a_document_mask_takes_memory_on_cpus_and_with_dropout_alone() -> None:
    """On GPUs FlexAttention holds none of its elements, but it has no dropout."""

    def activations(device: Any, dropout: float, masked: bool) -> int:
        config = replace(TINY, dropout=dropout, block_size=128)
        memory = MemoryModel(config, of_reference(4, 2), device, document_mask=masked)
        return memory.of(1, 4, 2).activations

    for device, dropout, more in (("cuda", 0.0, False), ("cuda", 0.1, True), ("cpu", 0.0, True)):
        assert (activations(device, dropout, True) > activations(device, dropout, False)) == more


# ---- validation and checkpoints ----
def recipe(**train: Any) -> Recipe:
    data = DataConfig(source="sample", tokenizer="bytes", validation_tokens=1_000_000)
    model = replace(TINY, vocab_size=320)
    return Recipe(
        model, data, TrainConfig(**train), ScheduleConfig(steps=1000), EvalConfig(), TrackingConfig()
    )


def test_pauses_by_hand() -> None:
    asked = recipe(steps=1000, val_every=300, checkpoint_every=250)
    memory = MemoryModel(asked.model, of_reference(4, 2))
    P = memory.shape.parameters
    found = pauses(memory, asked, StepTime(0.4, 0.1), 10**9, GPUS["H100"], 8, 0.5, 1000)
    assert (found.validations, found.checkpoints, found.steps_s) == (
        4,
        4,
        500,
    )  # the last after the last step
    assert found.validation_s == pytest.approx(1e9 / 3 * 1e6 / (8 * 989e12 * 0.5))
    copied = 2 * P + 12 * P / 8  # rank 0's weights, and its share of the states
    assert found.first_copy_s == pytest.approx(copied * FIRST_COPY, rel=1e-3)
    assert found.copy_s == pytest.approx(copied / COPIED + STALL, rel=1e-3)
    assert found.late_s == 0
    validation, checkpoints = 4 * found.validation_s, found.first_copy_s + 3 * found.copy_s
    whole = 500 + validation + checkpoints
    assert found.validation_share == pytest.approx(validation / whole)
    assert found.checkpoint_share == pytest.approx(checkpoints / whole)


def test_checkpoints_that_come_too_fast_wait_for_the_disk() -> None:
    asked = recipe(steps=1000, checkpoint_every=10)
    memory = MemoryModel(replace(asked.model, n_embd=512), of_reference(4, 2))
    P = memory.shape.parameters
    time = StepTime(0.0001, 0.0)
    found = pauses(memory, asked, time, 10**9, GPUS["H100"], 1, 0.5, 1000)
    assert found.late_s == pytest.approx((14 + 4) * P / WRITTEN - 0.001)
    by_the_clock = replace(asked, train=replace(asked.train, checkpoint_every=1000, checkpoint_minutes=0.001))
    assert (
        pauses(memory, by_the_clock, time, 10**9, GPUS["H100"], 1, 0.5, 1000).checkpoints == 2
    )  # 0.06 s each


def test_what_takes_much_of_a_run_is_named_with_what_to_type() -> None:
    memory = MemoryModel(TINY, of_reference(4, 2))

    def sentences(val_every: int, checkpoint_every: int) -> list[str]:
        asked = recipe(steps=1000, val_every=val_every, checkpoint_every=checkpoint_every)
        found = pauses(memory, asked, StepTime(0.1, 0.0), 10**9, GPUS["H100"], 1, 0.5, 1000)
        return told(found, asked)[2:]

    assert sentences(1000, 1000) == []
    (validation,) = sentences(100, 1000)  # 10 of 0.67 s beside 100 s
    assert validation.startswith("validation takes more than 2% of the run: --train.val_every ")
    enough = int(validation.split("val_every ")[1].split()[0])
    assert sentences(enough, 1000) == []
    (checkpoints,) = sentences(1000, 2)  # 500 of 0.02 s
    assert checkpoints.startswith(
        "checkpoints take more than 0.5% of the run, because they are copied so often"
    )
    assert "raise train.checkpoint_every, now 2" in checkpoints


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"activation_memory_budget": 0.5}, "they keep 0.5 of their activations for backward"),
        ({"activation_memory_budget": 0.5, "compile": False}, "train.activation_memory_budget has no effect"),
        ({}, None),
    ],
)
def test_explain_says_what_blocks_keep(train: dict[str, Any], said: str | None) -> None:
    text = explanation(recipe(**train), of_reference(4, 2), Overrides())
    assert said in text if said else "backward" not in text and "budget" not in text
