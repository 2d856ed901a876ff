"""Residual blocks against formulas written here and against transformers' Dinov2."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers.models.dinov2.modeling_dinov2 import Dinov2DropPath, Dinov2LayerScale

from model import GPT, BlockConfig, GPTConfig
from model.errors import UserError
from model.norms import LayerNorm
from model.residuals import RESIDUALS
from tests.model.wholeness import assert_every_parameter_learns_and_no_forward_leaks
from tests.tiny import TINIEST
from training.engine.build import parameter_groups

SCALED = ["rezero", "skipinit", "layerscale"]


def random_block(name: str, layer_idx: int = 0, **options):
    torch.manual_seed(layer_idx)
    shape = {**TINIEST, "dropout": 0.0, "bias": True, "qk_norm": "none", "layer_idx": layer_idx}
    block = RESIDUALS[name](BlockConfig(**shape, norm=LayerNorm), **options).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def norm(x, ln):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * ln.weight + ln.bias


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def qkv(x, attention):
    return [
        part.view(*x.shape[:2], TINIEST["n_head"], -1).transpose(1, 2)
        for part in linear(x, attention.c_attn).chunk(3, -1)
    ]


def attend(q, k, v, attention):
    future = torch.ones(q.shape[2], q.shape[2]).triu(1).bool()
    scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).masked_fill(future, -math.inf)
    return linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), attention.c_proj)


def mlp(x, layer):
    h = linear(x, layer.c_fc)
    h = h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return linear(h, layer.c_proj)


def sublayers(block, normed: bool):
    """A(N1 x) and M(N2 x) of a block's weights, or without the norms."""
    return (
        lambda x: attend(*qkv(norm(x, block.ln_1) if normed else x, block.attn), block.attn),
        lambda x: mlp(norm(x, block.ln_2) if normed else x, block.mlp),
    )


@pytest.mark.parametrize("name", ["bare", *SCALED])
def test_scaled_branches_equal_their_formula(name: str) -> None:
    block = random_block(name)
    x = torch.randn(2, 8, 16, dtype=torch.double)
    A, M = sublayers(block, normed=name in ("skipinit", "layerscale"))
    s_1, s_2 = (1, 1) if name == "bare" else (block.scale_1, block.scale_2)
    half = x + s_1 * A(x)
    torch.testing.assert_close(block(x), half + s_2 * M(half), atol=1e-10, rtol=1e-10)


def test_layerscale_equals_dinov2() -> None:
    block = random_block("layerscale")
    x = torch.randn(2, 8, 16, dtype=torch.double)
    scales = []
    for weight in (block.scale_1, block.scale_2):
        theirs = Dinov2LayerScale(SimpleNamespace(layerscale_value=1.0, hidden_size=16)).double()
        theirs.lambda1.data.copy_(weight)
        scales.append(theirs)
    A, M = sublayers(block, normed=True)
    half = x + scales[0](A(x))
    torch.testing.assert_close(block(x), half + scales[1](M(half)), atol=1e-10, rtol=1e-10)


def test_gated_equals_its_formula() -> None:
    block = random_block("gated")
    x = torch.randn(2, 8, 16, dtype=torch.double)
    expected = x
    for branch, gate in zip(sublayers(block, normed=True), (block.gate_1, block.gate_2), strict=True):
        t = 1 / (1 + torch.exp(-linear(expected, gate)))
        expected = (1 - t) * expected + t * branch(expected)
    torch.testing.assert_close(block(x), expected, atol=1e-10, rtol=1e-10)


def test_value_residual_equals_its_formula() -> None:
    first, second = random_block("value_residual", 0), random_block("value_residual", 1)
    x = torch.randn(2, 8, 16, dtype=torch.double)
    expected, first_values = x, None
    for block in (first, second):
        q, k, v = qkv(norm(expected, block.ln_1), block.attn)
        if first_values is None:
            first_values = v
        else:
            v = (1 - block.attn.mix_first) * v + block.attn.mix_first * first_values
        expected = expected + attend(q, k, v, block.attn)
        expected = expected + mlp(norm(expected, block.ln_2), block.mlp)
    state = {}
    torch.testing.assert_close(second(first(x, state), state), expected, atol=1e-10, rtol=1e-10)


def test_stochastic_depth_equals_dinov2_with_the_same_draws(monkeypatch) -> None:
    block = random_block("stochastic_depth", layer_idx=1, p=0.4)
    branch = torch.randn(64, 8, 16, dtype=torch.double)
    ours = block._drop(branch)
    kept = ours.flatten(1).abs().sum(1) > 0
    assert 0 < kept.sum() < 64
    monkeypatch.setattr(torch, "rand", lambda shape, **kw: torch.where(kept, 0.99, 0.01).view(shape).to(**kw))
    torch.testing.assert_close(ours, Dinov2DropPath(0.4)(branch), atol=1e-6, rtol=1e-6)
    assert block.eval()._drop(branch) is branch


def test_stochastic_depth_drops_more_with_depth_and_keeps_the_mean() -> None:
    for layer_idx, p in ((0, 0.2), (1, 0.4)):
        block = random_block("stochastic_depth", layer_idx, p=0.4)
        drawn = block._drop(torch.ones(20_000, 2, 2))
        assert torch.equal(drawn, drawn[:, :1, :1].expand_as(drawn))  # a sequence is dropped as a whole
        assert (drawn[:, 0, 0] == 0).float().mean().item() == pytest.approx(p, abs=0.02)
        assert drawn.mean().item() == pytest.approx(1, abs=0.03)


def test_stochastic_depth_follows_the_seed_and_is_pre_norm_in_evaluation() -> None:
    block = random_block("stochastic_depth", layer_idx=1, p=0.5)
    x = torch.randn(8, 8, 16, dtype=torch.double)
    torch.manual_seed(3)
    first = block(x)
    assert not torch.equal(block(x), first)
    torch.manual_seed(3)
    assert torch.equal(block(x), first)
    A, M = sublayers(block, normed=True)
    half = x + A(x)
    torch.testing.assert_close(block.eval()(x), half + M(half), atol=1e-10, rtol=1e-10)
    with pytest.raises(UserError, match="must be at least 0 and below 1"):
        random_block("stochastic_depth", p=1.0)


def gpt_of(name: str, **options) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**TINIEST, block=name, block_options=options))


@pytest.mark.parametrize("name", ["rezero", "skipinit"])
def test_a_zero_scale_is_the_identity_at_init(name: str) -> None:
    gpt = gpt_of(name)
    x = torch.randn(2, 8, 16)
    assert torch.equal(gpt.transformer["topology"](x), x)


def test_inits_survive_gpts() -> None:
    for name, init in (("skipinit", 0.2), ("layerscale", 0.3)):
        for block in gpt_of(name, init=init).blocks:
            assert (block.scale_1 == init).all() and (block.scale_2 == init).all()
    assert all((block.scale_1 == 0.1).all() for block in gpt_of("layerscale").blocks)
    assert all(
        (block.gate_1.bias == -2).all() and (block.gate_2.bias == -2).all()
        for block in gpt_of("gated").blocks
    )
    first, second = gpt_of("value_residual").blocks
    assert first.attn.mix_first is None and second.attn.mix_first.item() == 0.5


def test_scalars_learn_faster_and_are_not_decayed() -> None:
    for name in [*SCALED, "value_residual"]:
        gpt = gpt_of(name)
        fast = [group for group in parameter_groups(gpt, 0.1) if group["lr_mult"] == 10.0]
        assert len(fast) == 1 and fast[0]["weight_decay"] == 0.0
        names = {id(p): n for n, p in gpt.named_parameters()}
        assert {names[id(p)].rpartition(".")[2] for p in fast[0]["params"]} <= {
            "scale_1",
            "scale_2",
            "mix_first",
        }


@pytest.mark.parametrize("name", list(RESIDUALS))
def test_every_parameter_has_a_gradient_and_no_forward_leaks_into_the_next(name: str) -> None:
    gpt = gpt_of(name)
    assert_every_parameter_learns_and_no_forward_leaks(gpt)


@pytest.mark.parametrize("name", ["rezero", "gated", "stochastic_depth", "value_residual"])
def test_compiled_as_one_graph_equals_eager(name: str) -> None:
    torch.compiler.reset()
    gpt = gpt_of(name)
    idx = torch.randint(0, 32, (4, 8))
    compiled = torch.compile(gpt, fullgraph=True, backend="aot_eager")
    results = []
    for model in (gpt, compiled):
        torch.manual_seed(5)
        results.append(model(idx)[0])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_value_residual_keeps_documents_apart() -> None:
    gpt = gpt_of("value_residual").eval()
    idx = torch.randint(0, 32, (1, 8))
    documents = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    changed = idx.clone()
    changed[0, :5] = (changed[0, :5] + 1) % 32
    before, after = (gpt(ids, documents=documents)[0][0, 5:] for ids in (idx, changed))
    assert torch.equal(before, after)
