"""z-loss and logit softcap against their formulas with all logits in memory, in fp64."""

import pytest
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig, loss
from tests.model.test_loss import inputs
from tests.tiny import TINIEST

OPTIONS = [(0.01, 0.0), (0.0, 2.0), (0.01, 2.0)]


def formula(
    hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, z_loss: float, softcap: float
) -> list[torch.Tensor]:
    """The cross-entropy, and the gradients of it plus the z-loss, in fp64."""
    hidden, rows = (x.detach().double().requires_grad_() for x in (hidden, rows))
    logits = hidden @ rows.T
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    live = targets >= 0
    z = logits[live].exp().sum(-1).log()
    cross_entropy = (z - logits[live].gather(1, targets[live][:, None])[:, 0]).mean()
    total = cross_entropy + z_loss * z.square().mean()
    return [cross_entropy, *torch.autograd.grad(total, (hidden, rows))]


def ours(dtype: torch.dtype, z_loss: float, softcap: float) -> list[torch.Tensor]:
    hidden, rows, targets = inputs(dtype)
    value = loss.linear_cross_entropy(hidden, rows, targets, "mean", z_loss, softcap)
    return [value, *(g / 4 for g in torch.autograd.grad(4 * value, (hidden, rows)))]


@pytest.mark.parametrize(("z_loss", "softcap"), OPTIONS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_loss_and_gradients_follow_the_formula(
    dtype: torch.dtype, error: float, z_loss: float, softcap: float
) -> None:
    expected = formula(*inputs(dtype), z_loss, softcap)
    for found, truth in zip(ours(dtype, z_loss, softcap), expected, strict=True):
        assert found.dtype == dtype
        assert (found - truth).abs().max() <= error * max(1.0, truth.abs().max().item())


@pytest.mark.parametrize(("z_loss", "softcap"), OPTIONS)
def test_in_bf16_the_error_is_that_of_bf16(bf16_products: bool, z_loss: float, softcap: float) -> None:
    expected = formula(*inputs(torch.bfloat16), z_loss, softcap)
    found = ours(torch.bfloat16, z_loss, softcap)
    assert found[0].dtype == torch.float32
    for left, truth, allowed in zip(found, expected, (1e-4, 6e-3, 6e-3), strict=True):
        assert (left.double() - truth).norm() <= allowed * truth.norm()


@pytest.mark.parametrize(("z_loss", "softcap"), [(0.0, 0.0), (0.01, 2.0)])
def test_the_compiled_loss_follows_the_formula(
    z_loss: float, softcap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "dtype_of_products", lambda hidden: hidden.dtype)
    expected, found = (
        formula(*inputs(torch.bfloat16), z_loss, softcap),
        ours(torch.bfloat16, z_loss, softcap),
    )
    assert abs(found[0].item() - expected[0].item()) <= 1e-3 * expected[0].item()
    for left, truth in zip(found, expected, strict=True):
        assert (left.double() - truth).norm() <= 6e-3 * truth.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_of_single_targets_are_capped_and_have_no_z_loss(dtype: torch.dtype) -> None:
    hidden, rows, targets = inputs(dtype)
    weights = torch.linspace(0, 1, len(targets))
    losses = loss.linear_cross_entropy(hidden, rows, targets, "none", 0.01, 2.0)
    wide = [x.detach().double().requires_grad_() for x in (hidden, rows)]
    logits = 2 * torch.tanh(wide[0] @ wide[1].T / 2)
    expected = F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(losses.double(), expected, atol=tolerance, rtol=0)
    gradients = torch.autograd.grad((losses * weights).sum(), (hidden, rows))
    for left, truth in zip(gradients, torch.autograd.grad((expected * weights).sum(), wide), strict=True):
        assert (left.double() - truth).norm() <= tolerance * truth.norm()


@pytest.mark.parametrize("variant", [{}, {"block": "ngpt", "topology": "sphere"}], ids=["gpt2", "ngpt"])
def test_a_models_logits_and_both_reductions_have_the_cap(variant: dict[str, str]) -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**TINIEST, logit_softcap=0.5, z_loss=0.1, **variant))
    plain = GPT(GPTConfig(**TINIEST, **variant))
    plain.load_state_dict(gpt.state_dict())
    idx, targets = torch.randint(0, 32, (2, 3, 8))
    targets[0, :3] = -1
    logits = 0.5 * torch.tanh(plain(idx)[0] / 0.5)
    torch.testing.assert_close(gpt(idx)[0], logits)
    for reduction in ("mean", "none"):
        expected = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=reduction
        )
        found = gpt(idx, targets, reduction)[1]
        torch.testing.assert_close(found.flatten(), expected.flatten())


def test_the_z_loss_moves_the_gradient_and_not_the_loss() -> None:
    losses, totals = [], []
    for z_loss in (0.0, 0.1):
        torch.manual_seed(0)
        gpt = GPT(GPTConfig(**TINIEST, z_loss=z_loss))
        idx = torch.randint(0, 32, (3, 9))
        _, value = gpt(idx[:, :-1], idx[:, 1:])
        logits, _ = gpt(idx[:, :-1])
        penalty = z_loss * logits.logsumexp(-1).square().mean()
        expected = F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()) + penalty
        for left, right in zip(
            torch.autograd.grad(value, list(gpt.parameters())),
            torch.autograd.grad(expected, list(gpt.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-4)
        losses.append(value.detach())
        totals.append(expected.item())
    torch.testing.assert_close(losses[0], losses[1])
    assert totals[1] > totals[0] + 0.5
