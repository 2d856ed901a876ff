"""How much of the CPU's memory the copy of a checkpoint takes, beside what the plan says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model import GPT
from tests.distributed import run_on_ranks
from tests.training.test_accounting import AUTOCAST, BF16, FP32, TINY, ZERO1, load
from training.checkpoints.host_copy import CopyingEngine, HostCopies
from training.engine.build import build_engine
from training.engine.unusual import frozen
from training.plan.memory import MemoryModel


def copy_of_a_checkpoint(rank: int, folder: Path, configs: list[dict[str, Any]]) -> None:
    """What the checkpoint of an engine copies on rank 0, beside the plan."""
    tokens = torch.zeros(2, 8, dtype=torch.long)
    for config in configs:
        (folder / str(rank)).mkdir(exist_ok=True)
        ds_config = load(folder / str(rank), config, 2)
        gpt = GPT(TINY)
        engine = build_engine(gpt, ds_config)
        for _ in range(2):
            engine.backward(engine(tokens, tokens)[1])
            engine.step()
        copies = HostCopies()
        engine.checkpoint_engine = CopyingEngine(copies)
        with frozen(engine.module):
            engine.save_checkpoint(str(folder / "copied"), tag="x", save_latest=False)
        if rank == 0:
            planned = MemoryModel(TINY, ds_config).checkpoint_copy(2)
            assert planned == pytest.approx(copies.bytes, rel=0.02), (config, planned, copies.bytes)
        engine.destroy()


def test_a_checkpoints_copy_is_as_large_as_planned(tmp_path: Path) -> None:
    zero3 = {"zero_optimization": {"stage": 3}}
    run_on_ranks(copy_of_a_checkpoint, 2, tmp_path, [FP32, ZERO1, BF16, AUTOCAST, BF16 | zero3])
