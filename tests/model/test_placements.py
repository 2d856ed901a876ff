"""The catalogue's placements against formulas written here in fp64, and what they begin as."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from model import GPT, BlockConfig, GPTConfig
from model.blocks import ResidualBlock
from model.errors import UserError
from model.norms import LayerNorm
from model.placements import PLACEMENTS

B, T, C, H, L = 2, 10, 32, 4, 4
SHAPE = {"n_layer": L, "n_head": H, "n_embd": C, "block_size": T, "vocab_size": 64}
Inner = Callable[[torch.Tensor], torch.Tensor]
CAUSAL = torch.full((T, T), -math.inf).triu(1)[None, None]


def make(name: str, layer_idx: int, **options: object) -> nn.Module:
    """A block whose parameters are all drawn at random."""
    given = {"dropout": 0.0, "bias": True, "qk_norm": "none", "norm": LayerNorm, "layer_idx": layer_idx}
    block = PLACEMENTS[name](BlockConfig(**SHAPE, **given), **options)
    for parameter in block.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return block


class Formula:
    """The sublayers in plain fp64 tensor code, over a block's weights."""

    def __init__(self, block: nn.Module) -> None:
        self.w = {name: p.detach().double() for name, p in block.named_parameters()}

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """LayerNorm."""
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oi,bti->bto", self.w[f"{name}.weight"], x) + self.w[f"{name}.bias"]

    def attention(self, x: torch.Tensor, norm_qkv: bool = False, inner: Inner | None = None) -> torch.Tensor:
        q, k, v = self.linear("attn.c_attn", x).reshape(B, T, 3, H, C // H).unbind(2)
        if norm_qkv:
            q, k, v = (self.norm(f"attn.ln_{n}", y) for n, y in (("q", q), ("k", k), ("v", v)))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(C // H) + CAUSAL
        y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
        y = y.reshape(B, T, C) if inner is None else inner(y)
        return self.linear("attn.c_proj", y)

    def mlp(self, x: torch.Tensor, inner: bool = False) -> torch.Tensor:
        h = self.linear("mlp.c_fc", x)
        h = h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return self.linear("mlp.c_proj", self.norm("mlp.ln", h) if inner else h)


def sandwich(f: Formula, x: torch.Tensor, layer: int) -> torch.Tensor:
    x = x + f.norm("ln_1_out", f.attention(f.norm("ln_1", x)))
    return x + f.norm("ln_2_out", f.mlp(f.norm("ln_2", x)))


def output_norm(f: Formula, x: torch.Tensor, layer: int) -> torch.Tensor:
    x = x + f.norm("ln_1", f.attention(x))
    return x + f.norm("ln_2", f.mlp(x))


def subln(f: Formula, x: torch.Tensor, layer: int) -> torch.Tensor:
    x = x + f.attention(f.norm("ln_1", x), inner=lambda y: f.norm("attn.ln", y.reshape(B, T, C)))
    return x + f.mlp(f.norm("ln_2", x), inner=True)


def normformer(f: Formula, x: torch.Tensor, layer: int) -> torch.Tensor:
    scale = f.w["attn.head_scale"]
    attended = f.attention(
        f.norm("ln_1", x), inner=lambda y: torch.einsum("bthd,h->bthd", y, scale).reshape(B, T, C)
    )
    x = x + f.norm("ln_1_out", attended)
    return x + f.mlp(f.norm("ln_2", x), inner=True)


def deepnorm(f: Formula, x: torch.Tensor, layer: int) -> torch.Tensor:
    alpha = math.sqrt(math.sqrt(2 * L))
    x = f.norm("ln_1", alpha * x + f.attention(x))
    return f.norm("ln_2", alpha * x + f.mlp(x))


def b2t(f: Formula, x: torch.Tensor, layer: int) -> torch.Tensor:
    y = f.norm("ln_1", x + f.attention(x))
    return f.norm("ln_2", x + y + f.mlp(y))


def mix_ln(f: Formula, x: torch.Tensor, layer: int) -> torch.Tensor:
    if layer == 0:  # a quarter of 4 blocks
        y = f.norm("ln_1", x + f.attention(x))
        return f.norm("ln_2", y + f.mlp(y))
    x = x + f.attention(f.norm("ln_1", x))
    return x + f.mlp(f.norm("ln_2", x))


def lns(f: Formula, x: torch.Tensor, layer: int) -> torch.Tensor:
    x = x + f.attention(f.norm("ln_1", x) / math.sqrt(1 + layer))
    return x + f.mlp(f.norm("ln_2", x) / math.sqrt(1 + layer))


def hybridnorm(f: Formula, x: torch.Tensor, layer: int) -> torch.Tensor:
    if layer == 0:
        y = x + f.attention(f.norm("ln_1", x), norm_qkv=True)
        return y + f.mlp(f.norm("ln_2", y))
    y = f.norm("ln_2", x + f.attention(x, norm_qkv=True))
    return y + f.mlp(y)


def keel(f: Formula, x: torch.Tensor, layer: int) -> torch.Tensor:
    attended = f.attention(f.norm("ln_1", x))
    x = x + attended if layer == 0 else f.norm("ln_1_out", 2 * L * x + attended)
    return f.norm("ln_2_out", 2 * L * x + f.mlp(f.norm("ln_2", x)))


FORMULAS = {
    "sandwich": sandwich,
    "olmo2": output_norm,
    "subln": subln,
    "normformer": normformer,
    "deepnorm": deepnorm,
    "b2t": b2t,
    "mix_ln": mix_ln,
    "lns": lns,
    "hybridnorm": hybridnorm,
    "keel": keel,
}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_placement_equals_its_fp64_formula(name: str, layer: int) -> None:
    torch.manual_seed(0)
    block = make(name, layer)
    x = torch.randn(B, T, C)
    expected = FORMULAS[name](Formula(block), x.double(), layer)
    with torch.no_grad():
        torch.testing.assert_close(block(x).double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(block.double()(x.double()), expected, atol=1e-10, rtol=1e-10)


def test_hybridnorms_first_block_may_be_as_the_others() -> None:
    block = make("hybridnorm", 0, first_block_pre=False)
    x = torch.randn(B, T, C).double()
    torch.testing.assert_close(block.double()(x), hybridnorm(Formula(block), x, layer=1))


@pytest.mark.parametrize(("share", "post"), [(0.0, 0), (0.49, 1), (0.5, 2), (1.0, 4)])
def test_mix_lns_first_blocks_are_post_norm(share: float, post: int) -> None:
    x = torch.randn(B, T, C) + 3
    for layer in range(L):
        block = make("mix_ln", layer, post_share=share)
        nn.init.zeros_(block.ln_2.bias)
        block.ln_2.weight.data.fill_(1.0)
        normed = block(x).mean(-1).abs().max() < 1e-5
        assert normed == (layer < post)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    for layer in (0, 1):
        block = make(name, layer)
        block(torch.randn(B, T, C)).pow(3).sum().backward()
        for parameter, value in block.named_parameters():
            assert value.grad is not None and value.grad.abs().sum() > 0, (layer, parameter)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_documents_stay_apart(name: str) -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**SHAPE, block=name)).eval()
    documents = torch.tensor([[0] * 4 + [1] * 6])
    idx = torch.randint(0, 64, (1, T))
    other = idx.clone()
    other[0, :4] = (idx[0, :4] + 1) % 64
    with torch.no_grad():
        one, two = gpt.hidden(idx, documents), gpt.hidden(other, documents)
    torch.testing.assert_close(one[:, 4:], two[:, 4:], atol=1e-6, rtol=0)
    assert not torch.allclose(one[:, :4], two[:, :4])


def test_topologies_can_take_the_branches_of_residual_placements() -> None:
    residual = {name for name, b in PLACEMENTS.items() if b.forward is ResidualBlock.forward}
    assert residual == {"sandwich", "olmo2", "subln", "normformer", "lns"}


WIDE = {**SHAPE, "n_embd": 64}


def stds(block: nn.Module) -> dict[str, float]:
    q, k, v = block.attn.c_attn.weight.chunk(3)
    weights = {"q": q, "k": k, "v": v, "out": block.attn.c_proj.weight}
    weights |= {"fc1": block.mlp.c_fc.weight, "fc2": block.mlp.c_proj.weight}
    return {name: weight.std().item() for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("name", "gain"), [("deepnorm", (8 * L) ** -0.25), ("subln", math.sqrt(math.log(2 * L)))]
)
def test_xavier_gains_survive_the_models_initialisation(name: str, gain: float) -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**WIDE, block=name))
    square, wide = math.sqrt(2 / (64 + 64)), math.sqrt(2 / (64 + 256))
    expected = {"q": square, "k": square, "v": gain * square, "out": gain * square}
    expected |= {"fc1": gain * wide, "fc2": gain * wide}
    for block in gpt.blocks:
        assert stds(block) == pytest.approx(expected, rel=0.05)
        assert not block.attn.c_attn.bias.any()


@pytest.mark.parametrize(("plain", "std"), [(True, 0.02), (False, 0.02 / math.sqrt(2 * L))])
def test_lns_projections_begin_plain(plain: bool, std: float) -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**WIDE, block="lns", block_options={"plain_init": plain}))
    for block in gpt.blocks:
        expected = dict.fromkeys(("q", "k", "v", "fc1"), 0.02) | {"out": std, "fc2": std}
        assert stds(block) == pytest.approx(expected, rel=0.05)


def test_normformers_head_scales_and_inner_norms_begin_at_one() -> None:
    gpt = GPT(GPTConfig(**SHAPE, block="normformer"))
    for block in gpt.blocks:
        for weight in (block.attn.head_scale, block.ln_1_out.weight, block.mlp.ln.weight):
            assert torch.equal(weight, torch.ones_like(weight))


@pytest.mark.parametrize(
    ("norm", "options"),
    [("layernorm", {}), ("rmsnorm", {}), ("rmsnorm", {"gain": "one_plus"}), ("scalenorm", {})],
)
def test_sandwichs_output_gain_scales_its_branches_at_the_beginning(
    norm: str, options: dict[str, object]
) -> None:
    x = torch.randn(B, T, C)
    branches = []
    for gain in (1.0, 0.1):
        torch.manual_seed(0)
        block_options = {"output_gain": gain}
        designs = {"norm": norm, "norm_options": options, "block": "sandwich", "block_options": block_options}
        block = GPT(GPTConfig(**SHAPE, **designs)).blocks[1]
        branches.append((block.attention_branch(x), block.mlp_branch(x)))
    for whole, tenth in zip(*branches, strict=True):
        torch.testing.assert_close(0.1 * whole, tenth)


@pytest.mark.parametrize(
    ("design", "sentence"),
    [
        (
            {"block": "sandwich", "block_options": {"output_gain": 0.1}, "norm_options": {"affine": False}},
            "output_gain is 0.1, but LayerNorm has no gain that could hold it",
        ),
        (
            {"block": "mix_ln", "block_options": {"post_share": 1.5}},
            "post_share is 1.5: it must be",
        ),
        ({"block": "hybridnorm", "qk_norm": "head"}, "model.qk_norm is 'head', but this block norms queries"),
        (
            {"block": "lns", "block_options": {"plain": 1}},
            "block_options.plain is no option of ScaledNorm",
        ),
    ],
)
def test_impossible_options_get_one_sentence(design: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        GPT(GPTConfig(**SHAPE, **design))
    assert "\n" not in str(caught.value)
