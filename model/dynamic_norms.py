"""Norms whose gain depends on what they norm: `Norm(ndim, bias)`, from (..., ndim) to (..., ndim)."""

import torch
import torch.nn.functional as F
from torch import nn

from .errors import UserError
from .norms import EPS, RMSNorm


class SeeDNorm(nn.Module):
    """(tanh(x . beta) * alpha + g) * x / sqrt(mean(x^2) + eps): how long x is comes back through x . beta.

    beta starts at 0 and alpha and g at 1, so that it starts as RMSNorm. The paper decays the weights of alpha
    and beta; here no vector is decayed.

    Source: Cai et al. 2025, arXiv:2510.22777, whose formula and initial values were read in a summary of it.
    It is the form for language models, with one dot product for all features.

    Args:
        ndim: size of the last dimension.
        bias: unused.
        eps: added to the mean square.
        alpha: where every alpha begins.
    """

    def __init__(self, ndim: int, bias: bool, *, eps: float = EPS, alpha: float = 1.0) -> None:
        super().__init__()
        self.shape = (ndim,)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(ndim))
        self.alpha = nn.Parameter(torch.full((ndim,), alpha))
        self.beta = nn.Parameter(torch.zeros(ndim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        gain = torch.tanh((y * self.beta).sum(-1, keepdim=True)) * self.alpha + self.weight
        return (gain * F.rms_norm(y, self.shape, None, self.eps)).type_as(x)


class GatedNorm(RMSNorm):
    """y = RMSNorm(x); y * sigmoid(U silu(D y)), with D from ndim to `rank` and U back: a gate per feature.

    At GPT-2's initial weights every gate is near 1/2.

    Source: Qiu et al. 2026, arXiv:2601.22966, as described in the code of marin (experiments/grug/moe), whose
    rank is 128; the paper itself was not read.

    Args:
        ndim: size of the last dimension.
        bias: unused.
        eps: added to the mean square.
        rank: features between D and U.
    """

    def __init__(self, ndim: int, bias: bool, *, eps: float = EPS, rank: int = 16) -> None:
        super().__init__(ndim, bias, eps=eps)
        if rank < 1:
            raise UserError(f"model.norm_options.rank is {rank}: it must be at least 1")
        self.down = nn.Linear(ndim, rank, bias=False)
        self.up = nn.Linear(rank, ndim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        y = super().forward(x)
        return y * torch.sigmoid(self.up(F.silu(self.down(y)))).type_as(y)


DYNAMIC_NORMS: dict[str, type[nn.Module]] = {"seednorm": SeeDNorm, "gated_norm": GatedNorm}
