"""Normalization layers: `Norm(ndim, bias)`, from (..., ndim) to (..., ndim).

Statistics are computed in fp32 whatever the input's dtype, and the result has the input's dtype.
"""

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-5  # GPT-2's


class LayerNorm(nn.Module):
    """g * (x - mean) / sqrt(var + eps) + b over the last dimension; `bias=False` drops b.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    def __init__(self, ndim: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.weight.shape, self.weight.float(), bias, EPS).type_as(x)


class RMSNorm(nn.Module):
    """g * x / sqrt(mean(x^2) + eps) over the last dimension. It has no bias: `bias` is accepted and unused.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, ndim: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), EPS).type_as(x)


NORMS: dict[str, type[nn.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
