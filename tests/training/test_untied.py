"""An untied head under DeepSpeed: its own groups, gradients and fp32 weights, in every way of training."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model import GPT
from tests.checkpoints import save_checkpoint
from tests.distributed import run_on_ranks
from tests.engines import batches, load, step, weights
from tests.tiny import AUTOCAST, BF16, DS_CONFIG, ENGINE_TINY, zero
from training.engine.build import build_engine
from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.weights import load_model
from training.state import TrainState

CONFIG = replace(ENGINE_TINY, tied=False, mlp="swiglu", positions="rotary")
MUON = {"optimizer": {"type": "Muon", "params": {"lr": 1e-2, "muon_lr": 0.02, "weight_decay": 0.1}}}
MODES: dict[str, dict[str, Any]] = {
    "fp32_zero0": zero(0),
    "fp32_zero3": zero(3),
    "bf16_zero0": {"bf16": {"enabled": True}} | zero(0),
    "bf16_zero1": BF16 | zero(1),
    "bf16_muon": BF16 | zero(1) | MUON,
    "autocast_zero1": AUTOCAST | zero(1),
}


def train_all(rank: int, folder: Path) -> None:
    """Two steps in each mode; what evaluation reads, and what the run had, are compared afterwards."""
    torch.compiler.set_stance("force_eager")  # Muon would be compiled
    with bf16_arithmetic():
        for mode, config in MODES.items():
            torch.manual_seed(0)
            engine = build_engine(GPT(CONFIG), load(folder, DS_CONFIG | config))
            groups = engine.optimizer.param_groups
            (of_head,) = [group for group in groups if "lm_head.weight" in group["names"]]
            assert "transformer.wte.weight" in of_head["names"] and of_head["weight_decay"] == 0.1
            assert not of_head.get("use_muon")
            names = [name for group in groups for name in group["names"]]
            assert sorted(names) == sorted(name for name, _ in engine.module.named_parameters())
            losses = [step(engine, batch, 1e-2)[0] for batch in batches(2)]
            run = folder / mode
            save_checkpoint(engine, run, TrainState(step=2, data_fingerprint="d"), keep=1)
            trained = weights(engine)
            if rank == 0:
                (run / "recipe.yaml").write_text(yaml.safe_dump({"model": asdict(CONFIG)}))
                (run / "losses.json").write_text(json.dumps(losses))
                torch.save(trained, run / "weights.pt")
            engine.destroy()


@pytest.mark.slow
def test_an_untied_head_is_trained_and_read_back_in_every_mode(tmp_path: Path) -> None:
    run_on_ranks(train_all, 2, tmp_path)
    torch.manual_seed(0)
    initial = dict(GPT(CONFIG).named_parameters())
    losses = {}
    for mode in MODES:
        gpt, _ = load_model(tmp_path / mode)
        trained = torch.load(tmp_path / mode / "weights.pt")
        assert trained.keys() == initial.keys()
        for name, parameter in gpt.named_parameters():
            rounded = parameter.bfloat16().float() if mode == "bf16_zero0" else parameter
            assert torch.equal(rounded, trained[name]), (mode, name)
        for name in ("lm_head.weight", "transformer.wte.weight"):
            assert (trained[name] - initial[name]).abs().max() > 1e-3, (mode, name)
        assert not torch.equal(gpt.lm_head.weight, gpt.transformer.wte.weight)
        losses[mode] = json.loads((tmp_path / mode / "losses.json").read_text())
    reference = losses["fp32_zero0"]
    assert abs(losses["fp32_zero3"][1] - reference[1]) < 1e-5
    for mode in ("bf16_zero0", "bf16_zero1", "autocast_zero1"):
        assert abs(losses[mode][1] - reference[1]) < 0.02, (mode, losses[mode], reference)
