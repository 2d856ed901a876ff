"""The training step as designs read it: one for a model, no part of its state, checked as a run begins."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from model import GPT, VARIANTS, GPTConfig, from_hf, to_hf
from model.catalogue.attention import ATTENTION_VARIANTS
from model.preflight import Report, preflight
from model.training_step import TrainingStep
from tests.model.random_models import our_gpt
from tests.tiny import TINY

BLOCK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        {keep}
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.mlp = MLP(config)

    def forward(self, x):
        step = {read}
        {change}
        share = (step / 50).clamp(max=1.0)
        return x + share * (self.attn(self.ln_1(x)) + self.mlp(x))

class Topology(nn.Module):
    def __init__(self, config, blocks):
        super().__init__()
        self.blocks = blocks
        self.training_step = config.training_step

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x * (1 + self.training_step())
"""
KEPT = {"keep": "self.training_step = config.training_step", "read": "self.training_step()"}
IN_CONFIG = {"keep": "self.config = config", "read": "self.config.training_step()"}


def design(folder: Path, change: str = "pass", **kept: str) -> dict[str, Any]:
    path = folder / "candidate.py"
    path.write_text(BLOCK.format(change=change, **(kept or KEPT)))
    return {"block": f"{path}:Block"}


def check(folder: Path, change: str) -> Report:
    return preflight(GPTConfig(**TINY | {"block_size": 40}, **design(folder, change)), thorough=False)


def by_status(report: Report, status: str) -> dict[str, str]:
    return {found.name: found.detail for found in report.checks if found.status == status}


def test_activations_keep_their_precision() -> None:
    step = TrainingStep().bfloat16()
    step.set(16_000_001)
    assert step().shape == () and step().dtype == torch.float32 and int(step()) == 16_000_001
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert (step() * torch.ones(2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("kept", [KEPT, IN_CONFIG], ids=["on the block", "in the config"])
def test_blocks_topology_copies_and_conversions_share_one(tmp_path: Path, kept: dict[str, str]) -> None:
    blocks = design(tmp_path, **kept)
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**TINY, **blocks, topology=blocks["block"].replace("Block", "Topology")))
    plain = GPT(GPTConfig(**TINY, **blocks))
    x = torch.randn(1, 4, 32)
    assert gpt.training_step == 0 and torch.equal(gpt.blocks[1](x), x)
    twin = copy.deepcopy(gpt).double()
    for model, step in ((gpt, 25), (twin, 100)):
        model.set_training_step(step)
    assert (gpt.training_step, twin.training_step, plain.training_step) == (25, 100, 0)
    block = gpt.blocks[1]
    branch = block.attn(block.ln_1(x)) + block.mlp(x)
    torch.testing.assert_close(block(x), x + branch / 2)
    torch.testing.assert_close(twin.blocks[1](x.double()).float(), x + branch)
    chain = gpt.blocks[1](gpt.blocks[0](x))
    torch.testing.assert_close(gpt.transformer["topology"](x), 26 * chain)
    assert gpt.state_dict().keys() == plain.state_dict().keys()
    assert not any("step" in name for name in gpt.state_dict())


def test_a_design_that_does_not_read_it_does_not_change() -> None:
    gpt = our_gpt()
    idx = torch.randint(0, 512, (2, 9))
    before = gpt(idx)[0]
    gpt.set_training_step(7)
    assert torch.equal(gpt(idx)[0], before) and not list(gpt.buffers())
    assert not any(isinstance(module, TrainingStep) for module in gpt.modules())


def test_warm_up_opens_the_layers_one_after_another() -> None:
    gpt = GPT(GPTConfig(**TINY | {"n_layer": 3}, block="residual_warmup", block_options={"steps": 4}))
    gpt.double()
    x = torch.randn(2, 6, 32, dtype=torch.double)
    shares = {0: (0, 0, 0), 2: (1 / 2, 1 / 4, 1 / 6), 4: (1, 1 / 2, 1 / 3), 9: (1, 1, 3 / 4), 12: (1, 1, 1)}
    for step, expected in shares.items():
        gpt.set_training_step(step)
        for block, a in zip(gpt.blocks, expected, strict=True):
            half = x + a * block.attn(block.ln_1(x))
            torch.testing.assert_close(block(x), half + a * block.mlp(block.ln_2(half)), atol=1e-6, rtol=1e-6)
    gpt.set_training_step(0)
    assert torch.equal(gpt.blocks[2](x), x)


def test_a_warmed_up_model_is_gpt2() -> None:
    torch.manual_seed(0)
    warm, plain = GPT(GPTConfig(**TINY, **VARIANTS["residual_warmup"].design)), GPT(GPTConfig(**TINY))
    plain.load_state_dict(warm.state_dict())
    idx = torch.randint(0, 64, (2, 16))
    assert not torch.equal(warm(idx)[0], plain(idx)[0])
    warm.set_training_step(200)
    assert torch.equal(warm(idx)[0], plain(idx)[0])


@pytest.mark.parametrize("name", ATTENTION_VARIANTS)
def test_an_exported_model_is_at_its_step(name: str, tmp_path: Path) -> None:
    gpt = our_gpt(**VARIANTS[name].design)
    gpt.set_training_step(120)
    idx = torch.randint(0, 512, (2, 20))
    expected = gpt(idx)[0].detach()
    folder = to_hf(gpt, tmp_path / name)
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    torch.testing.assert_close(theirs(input_ids=idx).logits, expected)
    theirs.save_pretrained(tmp_path / "again")
    for source in (folder, tmp_path / "again", theirs):
        ours = from_hf(source).eval()
        assert ours.training_step == 120
        torch.testing.assert_close(ours(idx)[0], expected)
    ours.set_training_step(0)
    assert torch.allclose(ours(idx)[0], expected, atol=1e-3) == (name != "residual_warmup")


def test_a_design_that_is_dead_at_first_passes_the_check(tmp_path: Path) -> None:
    report = check(tmp_path, "pass")
    assert report.passed and by_status(report, "warn") == {}, report.table()
    passed = by_status(report, "pass")
    assert "the other checks are made at step 10,000,000" in passed["causality.first_steps"]
    assert {"numerics.first_steps", "signal.gradient"} <= passed.keys()


def test_a_leak_at_the_beginning_of_a_run_is_found(tmp_path: Path) -> None:
    change = "x = x + torch.where(step < 100, 1.0, 0.0).type_as(x) * x.roll(-1, 1)"
    failed = by_status(check(tmp_path, change), "fail")
    assert failed.keys() == {"causality.first_steps"}
    assert "at training step 0" in failed["causality.first_steps"]


def test_a_step_that_makes_infinities_is_found(tmp_path: Path) -> None:
    failed = by_status(check(tmp_path, "x = x * (1 + 0 / step).type_as(x)"), "fail")
    assert "at training step 0: " in failed["numerics.first_steps"]


def test_a_norm_that_names_the_training_step_reads_the_models(tmp_path) -> None:
    path = tmp_path / "norm.py"
    path.write_text(
        "from torch import nn\nclass LayerNorm(nn.Module):\n"
        "    def __init__(self, ndim, bias, training_step):\n        super().__init__()\n"
        "        self.training_step = training_step\n"
        "    def forward(self, x):\n        return x * self.training_step()\n"
    )
    gpt = GPT(GPTConfig(**TINY, norm=f"{path}:LayerNorm"))
    gpt.set_training_step(3)
    for norm in (gpt.blocks[0].ln_1, gpt.transformer["ln_f"]):
        assert torch.equal(norm(torch.ones(2, 32)), torch.full((2, 32), 3.0))
