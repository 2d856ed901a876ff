"""Every file in ds_configs/ and every ZeRO stage, trained on 2 gloo ranks.

All engines of a test share two processes, so those with torch_autocast come last: DeepSpeed keeps autocast's
communication dtypes on for every later engine of its process.
"""

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_grad

from model import GPT
from tests.distributed import run_on_ranks
from tests.engines import SMALL, batches, engine_of, step, weights
from tests.tiny import AUTOCAST, BF16, DS_CONFIG, ENGINE_TINY, zero
from training.config import read_deepspeed_config
from training.engine.build import log_communication
from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.ranks import deepspeed

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "ds_configs").glob("*.json"))


def assert_tied(engine: Any) -> None:
    """One tensor, gathered or not, that stands once in the optimizer."""
    gpt = engine.module
    with deepspeed.zero.GatheredParameters(list(gpt.parameters())):
        assert gpt.lm_head.weight is gpt.transformer.wte.weight
        assert gpt.lm_head.weight.shape == (ENGINE_TINY.vocab_size, ENGINE_TINY.n_embd)
    names = [name for group in engine.optimizer.param_groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in gpt.named_parameters())


def train_with(rank: int, path: Path, folder: Path) -> None:
    with bf16_arithmetic():
        engine = engine_of(folder, path)
        results = [step(engine, batch, 1e-3) for batch in batches(6)]
        losses, norms = zip(*results, strict=True)
        assert losses[-1] < losses[0] - 0.1, losses
        assert all(math.isfinite(norm) and norm > 0 for norm in norms), norms
        engine.eval()
        with torch.no_grad():
            idx = batches(1)[0][:3]
            _, loss = engine(idx[:, :-1], idx[:, 1:], reduction="none")
        assert loss.shape == (3, 16) and loss.isfinite().all()
        assert_tied(engine)


def test_there_are_files() -> None:
    assert len(FILES) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_trains_and_keeps_the_embedding_tied(path: Path, tmp_path: Path) -> None:
    run_on_ranks(train_with, 2, path, tmp_path)


ALL_IN_FP32 = {"torch_autocast": AUTOCAST["torch_autocast"] | {"lower_precision_safe_modules": []}}


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
        # as protocol.json has it: all gradients are reduced in fp32, as without ZeRO
        "autocast, fp32 sums": (ALL_IN_FP32, (0, 1), 1e-6),
    }
    reference: dict[str, list[float]] = {}
    with bf16_arithmetic():
        for name, (precision_keys, stages, tolerance) in modes.items():
            for stage in stages:
                engine = engine_of(folder, DS_CONFIG | precision_keys | zero(stage))
                losses = [step(engine, batch, 3e-3)[0] for batch in batches(6)]
                expected = reference.setdefault(name.split(" without")[0], losses)
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
    reference = GPT(ENGINE_TINY)
    for parameter in reference.parameters():
        parameter.data = parameter.data.bfloat16().float()
    reference(batch[:, :-1], batch[:, 1:])[1].backward()
    truth = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()])
    errors = {}
    with bf16_arithmetic():
        for stage in (1, 2, 3):
            for accumulation in ("bf16", "fp32"):
                config = DS_CONFIG | BF16 | {"train_batch_size": 64} | zero(stage)
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
    torch.compiler.set_stance("force_eager")  # it is compiled where zero1_bf16_muon.json is trained
    with bf16_arithmetic():
        engine = engine_of(folder, ROOT / "ds_configs" / "zero1_bf16_muon.json")
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


@pytest.mark.slow
def test_fp32_accumulation_is_closer_to_the_gradient(tmp_path: Path) -> None:
    run_on_ranks(gradient_errors, 2, tmp_path)


@pytest.mark.slow
def test_muon_moves_matrices(tmp_path: Path) -> None:
    run_on_ranks(muon_moves_matrices, 2, tmp_path)


def profile_to_a_log(rank: int, folder: Path) -> None:
    """As in `train.py`, where all that the process prints goes to its rank's log."""
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    path = ROOT / "ds_configs" / "profile.json"
    config = read_deepspeed_config(path, SMALL, 2)
    with bf16_arithmetic():
        engine = engine_of(folder, path)
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
