"""Norms whose gain follows from their input, against formulas written here in fp64."""

import pytest
import torch
from torch import nn

from model import GPT, GPTConfig
from model.designs import find_designs
from model.dynamic_norms import GatedNorm, SeeDNorm
from model.errors import UserError
from model.norms import RMSNorm
from tests.tiny import TINY

D = 48


def randomised(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return norm


def normed(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def seednorm_fp64(x: torch.Tensor, norm: SeeDNorm) -> torch.Tensor:
    weight, alpha, beta = (p.double() for p in (norm.weight, norm.alpha, norm.beta))
    return (torch.tanh(torch.einsum("btd,d->bt", x, beta))[..., None] * alpha + weight) * normed(x)


def gated_norm_fp64(x: torch.Tensor, norm: GatedNorm) -> torch.Tensor:
    y = norm.weight.double() * normed(x)
    inner = y @ norm.down.weight.double().T
    outer = (inner / (1 + torch.exp(-inner))) @ norm.up.weight.double().T
    return y / (1 + torch.exp(-outer))


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_they_equal_their_fp64_formulas(scale: float) -> None:
    torch.manual_seed(0)
    x = scale * torch.randn(3, 7, D)
    for kind, formula in ((SeeDNorm, seednorm_fp64), (GatedNorm, gated_norm_fp64)):
        norm = randomised(kind(D, bias=True))
        torch.testing.assert_close(norm(x).double(), formula(x.double(), norm), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [SeeDNorm, GatedNorm])
def test_bf16_in_is_bf16_out_and_near_fp64(kind: type[nn.Module]) -> None:
    norm = randomised(kind(D, bias=False)).bfloat16()
    x = torch.randn(4, 5, D).bfloat16()
    formula = seednorm_fp64 if kind is SeeDNorm else gated_norm_fp64
    assert norm(x).dtype == torch.bfloat16
    expected = formula(x.double(), norm)
    torch.testing.assert_close(norm(x).double(), expected, atol=0.02, rtol=0.02)


def test_seednorm_starts_as_rmsnorm_and_then_reads_the_length() -> None:
    norm, rms = SeeDNorm(D, bias=True), RMSNorm(D, bias=True)
    x = torch.randn(2, 3, D)
    assert torch.equal(norm(x), rms(x))
    nn.init.constant_(norm.beta, 0.1)
    assert not torch.allclose(norm(2 * x), norm(x), atol=1e-2)
    assert set(dict(norm.named_parameters())) == {"weight", "alpha", "beta"}
    assert torch.equal(SeeDNorm(D, bias=True, alpha=0.5).alpha, torch.full((D,), 0.5))


def test_the_gates_of_a_new_model_are_near_a_half() -> None:
    torch.manual_seed(0)
    norm = GPT(GPTConfig(**TINY, norm="gated_norm")).transformer["ln_f"]
    x = torch.randn(2, 3, TINY["n_embd"])
    gates = norm(x) / RMSNorm(TINY["n_embd"], bias=False)(x)
    assert (gates - 0.5).abs().max() < 0.02


def test_the_rank_is_an_option_of_at_least_1() -> None:
    norm = find_designs(GPTConfig(norm="gated_norm", norm_options={"rank": 3})).norm(D, bias=True)
    assert norm.down.weight.shape == (3, D) and norm.up.weight.shape == (D, 3)
    with pytest.raises(UserError, match=r"model\.block 'pre' cannot be built: .*rank is 0: it must be at"):
        GPT(GPTConfig(**TINY, norm="gated_norm", norm_options={"rank": 0}))
