"""`model.mlp` against Hugging Face's classes and against formulas, in every block that has our MLP."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from model import GPT, GPTConfig, from_hf, to_hf
from model.designs import REGISTERED
from model.errors import UserError
from model.layers import MLP, swiglu_width
from tests.model.random_models import our_gpt, with_random_weights
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from tests.tiny import THREE_LAYERS, TINIEST

OWN_MLP = """
import torch.nn as nn
class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn = CausalSelfAttention(config)
        self.ours = {ours}
        self.mlp = self.ours and MLP(config) or nn.Linear(config.n_embd, config.n_embd)
    def forward(self, x):
        return x + self.mlp(x + self.attn(x))
"""


def mlp_of(kind: str, C: int = 16, bias: bool = True) -> MLP:
    torch.manual_seed(0)
    return with_random_weights(MLP(GPTConfig(n_embd=C, n_head=2, mlp=kind, bias=bias))).double()


def test_swiglu_is_llamas() -> None:
    ours = mlp_of("swiglu", bias=False)
    theirs = LlamaMLP(
        LlamaConfig(hidden_size=16, num_attention_heads=2, intermediate_size=ours.width)
    ).double()
    theirs.gate_proj.weight, theirs.up_proj.weight = ours.gate.weight, ours.c_fc.weight
    theirs.down_proj.weight = ours.c_proj.weight
    x = torch.randn(2, 3, 16).double()
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("gelu", lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
        ("relu_squared", lambda x: torch.where(x > 0, x * x, 0.0)),
    ],
)
def test_the_activations_follow_their_formulas(kind: str, formula) -> None:
    mlp, x = mlp_of(kind), torch.randn(2, 3, 16).double()
    hidden = formula(x @ mlp.c_fc.weight.T + mlp.c_fc.bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp.c_proj.weight.T + mlp.c_proj.bias)


@pytest.mark.parametrize("C", [768, 1024, 1280, 1600, 128, 32, 8])
def test_swiglu_has_as_many_parameters_as_gelu(C: int) -> None:
    width = swiglu_width(C)
    assert width % (64 if C >= 192 else 8) == 0
    assert 3 * C * width == pytest.approx(8 * C * C, rel=0.01 if C >= 768 else 0.13)


def test_the_exact_gelu_goes_to_hugging_face_and_comes_back(tmp_path: Path) -> None:
    ours, idx = our_gpt(mlp="gelu"), torch.randint(0, 512, (1, 20))
    theirs = GPT2LMHeadModel.from_pretrained(to_hf(ours, tmp_path)).eval()
    assert theirs.config.activation_function == "gelu"
    torch.testing.assert_close(theirs(idx).logits, ours(idx)[0], atol=1e-5, rtol=1e-5)
    names = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 8, "vocab_size": 32}
    assert from_hf(GPT2LMHeadModel(GPT2Config(**names, activation_function="gelu"))).config.mlp == "gelu"
    assert from_hf(tmp_path).config.mlp == "gelu"


def test_another_width_goes_to_hugging_face_and_comes_back(tmp_path: Path) -> None:
    ours, idx = our_gpt(n_inner=88), torch.randint(0, 512, (1, 20))
    assert ours.transformer.h[0].mlp.c_fc.weight.shape[0] == 88
    theirs = GPT2LMHeadModel.from_pretrained(to_hf(ours, tmp_path)).eval()
    assert theirs.config.n_inner == 88
    torch.testing.assert_close(theirs(idx).logits, ours(idx)[0], atol=1e-5, rtol=1e-5)
    assert from_hf(tmp_path).config == ours.config
    usual = from_hf(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_inner=64, vocab_size=32)))
    assert usual.config.n_inner is None


@pytest.mark.parametrize("block", REGISTERED["block"])
def test_every_block_takes_a_gated_mlp(block: str) -> None:
    torch.manual_seed(0)
    topology = "sphere" if block == "ngpt" else "chain"
    gpt = GPT(GPTConfig(**TINIEST, block=block, topology=topology, mlp="swiglu", bias=False))
    width = swiglu_width(TINIEST["n_embd"])
    assert [m.c_proj.in_features for m in gpt.modules() if isinstance(m, MLP)] == [width, width]
    assert_every_parameter_learns_and_no_forward_leaks(gpt)


def test_a_gates_weights_begin_as_those_beside_it() -> None:
    for block, gain in (("subln", math.sqrt(math.log(4))), ("deepnorm", 16**-0.25), ("pre", None)):
        gpt = GPT(GPTConfig(**TINIEST | {"n_embd": 96}, block=block, mlp="swiglu"))
        xavier = 0.02 if gain is None else gain * math.sqrt(2 / (96 + swiglu_width(96)))
        for weight in (gpt.blocks[0].mlp.gate.weight, gpt.blocks[0].mlp.c_fc.weight):
            assert weight.std().item() == pytest.approx(xavier, rel=0.03)


def test_ngpt_has_its_papers_swiglu() -> None:
    torch.manual_seed(0)
    config = GPTConfig(**TINIEST, block="ngpt", topology="sphere", mlp="swiglu")
    mlp = with_random_weights(GPT(config)).blocks[0].mlp.double()
    W_u, W_v = (w / w.norm(dim=1, keepdim=True) for w in (mlp.c_fc.weight, mlp.gate.weight))
    W_o = mlp.c_proj.weight / mlp.c_proj.weight.norm(dim=0, keepdim=True)
    x = torch.randn(2, 16).double()
    u, v = (x @ W_u.T) * mlp.hidden_scale, (x @ W_v.T) * mlp.gate_scale * 16**0.5
    torch.testing.assert_close(mlp(x), (u * v / (1 + (-v).exp())) @ W_o.T)


def test_a_files_block_takes_our_mlp_and_refuses_with_its_own(tmp_path: Path) -> None:
    file = tmp_path / "candidate.py"
    file.write_text(OWN_MLP.format(ours=True))
    gpt = GPT(GPTConfig(**TINIEST, block=f"{file}:Block", mlp="swiglu"))
    assert isinstance(gpt.blocks[0].mlp.activation, nn.SiLU)
    file.write_text(OWN_MLP.format(ours=False))
    GPT(GPTConfig(**TINIEST, block=f"{file}:Block"))
    with pytest.raises(UserError, match=r"model\.mlp is 'swiglu', but block 0 .* has an MLP of its own"):
        GPT(GPTConfig(**TINIEST, block=f"{file}:Block", mlp="swiglu"))


def test_an_exported_swiglu_gives_the_same_logits(tmp_path: Path) -> None:
    ours, idx = our_gpt(mlp="swiglu"), torch.randint(0, THREE_LAYERS["vocab_size"], (1, 20))
    assert torch.equal(from_hf(to_hf(ours, tmp_path)).eval()(idx)[0], ours(idx)[0])
