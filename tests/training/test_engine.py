"""The DeepSpeed engine against plain torch."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from model import GPT, GPTConfig
from tests.distributed import run_on_ranks
from training.config import read_deepspeed_config
from training.engine.build import build_engine, gradient_norm, parameter_groups, set_learning_rate
from training.engine.cpu_bf16 import MultiplyBF16InFP32

# Without biases: a key's bias has no gradient but rounding noise, which Adam makes a full step of.
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=128, bias=False)
DS_CONFIG = """{
  "train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0,
  "zero_optimization": {"stage": 1}%s,
  "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "betas": [0.9, 0.95], "weight_decay": 0.1,
                                            "torch_adam": true}}}"""
BF16 = """,
  "bf16": {"enabled": true}, "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32" """
STEPS = 3
RATES = [3e-3, 1e-2, 7e-3]


def batches() -> torch.Tensor:
    """(steps, sequences of the global batch, T + 1)."""
    return torch.randint(0, 128, (STEPS, 8, 17), generator=torch.Generator().manual_seed(5))


def plain_torch(gpt: GPT) -> tuple[GPT, list[float]]:
    """What the engine must equal: one process, the whole batch at once, torch's own AdamW and clipping."""
    decayed = [p for p in gpt.parameters() if p.dim() >= 2]
    others = [p for p in gpt.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
    norms = []
    for batch, rate in zip(batches(), RATES, strict=True):
        optimizer.zero_grad()
        logits, _ = gpt(batch[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        norms.append(float(nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return gpt, norms


def train_with_engine(rank: int, world_size: int, folder: Path) -> None:
    torch.manual_seed(0)
    gpt = GPT(TINY)
    reference, norms = plain_torch(copy.deepcopy(gpt))
    ds_config = read_deepspeed_config(folder / "ds.json", {}, world_size)
    assert ds_config.accumulation == 4 // world_size
    engine = build_engine(gpt, ds_config)
    for step, batch in enumerate(batches()):
        set_learning_rate(engine, RATES[step])
        for micro_batch in batch[rank::world_size].split(2):
            _, loss = engine(micro_batch[:, :-1], micro_batch[:, 1:])
            engine.backward(loss)
            engine.step()
        assert gradient_norm(engine) == pytest.approx(norms[step], rel=1e-5)  # before clipping
        assert engine.was_step_applied()
    for (name, ours), theirs in zip(gpt.named_parameters(), reference.parameters(), strict=True):
        # The loss is chunked here and whole there; Adam makes of the gradients' last digits up to 1.5e-6.
        assert (ours - theirs).abs().max() <= 3e-6, name
    assert gpt.lm_head.weight is gpt.transformer.wte.weight


@pytest.mark.parametrize("world_size", [1, 2])
def test_three_steps_equal_plain_torch(world_size: int, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(DS_CONFIG % "")
    run_on_ranks(train_with_engine, world_size, world_size, tmp_path)


def plant_a_nan(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    gpt = GPT(TINY)
    engine = build_engine(gpt, read_deepspeed_config(folder / "ds.json", {}, 2))
    batch = batches()[0][rank::2]
    for step in range(3):
        before = copy.deepcopy(gpt.state_dict())
        for number, micro_batch in enumerate(batch.split(2)):
            _, loss = engine(micro_batch[:, :-1], micro_batch[:, 1:])
            if step == 1 and rank == 1 and number == 0:
                loss = loss * math.nan
            engine.backward(loss)
            engine.step()
        unchanged = all(torch.equal(before[name], tensor) for name, tensor in gpt.state_dict().items())
        assert engine.was_step_applied() == (step != 1)
        assert unchanged == (step == 1)
        assert math.isfinite(gradient_norm(engine)) == (step != 1)


@pytest.mark.parametrize("precision", ["", BF16], ids=["fp32", "bf16"])
def test_a_nan_on_one_rank_skips_the_step_on_all(precision: str, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(DS_CONFIG % precision)
    run_on_ranks(plant_a_nan, 2, tmp_path)


def test_decay_falls_on_matrices_and_a_parameter_may_ask_otherwise() -> None:
    gpt = GPT(TINY)
    gpt.transformer.h[0].attn.c_attn.weight._no_weight_decay = True
    gpt.transformer.h[0].ln_1.weight._lr_mult = 10.0
    groups = parameter_groups(gpt, weight_decay=0.1)
    settings = {id(p): (g["weight_decay"], g["lr_mult"]) for g in groups for p in g["params"]}
    assert len(settings) == sum(len(g["params"]) for g in groups) == len(list(gpt.parameters()))
    for name, parameter in gpt.named_parameters():
        expected = (0.1 if parameter.dim() >= 2 else 0.0, 1.0)
        if name == "transformer.h.0.attn.c_attn.weight":
            expected = (0.0, 1.0)
        if name == "transformer.h.0.ln_1.weight":
            expected = (0.0, 10.0)
        assert settings[id(parameter)] == expected, name


def learning_rates(rank: int, folder: Path) -> None:
    gpt = GPT(TINY)
    gpt.transformer.ln_f.weight._lr_mult = 10.0
    before = copy.deepcopy(gpt)
    engine = build_engine(gpt, read_deepspeed_config(folder / "ds.json", {}, 1))
    set_learning_rate(engine, 1e-3)
    for micro_batch in batches()[0].split(2):
        _, loss = engine(micro_batch[:, :-1], micro_batch[:, 1:])
        engine.backward(loss)
        engine.step()
    moved = (gpt.transformer.ln_f.weight - before.transformer.ln_f.weight).abs().max().item()
    assert moved == pytest.approx(1e-2, rel=1e-2)  # Adam's first step is the learning rate
    moved = (gpt.transformer.h[0].ln_1.weight - before.transformer.h[0].ln_1.weight).abs().max().item()
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_a_learning_rate_multiplier_reaches_the_optimizer(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(DS_CONFIG % "")
    run_on_ranks(learning_rates, 1, tmp_path)


def test_bf16_products_in_fp32_are_what_bf16_hardware_gives() -> None:
    torch.manual_seed(0)
    a, b, bias = torch.randn(40, 70).bfloat16(), torch.randn(70, 30).bfloat16(), torch.randn(30).bfloat16()
    with MultiplyBF16InFP32():
        product, with_bias, batched = a @ b, torch.addmm(bias, a, b), torch.bmm(a[None], b[None])
        assert product.dtype == torch.bfloat16
    exact = a.double() @ b.double()
    for result, expected in ((product, exact), (with_bias, exact + bias.double()), (batched[0], exact)):
        error = (result.double() - expected).abs()
        assert (error <= 2**-8 * expected.abs() + 1e-6).all()  # half a bf16 step and the sums' fp32 rounding


def test_bf16_attention_in_fp32_equals_torchs_bf16_kernel() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, 16, 8).bfloat16().requires_grad_() for _ in range(3)]
    copies = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    weights = torch.randn(2, 2, 16, 8).bfloat16()
    with MultiplyBF16InFP32():
        ours = nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)
        (ours * weights).sum().backward()
    theirs = nn.functional.scaled_dot_product_attention(*copies, is_causal=True)
    (theirs * weights).sum().backward()
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
    for left, right in zip(inputs, copies, strict=True):
        torch.testing.assert_close(left.grad, right.grad, atol=4e-2, rtol=4e-2)
