"""Every file in ds_configs/ and every ZeRO stage, trained on 2 gloo ranks.

All engines of a test share two processes, so those with torch_autocast come last: DeepSpeed keeps autocast's
communication dtypes on for every later engine of its process.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

from model import GPT, GPTConfig
from tests.distributed import run_on_ranks
from training.config import DeepSpeedConfig, ineffective_keys, read_deepspeed_config
from training.engine.build import build_engine, gradient_norm, log_communication, set_learning_rate
from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.ranks import deepspeed

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "ds_configs").glob("*.json"), key=lambda path: ("autocast" in path.stem, path.stem))
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=128, bias=False)
SMALL = {"train_batch_size": "8", "train_micro_batch_size_per_gpu": "2", "gradient_accumulation_steps": "2"}
ADAMW = {
    "type": "AdamW",
    "params": {"lr": 1e-2, "betas": [0.9, 0.95], "weight_decay": 0.1, "torch_adam": True},
}
BASE = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "optimizer": ADAMW,
}
BF16 = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def batches(steps: int, sequences: int = 8) -> torch.Tensor:
    """(steps, sequences of the global batch, T + 1), each step other sequences that count upwards."""
    start = torch.randint(0, 128, (steps, sequences, 1), generator=torch.Generator().manual_seed(5))
    return (start + torch.arange(17)) % 128


def engine_of(folder: Path, config: dict[str, Any] | Path, overrides: dict[str, str] | None = None) -> Any:
    torch.manual_seed(0)
    if isinstance(config, dict):
        path = folder / f"rank{dist.get_rank()}.json"
        path.write_text(json.dumps(config))
    else:
        path = config
    return build_engine(GPT(TINY), read_deepspeed_config(path, overrides or {}, 2))


def step(engine: Any, batch: torch.Tensor, rate: float) -> tuple[float, float]:
    """One optimizer step: the loss over the global batch, and the gradient's norm."""
    set_learning_rate(engine, rate)
    total = torch.zeros(())
    parts = batch[dist.get_rank() :: 2].split(2)
    for part in parts:
        _, loss = engine(part[:, :-1], part[:, 1:])
        engine.backward(loss)
        engine.step()
        total += loss.detach() / (2 * len(parts))
    dist.all_reduce(total)
    assert engine.was_step_applied()
    return float(total), gradient_norm(engine)


def weights(engine: Any) -> dict[str, torch.Tensor]:
    """The fp32 weights, whole."""
    stage = engine.zero_optimization_stage()
    whole = safe_get_full_fp32_param if stage else lambda parameter: parameter.detach().float()
    return {name: whole(parameter).detach().clone() for name, parameter in engine.module.named_parameters()}


def assert_tied(engine: Any) -> None:
    """One tensor, gathered or not, that stands once in the optimizer."""
    gpt = engine.module
    with deepspeed.zero.GatheredParameters(list(gpt.parameters())):
        assert gpt.lm_head.weight is gpt.transformer.wte.weight
        assert gpt.lm_head.weight.shape == (TINY.vocab_size, TINY.n_embd)
    names = [name for group in engine.optimizer.param_groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in gpt.named_parameters())


def train_with_every_file(rank: int, folder: Path) -> None:
    with bf16_arithmetic():
        for path in FILES:
            engine = engine_of(folder, path, SMALL)
            results = [step(engine, batch, 1e-3) for batch in batches(6)]
            losses, norms = zip(*results, strict=True)
            assert losses[-1] < losses[0] - 0.1, (path.stem, losses)
            assert all(math.isfinite(norm) and norm > 0 for norm in norms), (path.stem, norms)
            engine.eval()
            with torch.no_grad():
                idx = batches(1)[0][:3]
                _, loss = engine(idx[:, :-1], idx[:, 1:], reduction="none")
            assert loss.shape == (3, 16) and loss.isfinite().all()
            assert_tied(engine)
            engine.destroy()


@pytest.mark.slow
def test_every_file_trains_and_keeps_the_embedding_tied(tmp_path: Path) -> None:
    assert len(FILES) >= 10
    run_on_ranks(train_with_every_file, 2, tmp_path)


def losses_of_stages(rank: int, folder: Path) -> None:
    """ZeRO decides where numbers lie, not what they are; what differs is the order of fp32 sums.

    In fp32 that is a unit or two of 6e-8 in a loss (1e-7 here), of which six steps of Adam make no more than
    1e-6. With bf16 weights a sum that falls beside a rounding boundary may land on the other side, so that
    single weights differ by 2^-8 of themselves: 1e-5 (0 here). Without ZeRO bf16 gradients are accumulated in
    bf16, each sum rounded by up to 2^-9; under autocast ZeRO reduces the gradients of linear layers in bf16,
    and stages 2 and 3 once a micro-batch: 1e-4 (1.2e-5 here).
    """
    modes = {
        "fp32": ({}, (0, 1, 2, 3), 1e-6),
        "bf16": (BF16, (1, 2, 3), 1e-5),
        "bf16 without ZeRO": ({"bf16": {"enabled": True}}, (0,), 1e-4),
        "autocast": (AUTOCAST, (0, 1, 2, 3), 1e-4),
    }
    reference: dict[str, list[float]] = {}
    with bf16_arithmetic():
        for name, (precision_keys, stages, tolerance) in modes.items():
            for stage in stages:
                engine = engine_of(folder, BASE | precision_keys | {"zero_optimization": {"stage": stage}})
                losses = [step(engine, batch, 3e-3)[0] for batch in batches(6)]
                expected = reference.setdefault(name.split()[0], losses)
                apart = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
                assert apart <= tolerance, (name, stage, apart)
                engine.destroy()
        # The precisions do differ, by more than the stages of one of them.
        apart = [abs(a - b) / b for a, b in zip(reference["bf16"], reference["fp32"], strict=True)]
        assert 1e-5 < max(apart) < 1e-2


def test_the_stages_give_the_same_losses(tmp_path: Path) -> None:
    run_on_ranks(losses_of_stages, 2, tmp_path)


def gradient_errors(rank: int, folder: Path) -> None:
    """The gradient of 64 sequences over 16 accumulation steps, against fp32 torch on the same weights."""
    batch = torch.randint(0, 128, (64, 17), generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    reference = GPT(TINY)
    for parameter in reference.parameters():
        parameter.data = parameter.data.bfloat16().float()
    reference(batch[:, :-1], batch[:, 1:])[1].backward()
    truth = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()])
    errors = {}
    with bf16_arithmetic():
        for stage in (1, 2, 3):
            for accumulation in ("bf16", "fp32"):
                config = BASE | BF16 | {"train_batch_size": 64, "zero_optimization": {"stage": stage}}
                config["data_types"] = {"grad_accum_dtype": accumulation}
                engine = engine_of(folder, config)
                for part in batch[rank::2].split(2):
                    _, loss = engine(part[:, :-1], part[:, 1:])
                    engine.backward(loss)
                    if engine.is_gradient_accumulation_boundary():
                        parts = [safe_get_full_grad(p).float().flatten() for p in engine.module.parameters()]
                        errors[stage, accumulation] = float((torch.cat(parts) - truth).norm() / truth.norm())
                    engine.step()
                engine.destroy()
    # 0.75 % and 0.52 % here: what accumulation adds to the rounding in forward and backward
    for stage in (1, 2, 3):
        assert 0.003 < errors[stage, "fp32"] < 0.006
        assert 1.2 * errors[stage, "fp32"] < errors[stage, "bf16"] < 0.009


def muon_moves_matrices(rank: int, folder: Path) -> None:
    """A Muon update is nearly orthogonal: its length follows from the shape. The embedding gets Adam's."""
    with bf16_arithmetic():
        engine = engine_of(folder, ROOT / "ds_configs" / "zero1_bf16_muon.json", SMALL)
        before = weights(engine)
        step(engine, batches(1)[0], 1e-3)
        gpt, after = engine.module, weights(engine)
        muon = {name for g in engine.optimizer.param_groups if g["use_muon"] for name in g["names"]}
        inside = {name for name, p in gpt.named_parameters() if ".h." in name and p.dim() == 2}
        assert muon == inside and len(muon) == 8
        assert {g["lr_mult"] for g in engine.optimizer.param_groups} == {1.0, 0.02 / 6e-4}
        for name, was in before.items():
            decay = 0.1 if was.dim() >= 2 else 0.0
            rate = 1e-3 * (0.02 / 6e-4 if name in muon else 1.0)
            moved = was * (1 - rate * decay) - after[name]
            if name in muon:
                rows, columns = was.shape
                singular = torch.linalg.svdvals(moved / rate / math.sqrt(max(1, rows / columns)))
                assert 0.5 < singular.median() < 1.3, name
            else:
                assert moved.abs().max() <= 1.01 * rate, name
        moved = before["transformer.wte.weight"] - after["transformer.wte.weight"]
        assert moved.abs().max() > 0.9e-3
        engine.destroy()


def gradients_and_muon(rank: int, folder: Path) -> None:
    gradient_errors(rank, folder)
    muon_moves_matrices(rank, folder)


@pytest.mark.slow
def test_fp32_accumulation_is_closer_to_the_gradient_and_muon_moves_matrices(
    tmp_path: Path,
) -> None:
    run_on_ranks(gradients_and_muon, 2, tmp_path)


def profile_to_a_log(rank: int, folder: Path) -> None:
    """As in `train.py`, where all that the process prints goes to its rank's log."""
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    path = ROOT / "ds_configs" / "profile.json"
    config = read_deepspeed_config(path, SMALL, 2)
    with bf16_arithmetic():
        engine = engine_of(folder, path, SMALL)
        for batch in batches(5):
            step(engine, batch, 1e-3)
    log_communication(config)
    sys.stdout.flush()
    engine.destroy()


def test_profilers_print_to_the_log(tmp_path: Path) -> None:
    run_on_ranks(profile_to_a_log, 2, tmp_path)
    printed = (tmp_path / "rank0.log").read_text()
    assert "Profile Summary at step 4" in printed  # DeepSpeed prints it after each micro-batch of the step
    assert "fwd flops per GPU" in printed and "(lm_head): Head(" in printed
    assert printed.count("fwd_microstep") == 10 and printed.count("| fwd: ") == 5
    assert "Comm. Op" in printed and "all_reduce" in printed


EQUAL = {
    "BF16_Optimizer": (
        BF16 | {"zero_optimization": {"stage": 1}},
        BF16
        | {
            "zero_optimization": {
                "stage": 1,
                "overlap_comm": True,
                "reduce_bucket_size": 100,
                "reduce_scatter": False,
                "contiguous_gradients": False,
                "round_robin_gradients": True,
                "use_multi_rank_bucket_allreduce": False,
                "allgather_partitions": False,
                "stage3_prefetch_bucket_size": 10,
                "offload_param": {"device": "cpu"},
            },
            "compile": {"deepcompile": True},
            "activation_checkpointing": {"partition_activations": True},
            "aio": {"queue_depth": 3},
        },
    ),
    "fp32 parameters under ZeRO-2": (
        {"zero_optimization": {"stage": 2}},
        {"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "bf16"}},
    ),
    "ZeRO-1 with reduce_scatter": (
        {"zero_optimization": {"stage": 1}},
        {"zero_optimization": {"stage": 1}, "prescale_gradients": True, "gradient_predivide_factor": 3.0},
    ),
    "no ZeRO": (
        {},
        {"zero_optimization": {"stage": 0, "reduce_bucket_size": 100, "overlap_comm": True}},
    ),
    "autocast": (
        AUTOCAST | {"zero_optimization": {"stage": 1}},
        AUTOCAST | {"zero_optimization": {"stage": 1}, "communication_data_type": "fp32"},
    ),
}
"""Configs that differ by keys without effect only."""


def a_nan_is_skipped(rank: int, folder: Path) -> None:
    """A NaN on rank 1 alone: no rank moves, the norm says so, and the next step is as if it had not been."""
    modes = [BASE | {"zero_optimization": {"stage": stage}} for stage in range(4)]
    modes += [BASE | BF16 | {"zero_optimization": {"stage": stage}} for stage in (1, 2, 3)]
    modes += [BASE | {"bf16": {"enabled": True}}]
    for config in modes:
        engine = engine_of(folder, config)
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


def without_effect(rank: int, folder: Path) -> None:
    with bf16_arithmetic():
        a_nan_is_skipped(rank, folder)
        for name, pair in EQUAL.items():
            results = []
            for keys in pair:
                engine = engine_of(folder, BASE | keys)
                numbers = [step(engine, batch, 3e-3) for batch in batches(2, sequences=16)[:, :8]]
                results.append((numbers, weights(engine)))
                engine.destroy()
            (numbers, whole), (same_numbers, same_whole) = results
            assert numbers == same_numbers, name
            assert all(torch.equal(whole[key], same_whole[key]) for key in whole), name


@pytest.mark.slow
def test_a_nan_is_skipped_and_keys_that_are_said_to_have_no_effect_change_no_bit(tmp_path: Path) -> None:
    for name, (few, many) in EQUAL.items():
        said = ineffective_keys(DeepSpeedConfig(BASE | many))
        changed = {key for key in many if many[key] != few.get(key)} - {"zero_optimization"}
        zero = many.get("zero_optimization", {}).keys() - few.get("zero_optimization", {}).keys() - {"stage"}
        assert len(said) >= len(changed) + len(zero), (name, said)
    run_on_ranks(without_effect, 2, tmp_path)
