"""Norms and blocks against formulas written here, and the ways to name a design."""

import re
import sys

import pytest
import torch

from model import GPT, VARIANTS, BlockConfig, GPTConfig, variant_name
from model.blocks import BLOCKS
from model.designs import find_designs
from model.errors import UserError
from model.norms import NORMS, LayerNorm, RMSNorm
from tests.tiny import TINY

BLOCK = {**TINY, "dropout": 0.0, "bias": True, "qk_norm": "none", "layer_idx": 0}


def layernorm_fp64(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    return normed if bias is None else normed + bias.double()


def rmsnorm_fp64(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_norms_equal_their_fp64_formulas(scale: float) -> None:
    x = torch.randn(4, 7, 32) * scale + scale
    layernorm, without_bias = LayerNorm(32, bias=True), LayerNorm(32, bias=False)
    rmsnorm = RMSNorm(32, bias=True)
    for parameter in (*layernorm.parameters(), *rmsnorm.parameters(), *without_bias.parameters()):
        torch.nn.init.normal_(parameter)
    for ours, reference in (
        (layernorm(x), layernorm_fp64(x, layernorm.weight, layernorm.bias)),
        (without_bias(x), layernorm_fp64(x, without_bias.weight, None)),
        (rmsnorm(x), rmsnorm_fp64(x, rmsnorm.weight)),
    ):
        torch.testing.assert_close(ours.double(), reference, atol=1e-5, rtol=1e-5)


def test_norms_in_bf16_have_fp32_statistics_and_a_bf16_result() -> None:
    x = (torch.randn(64, 1024) + 30).bfloat16()
    for norm, formula in ((LayerNorm, lambda x, w: layernorm_fp64(x, w, None)), (RMSNorm, rmsnorm_fp64)):
        module = norm(1024, bias=False).bfloat16()
        result = module(x)
        assert result.dtype == torch.bfloat16
        expected = formula(x, module.weight)
        error = (result.double() - expected).abs() / expected.abs().clamp_min(1e-2)
        assert error.max() <= 2**-8  # one rounding to bf16, no more


@pytest.mark.parametrize("name", ["pre", "post", "parallel"])
def test_blocks_equal_their_formulas(name: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name](BlockConfig(**BLOCK, norm=LayerNorm)).double()
    x = torch.randn(2, 16, 32, dtype=torch.double)
    norm1, norm2, attention, mlp = block.ln_1, block.ln_2, block.attn, block.mlp
    if name == "pre":
        half = x + attention(norm1(x))
        expected = half + mlp(norm2(half))
    elif name == "post":
        half = norm1(x + attention(x))
        expected = norm2(half + mlp(half))
    else:
        expected = x + attention(norm1(x)) + mlp(norm2(x))
    assert torch.equal(block(x), expected)


def test_every_variant_trains_downhill() -> None:
    for name, variant in VARIANTS.items():
        torch.manual_seed(0)
        gpt = GPT(GPTConfig(**TINY, **variant.design))
        optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2)
        idx = torch.randint(0, 64, (4, 17))
        losses = []
        for _ in range(20):
            _, loss = gpt(idx[:, :-1], idx[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0], name


def test_every_variants_evidence_has_a_month() -> None:
    undated = [n for n, v in VARIANTS.items() if not re.match(r"20\d\d-(0[1-9]|1[0-2]): \S", v.evidence)]
    assert not undated


def test_a_variants_name_comes_back_from_its_parts() -> None:
    for name, variant in VARIANTS.items():
        assert variant_name(GPTConfig(**variant.design)) == name
    mine = GPTConfig(norm="rmsnorm", norm_options={"eps": 1e-6}, block="a/my.py:Gated", qk_norm="head")
    assert variant_name(mine) == "rmsnorm(eps=1e-06)+my:Gated+qk_norm=head"
    assert variant_name(GPTConfig(norm="a/my.py:LayerNorm", block="a/my.py:Block")) == "my"
    assert variant_name(GPTConfig(block="a/my.py:Block")) == "layernorm+my"


PLUGIN = """
import torch
import torch.nn as nn

class HalfNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.ndim = ndim

    def forward(self, x):
        return x / 2

class Block(nn.Module):  # nanoGPT's, unchanged
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.layer_idx = config.layer_idx

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x

class Gated(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def init_weights(self):
        nn.init.zeros_(self.proj.weight)

    def forward(self, x):
        return x + self.proj(x)
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    return path


def test_norm_and_block_from_a_file(plugin) -> None:
    gpt = GPT(GPTConfig(**TINY, norm=f"{plugin}:HalfNorm", block=f"{plugin}:Block"))
    blocks = list(gpt.transformer.h)
    assert [block.layer_idx for block in blocks] == [0, 1]
    assert type(blocks[0].ln_1).__name__ == "HalfNorm" and type(gpt.transformer.ln_f).__name__ == "HalfNorm"


def test_a_nanogpt_block_from_a_file_equals_ours(plugin) -> None:
    torch.manual_seed(1)
    ours = GPT(GPTConfig(**TINY, norm="rmsnorm"))
    torch.manual_seed(1)
    theirs = GPT(GPTConfig(**TINY, norm="rmsnorm", block=f"{plugin}:Block"))
    idx = torch.randint(0, 64, (2, 16))
    assert torch.equal(ours(idx)[0], theirs(idx)[0])


def test_one_block_file_serves_two_norms(plugin) -> None:
    for norm in ("rmsnorm", "layernorm"):
        gpt = GPT(GPTConfig(**TINY, norm=norm, block=f"{plugin}:Block"))
        assert type(next(iter(gpt.transformer.h)).ln_1) is NORMS[norm]


def test_a_design_by_module_and_class(plugin, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(plugin.parent))
    monkeypatch.delitem(sys.modules, "plugin", raising=False)
    assert find_designs(GPTConfig(norm="plugin:HalfNorm")).norm.__name__ == "HalfNorm"


def test_a_modules_own_initialisation_wins(plugin) -> None:
    gpt = GPT(GPTConfig(**TINY, block=f"{plugin}:Gated"))
    assert all(block.proj.weight.abs().max() == 0 for block in gpt.transformer.h)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("rmsnrom", r"model.norm is 'rmsnrom'.*did you mean 'rmsnorm'\?.*known are layernorm, rmsnorm"),
        ("no/such/file.py:Norm", "there is no file"),
        ("no_such_module:Norm", "importing no_such_module failed"),
        ("torch.nn:LayerNrom", "torch.nn has no nn.Module named 'LayerNrom' .did you mean 'LayerNorm'"),
        ("torch.nn:functional", "has no nn.Module named 'functional'"),
    ],
)
def test_a_norm_that_does_not_exist_gets_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        find_designs(GPTConfig(norm=name))
    assert "\n" not in str(caught.value)
