"""The plain copy that diagnostics measure has the weights of a checkpoint, in every mode of DeepSpeed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model import GPT, GPTConfig
from model.treatment import Treatment
from tests.checkpoints import save_checkpoint
from tests.distributed import run_on_ranks
from tests.engines import SMALL, batches, load, step
from tests.own_designs import KEPT, LEFTOVER
from tests.tiny import DS_CONFIG, TINY, zero
from training.config import read_deepspeed_config
from training.diagnostics.plain_copy import PlainCopy, fp32_weights
from training.engine import weights
from training.engine.build import build_engine
from training.engine.compilation import wrap_blocks
from training.engine.cpu_bf16 import bf16_arithmetic
from training.state import TrainState

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    "zero0_fp32", "zero1_autocast", "zero1_bf16", "zero1_bf16_cpu", "zero1_bf16_muon",
    "zero1_bf16_offload", "zero2_bf16", "zero3_bf16",
]  # fmt: skip
LEFT_OUT = [f"transformer.h.{i}.left_over.{name}" for i in range(2) for name in ("weight", "bias")]


def model(folder: Path) -> GPT:
    """With a scalar, a buffer that no cast rounds, and parameters that do not train."""
    names = {"norm": f"{folder / 'norm.py'}:LayerNorm", "block": f"{folder / 'block.py'}:Block"}
    torch.manual_seed(0)
    return GPT(GPTConfig(**TINY | {"vocab_size": 128} | names)).treat(Treatment(unused=tuple(LEFT_OUT)))


def copies_equal_checkpoints(rank: int, folder: Path) -> None:
    torch.compiler.set_stance("force_eager")  # Muon's kernels
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    configs: dict[str, Any] = {
        name: read_deepspeed_config(ROOT / "ds_configs" / f"{name}.json", SMALL, 2) for name in FILES
    }
    configs["zero0_bf16"] = load(folder, DS_CONFIG | {"bf16": {"enabled": True}} | zero(0))
    for name, config in configs.items():
        gpt = model(folder)
        plain = PlainCopy(gpt)
        assert all(p.numel() == 0 for p in plain.gpt.parameters())
        wrap_blocks(gpt, True, config, print)
        engine = build_engine(gpt, config)
        with bf16_arithmetic():
            for batch in batches(2):
                step(engine, batch, 1e-2)
        for parameter, weight in fp32_weights(engine):
            plain.fill(parameter, weight)
        plain.take_buffers(engine.module)
        saved = save_checkpoint(engine, folder / name, TrainState(step=2), 1)
        found, expected = plain.gpt.state_dict(), weights.fp32_weights(saved)
        assert found.keys() == expected.keys(), name
        for key, tensor in found.items():
            assert tensor.dtype == torch.float32, (name, key)
            assert torch.equal(tensor, expected[key].float()), (name, key)
        begun = model(folder).state_dict()
        moved = {key for key in begun if not torch.equal(begun[key], found[key])}
        assert {"transformer.h.0.scale", "lm_head.weight"} < moved, name
        assert plain.gpt.transformer["wte"].weight is plain.gpt.lm_head.weight
        idx = batches(1)[0][:, :-1]
        assert plain.gpt(idx)[0].isfinite().all(), name
        # neither DeepSpeed's hooks nor what is compiled
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.gpt.modules())
        assert "forward" not in vars(plain.gpt.blocks[0])
        plain.empty()
        assert all(p.numel() == 0 for p in plain.gpt.parameters())
        engine.destroy()
        dist.barrier()


@pytest.mark.slow
def test_a_plain_copy_has_the_weights_of_the_checkpoint_in_every_mode(tmp_path: Path) -> None:
    (tmp_path / "norm.py").write_text(KEPT)
    (tmp_path / "block.py").write_text(LEFTOVER)
    run_on_ranks(copies_equal_checkpoints, 2, tmp_path)
