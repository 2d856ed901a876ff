"""What changes no bit of a run on 2 gloo ranks: a step with a NaN, and keys said to have no effect."""

import math
from pathlib import Path

import pytest
import torch

from tests.distributed import run_on_ranks
from tests.engines import batches, engine_of, step, weights
from tests.tiny import AUTOCAST, BF16, DS_CONFIG, zero
from training.config import DeepSpeedConfig, ineffective_keys
from training.engine.build import gradient_norm, set_learning_rate
from training.engine.cpu_bf16 import bf16_arithmetic

EQUAL = {
    "BF16_Optimizer": (
        BF16 | zero(1),
        BF16
        | zero(
            1,
            overlap_comm=True,
            reduce_bucket_size=100,
            reduce_scatter=False,
            contiguous_gradients=False,
            round_robin_gradients=True,
            use_multi_rank_bucket_allreduce=False,
            allgather_partitions=False,
            stage3_prefetch_bucket_size=10,
            offload_param={"device": "cpu"},
        )
        | {
            "compile": {"deepcompile": True},
            "activation_checkpointing": {"partition_activations": True},
            "aio": {"queue_depth": 3},
        },
    ),
    "fp32 parameters under ZeRO-2": (
        zero(2),
        zero(2) | {"data_types": {"grad_accum_dtype": "bf16"}},
    ),
    "ZeRO-1 with reduce_scatter": (
        zero(1),
        zero(1) | {"prescale_gradients": True, "gradient_predivide_factor": 3.0},
    ),
    "no ZeRO": (
        {},
        zero(0, reduce_bucket_size=100, overlap_comm=True),
    ),
    "autocast": (
        AUTOCAST | zero(1),
        AUTOCAST | zero(1) | {"communication_data_type": "fp32"},
    ),
}
"""Configs that differ by keys without effect only."""


NAN_CONFIGS = [
    *[zero(stage) for stage in range(4)],
    *[BF16 | zero(stage) for stage in (1, 2, 3)],
    {"bf16": {"enabled": True}},
]


def skip_nans(rank: int, folder: Path) -> None:
    """A NaN on rank 1 alone: no rank moves, the norm says so, and the next step is as if it had not been."""
    with bf16_arithmetic():
        for config in NAN_CONFIGS:
            engine = engine_of(folder, DS_CONFIG | config)
            before = weights(engine)
            set_learning_rate(engine, 1e-2)
            for part in batches(1)[0][rank::2].split(2):
                _, loss = engine(part[:, :-1], part[:, 1:])
                engine.backward(loss * (math.nan if rank == 1 else 1.0))
                engine.step()
            assert not engine.was_step_applied() and not math.isfinite(gradient_norm(engine)), config
            after = weights(engine)
            assert all(torch.equal(before[name], after[name]) for name in before), config
            loss_of_step, norm = step(engine, batches(1)[0], 1e-2)
            assert math.isfinite(loss_of_step) and math.isfinite(norm)
            engine.destroy()


@pytest.mark.slow
def test_a_nan_on_one_rank_is_skipped_by_all(tmp_path: Path) -> None:
    run_on_ranks(skip_nans, 2, tmp_path)


def train_with_both(rank: int, name: str, folder: Path) -> None:
    results = []
    with bf16_arithmetic():
        for keys in EQUAL[name]:
            engine = engine_of(folder, DS_CONFIG | keys)
            numbers = [step(engine, batch, 3e-3) for batch in batches(2, sequences=16)[:, :8]]
            results.append((numbers, weights(engine)))
            engine.destroy()
    (numbers, whole), (same_numbers, same_whole) = results
    assert numbers == same_numbers
    assert all(torch.equal(whole[key], same_whole[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_keys_that_are_said_to_have_no_effect_change_no_bit(name: str, tmp_path: Path) -> None:
    few, many = EQUAL[name]
    said = ineffective_keys(DeepSpeedConfig(DS_CONFIG | many))
    changed = {key for key in many if many[key] != few.get(key)} - {"zero_optimization"}
    zero = many.get("zero_optimization", {}).keys() - few.get("zero_optimization", {}).keys() - {"stage"}
    assert len(said) >= len(changed) + len(zero), said
    run_on_ranks(train_with_both, 2, name, tmp_path)
