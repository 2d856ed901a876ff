"""The catalogue's norms against public implementations, and against formulas written here in fp64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm
from x_transformers import x_transformers

from model import GPT, GPTConfig
from model.catalogue.norms import NORM_VARIANTS
from model.designs import find_designs
from model.errors import UserError
from model.norms import NORMS
from tests.tiny import TINY

D = 48
Weights = dict[str, torch.Tensor]


def make(name: str, bias: bool = True, **options: object) -> nn.Module:
    """A norm whose parameters are all drawn at random."""
    norm = NORMS[name](D, bias=bias, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=0.5)
    return norm


def centred_fp64(x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


FORMULAS: dict[str, Callable[[torch.Tensor, Weights], torch.Tensor]] = {
    "layernorm": lambda x, w: w["weight"] * centred_fp64(x) + w.get("bias", 0),
    "rmsnorm": lambda x, w: w["weight"] * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt(),
    # 6.25 % of 48 features are 3.
    "prmsnorm": lambda x, w: (
        w["weight"] * x / ((x[..., 0] ** 2 + x[..., 1] ** 2 + x[..., 2] ** 2) / 3 + 1e-5).sqrt()[..., None]
    ),
    "crmsnorm": lambda x, w: (
        w["weight"] * centred_fp64(torch.cat([x, -x.sum(-1, keepdim=True)], -1))[..., : x.shape[-1]]
    ),
    "scalenorm": lambda x, w: w["weight"] * x / x.pow(2).sum(-1, keepdim=True).sqrt(),
    "dyt": lambda x, w: w["weight"] * torch.tanh(w["alpha"] * x) + w.get("bias", 0),
    "derf": lambda x, w: w["weight"] * torch.erf(w["alpha"] * x + w["shift"]) + w.get("bias", 0),
}


def weights_of(norm: nn.Module) -> Weights:
    return {name: parameter.detach().double() for name, parameter in norm.named_parameters()}


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("name", NORMS)
def test_every_norm_equals_its_fp64_formula(name: str, scale: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 7, D) * scale + scale / 3
    for bias in (True, False):
        norm = make(name, bias)
        expected = FORMULAS[name](x.double(), weights_of(norm))
        torch.testing.assert_close(norm(x).double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(norm.double()(x.double()), expected, atol=1e-12, rtol=1e-12)


def torch_layernorm(norm: nn.Module) -> nn.Module:
    return with_weights(nn.LayerNorm(D, eps=1e-5), weight=norm.weight, bias=norm.bias)


def x_transformers_norm(name: str) -> Callable[[nn.Module], nn.Module]:
    def build(norm: nn.Module) -> nn.Module:
        oracle = getattr(x_transformers, name)(D)
        if name == "ScaleNorm":
            return with_weights(oracle, g=norm.weight / math.sqrt(D))
        if name == "DynamicTanh":
            return with_weights(oracle, pre_tanh_scale=norm.alpha[0], gamma=norm.weight, beta=norm.bias)
        if name == "Derf":
            alpha, shift = norm.alpha[0], norm.shift[0]
            return with_weights(oracle, alpha=alpha, s=shift, gamma=norm.weight, beta=norm.bias)
        return oracle

    return build


def with_weights(oracle: nn.Module, **weights: torch.Tensor) -> nn.Module:
    assert set(dict(oracle.named_parameters())) == set(weights)
    with torch.no_grad():
        for name, value in weights.items():
            getattr(oracle, name).copy_(value)
    return oracle


@pytest.mark.parametrize(
    ("name", "options", "oracle"),
    [
        ("layernorm", {}, torch_layernorm),
        (
            "layernorm",
            {"use_bias": False},
            lambda ours: with_weights(CohereLayerNorm(D, eps=1e-5), weight=ours.weight),
        ),
        ("layernorm", {"affine": False}, lambda ours: OlmoLayerNorm(D)),
        ("rmsnorm", {}, lambda ours: with_weights(nn.RMSNorm(D, eps=1e-5), weight=ours.weight)),
        ("rmsnorm", {"eps": 1e-3}, lambda ours: with_weights(LlamaRMSNorm(D, eps=1e-3), weight=ours.weight)),
        (
            "rmsnorm",
            {"gain": "one_plus"},
            lambda ours: with_weights(GemmaRMSNorm(D, eps=1e-5), weight=ours.weight),
        ),
        ("rmsnorm", {"gain": "none", "eps": 1e-12}, x_transformers_norm("SimpleRMSNorm")),
        ("prmsnorm", {"p": 1.0}, lambda ours: with_weights(nn.RMSNorm(D, eps=1e-5), weight=ours.weight)),
        ("scalenorm", {}, x_transformers_norm("ScaleNorm")),
        ("dyt", {}, x_transformers_norm("DynamicTanh")),
        ("derf", {}, x_transformers_norm("Derf")),
    ],
)
def test_norms_equal_public_implementations(
    name: str, options: dict[str, object], oracle: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(0)
    ours = make(name, **options)
    x = torch.randn(4, 7, D) * 3 + 1
    torch.testing.assert_close(ours(x), oracle(ours)(x), atol=1e-5, rtol=1e-5)


def test_crmsnorm_is_layernorm_of_the_vector_with_its_last_coordinate() -> None:
    short = torch.randn(5, D)
    whole = torch.cat([short, -short.sum(-1, keepdim=True)], -1)
    expected = nn.LayerNorm(D + 1, elementwise_affine=False)(whole)[:, :D]
    torch.testing.assert_close(NORMS["crmsnorm"](D, bias=True)(short), expected, atol=1e-5, rtol=1e-5)


def test_scalenorm_begins_as_rmsnorm() -> None:
    x = torch.randn(5, D)
    assert [p.shape for p in NORMS["scalenorm"](D, bias=True).parameters()] == [(1,)]
    rmsnorm = nn.RMSNorm(D, eps=0.0)(x)
    torch.testing.assert_close(NORMS["scalenorm"](D, bias=True)(x), rmsnorm, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_bf16_is_rounded_once_at_the_end(name: str) -> None:
    torch.manual_seed(0)
    norm = make(name, bias=False).bfloat16()
    x = (torch.randn(64, D) * 2 + 3).bfloat16()
    result = norm(x)
    assert result.dtype == torch.bfloat16
    expected = FORMULAS[name](x.double(), weights_of(norm))
    error = (result.double() - expected).abs() / expected.abs().clamp_min(1e-2)
    assert error.max() <= 2**-8


@pytest.mark.parametrize("name", NORMS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    norm = make(name)
    norm(torch.randn(3, D)).square().sum().backward()
    for parameter, value in norm.named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize("name", NORMS)
def test_a_vector_of_zeros_has_a_finite_result_and_gradient(name: str) -> None:
    x = torch.zeros(2, D, requires_grad=True)
    y = NORMS[name](D, bias=True)(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y)) and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("follows", "use_bias", "has"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_layernorms_own_bias_option_wins(follows: bool, use_bias: bool | None, has: bool) -> None:
    assert (NORMS["layernorm"](D, bias=follows, use_bias=use_bias).bias is not None) is has


def test_prmsnorm_rounds_its_features_up() -> None:
    norm = make("prmsnorm", p=0.05)  # 2.4 of 48
    x = torch.randn(4, D)
    expected = FORMULAS["prmsnorm"](x.double(), weights_of(norm))
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [0.0, -0.5, 1.5])
def test_prmsnorm_refuses_an_impossible_share(p: float) -> None:
    with pytest.raises(UserError, match=f"prmsnorm's p is {p}: it must be above 0 and at most 1"):
        NORMS["prmsnorm"](D, bias=True, p=p)
    config = GPTConfig(**TINY, norm="prmsnorm", norm_options={"p": p})
    with pytest.raises(UserError, match="cannot be built: prmsnorm's p is"):
        GPT(config)


@pytest.mark.parametrize(
    ("norm", "options", "sentence"),
    [
        (
            "dyt",
            {"alhpa": 0.2},
            r"model.norm_options.alhpa is no option of DynamicTanh .did you mean 'alpha'",
        ),
        ("derf", {"alpha": "much"}, "model.norm_options.alpha is 'much', but it must be a number"),
        ("layernorm", {"use_bias": 1}, "use_bias is 1, but it must be true or false or null"),
    ],
)
def test_a_wrong_option_gets_one_sentence(norm: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        find_designs(GPTConfig(norm=norm, norm_options=options))


@pytest.mark.parametrize("name", NORM_VARIANTS)
def test_a_models_norms_begin_where_the_catalogue_says(name: str) -> None:
    variant = NORM_VARIANTS[name]
    gpt = GPT(GPTConfig(**TINY, **variant.design))
    norm = gpt.transformer["ln_f"]
    start = {
        "weight": {"scalenorm": math.sqrt(32), "rmsnorm_one_plus": 0.0}.get(name, 1.0),
        "bias": 0.0,
        "alpha": 0.5,
        "shift": 0.0,
    }
    parameters = dict(norm.named_parameters())
    for parameter, value in parameters.items():
        assert torch.equal(value, torch.full_like(value, start[parameter])), parameter
    names = {
        "vanilla": {"weight", "bias"},
        "layernorm_no_affine": set(),
        "rmsnorm_no_gain": set(),
        "dyt": {"weight", "bias", "alpha"},
        "derf": {"weight", "bias", "alpha", "shift"},
    }
    assert set(parameters) == names.get(name, {"weight"})
