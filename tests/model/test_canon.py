"""Canon layers against torch's convolution, and where they stand."""

from typing import Any

import pytest
import torch
from torch import nn

from model import GPT, BlockConfig, GPTConfig
from model.canon import CanonBlock, CanonLayer, CanonMLP
from model.errors import UserError
from model.norms import LayerNorm
from tests.model.documents import DOCUMENTS, gpt_of, tokens
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from tests.tiny import TINY

SHAPE: dict[str, Any] = {**TINY, "dropout": 0.0, "bias": True, "qk_norm": "none", "layer_idx": 0}


def conv(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """x + torch's depthwise convolution, padded on both sides, without what looks ahead."""
    channels, _, kernel = layer.weight.shape
    theirs = nn.Conv1d(channels, channels, kernel, padding=kernel - 1, groups=channels, bias=False)
    theirs.weight = layer.weight
    return x + theirs(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)


def block_of(**options: Any) -> CanonBlock:
    torch.manual_seed(0)
    block = CanonBlock(BlockConfig(**SHAPE, norm=LayerNorm), **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


@pytest.mark.parametrize(("kernel", "length"), [(4, 9), (4, 2), (1, 5), (3, 3)])
def test_a_canon_layer_equals_torchs_convolution(kernel: int, length: int) -> None:
    layer = CanonLayer(6, kernel).double()
    x = torch.randn(2, length, 6, dtype=torch.double)
    torch.testing.assert_close(layer(x), conv(x, layer), atol=1e-12, rtol=1e-12)


def test_its_weights_start_as_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = CanonLayer(4096, 4).weight, nn.Conv1d(4096, 4096, 4, groups=4096).weight
    assert ours.shape == theirs.shape
    for of in (torch.min, torch.max, torch.std):
        torch.testing.assert_close(of(ours), of(theirs), atol=0.01, rtol=0.01)


def test_the_block_equals_its_formula() -> None:
    block = block_of()
    x = torch.randn(2, 8, 32, dtype=torch.double)
    qkv = conv(block.attn.c_attn(conv(block.ln_1(x), block.canon_a)), block.attn.canon)
    q, k, v = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    scores = (q @ k.transpose(2, 3) / 16**0.5).masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)
    half = x + block.attn.c_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    hidden = conv(block.mlp.c_fc(conv(block.ln_2(half), block.canon_c)), block.mlp.canon)
    expected = half + block.mlp.c_proj(block.mlp.activation(hidden))
    torch.testing.assert_close(block(x), expected, atol=1e-10, rtol=1e-10)


def test_a_gate_is_convolved_beside_what_it_multiplies() -> None:
    torch.manual_seed(0)
    mlp = CanonMLP(BlockConfig(**SHAPE, norm=LayerNorm, mlp="swiglu"), 4).double()
    assert mlp.gate is not None
    x = torch.randn(2, 8, 32, dtype=torch.double)
    hidden, gate = conv(torch.cat([mlp.c_fc(x), mlp.gate(x)], -1), mlp.canon).chunk(2, -1)
    torch.testing.assert_close(mlp(x), mlp.c_proj(gate * gate.sigmoid() * hidden), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("positions", ["A", "B", "C", "D", "CA", "ABCD"])
def test_each_position_is_causal_and_reads_the_tokens_before(positions: str) -> None:
    block = block_of(positions=positions)
    assert sum(isinstance(module, CanonLayer) for module in block.modules()) == len(positions)
    nn.init.zeros_(block.attn.c_proj.weight)  # attention reads nothing, the convolutions stay
    x = torch.randn(1, 12, 32, dtype=torch.double, requires_grad=True)
    branches = block.attn.project(block.canon_a(block.ln_1(x))), block.mlp_branch(x)
    (gradient,) = torch.autograd.grad(sum(y[0, 6].sum() for y in branches), x)
    reached = gradient[0].abs().amax(-1) > 0
    per_branch = max(sum(p in positions for p in pair) for pair in ("AB", "CD"))
    assert reached.tolist() == [6 - 3 * per_branch <= i <= 6 for i in range(12)]


def test_a_model_of_them_is_whole() -> None:
    assert_every_parameter_learns_and_no_forward_leaks(GPT(GPTConfig(**TINY, block="canon")))


def test_a_document_mask_is_refused_in_one_sentence() -> None:
    gpt, idx = gpt_of(block="canon"), tokens()
    sentence = (
        r"^data\.document_mask is true, but block 0 of model\.block 'canon' mixes tokens in CanonLayer too, "
        "which does not keep documents apart$"
    )
    with pytest.raises(UserError, match=sentence):
        gpt.check_document_mask()
    with pytest.raises(UserError, match=sentence):
        gpt(idx, documents=DOCUMENTS)
    assert gpt(idx)[0].isfinite().all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"positions": "ABE"}, "positions is 'ABE': it must be some of A, B, C, D"),
        ({"positions": "AA"}, "positions is 'AA': it must be some of A, B, C, D"),
        ({"positions": ""}, "positions is '': it must be some of A, B, C, D"),
        ({"kernel": 0}, "kernel is 0: it must be at least 1"),
    ],
)
def test_wrong_options_get_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        GPT(GPTConfig(**TINY, block="canon", block_options=options))
