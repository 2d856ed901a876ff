"""Tiny engines on two gloo ranks: how tests build them, step them and read their weights."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param

from model import GPT
from tests.tiny import ENGINE_TINY
from training.config import DeepSpeedConfig, read_deepspeed_config
from training.engine.build import build_engine, gradient_norm, set_learning_rate

SMALL = {"train_batch_size": "8", "train_micro_batch_size_per_gpu": "2", "gradient_accumulation_steps": "2"}
"""What makes a shipped DeepSpeed config small."""


def batches(steps: int, sequences: int = 8) -> torch.Tensor:
    """(steps, sequences of the global batch, T + 1), each step other sequences that count upwards."""
    start = torch.randint(0, 128, (steps, sequences, 1), generator=torch.Generator().manual_seed(5))
    return (start + torch.arange(17)) % 128


def load(folder: Path, config: dict[str, Any], ranks: int = 2) -> DeepSpeedConfig:
    """This rank's DeepSpeed config, as if from a file."""
    path = folder / f"rank{dist.get_rank()}.json"
    path.write_text(json.dumps(config))
    return read_deepspeed_config(path, {}, ranks)


def engine_of(folder: Path, config: dict[str, Any] | Path) -> Any:
    """On two ranks, with these keys or a shipped file's, made small."""
    torch.manual_seed(0)
    ds_config = read_deepspeed_config(config, SMALL, 2) if isinstance(config, Path) else load(folder, config)
    return build_engine(GPT(ENGINE_TINY), ds_config)


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
