"""Normalization layers: `Norm(ndim, bias)`, from (..., ndim) to (..., ndim).

Statistics are computed in fp32 whatever the input's dtype, and the result has the input's dtype.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .errors import UserError

EPS = 1e-5  # GPT-2's

Gain = Literal["gain", "one_plus", "none"]


class LayerNorm(nn.Module):
    """g * (x - mean) / sqrt(var + eps) + b over the last dimension.

    Source: Ba et al. 2016, arXiv:1607.06450.

    Args:
        ndim: size of the last dimension.
        bias: whether there is b.
        eps: added to the variance.
        affine: whether there are g and b at all (OLMo 1 has neither).
        use_bias: whether there is b, whatever `bias` says; null follows `bias`.
    """

    def __init__(
        self, ndim: int, bias: bool, *, eps: float = EPS, affine: bool = True, use_bias: bool | None = None
    ) -> None:
        super().__init__()
        self.shape = (ndim,)
        self.eps = eps
        has_bias = affine and (bias if use_bias is None else use_bias)
        self.weight = nn.Parameter(torch.ones(ndim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(ndim)) if has_bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        weight = None if self.weight is None else self.weight.to(_statistics_dtype(x))
        bias = None if self.bias is None else self.bias.to(_statistics_dtype(x))
        return F.layer_norm(x.to(_statistics_dtype(x)), self.shape, weight, bias, self.eps).type_as(x)


class RMSNorm(nn.Module):
    """g * x / sqrt(mean(x^2) + eps) over the last dimension. It has no bias: `bias` is accepted and unused.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467; 1 + g: Gemma 2024, arXiv:2403.08295.

    Args:
        ndim: size of the last dimension.
        bias: unused.
        eps: added to the mean square.
        gain: `gain` multiplies by g, `one_plus` by 1 + g with g from 0, `none` by nothing.
    """

    def __init__(self, ndim: int, bias: bool, *, eps: float = EPS, gain: Gain = "gain") -> None:
        super().__init__()
        self.shape = (ndim,)
        self.eps = eps
        self.offset = 1.0 if gain == "one_plus" else 0.0
        initial = torch.zeros(ndim) if gain == "one_plus" else torch.ones(ndim)
        self.weight = nn.Parameter(initial) if gain != "none" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        weight = None if self.weight is None else self.offset + self.weight.to(_statistics_dtype(x))
        return F.rms_norm(x.to(_statistics_dtype(x)), self.shape, weight, self.eps).type_as(x)


class PartialRMSNorm(nn.Module):
    """g * x / sqrt(mean(x_1^2 .. x_k^2) + eps): the RMS of the first k = ceil(p * ndim) features, for all.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467 (pRMSNorm).

    Args:
        ndim: size of the last dimension.
        bias: unused.
        p: the share of the features whose RMS is taken, above 0 and at most 1.
        eps: added to the mean square.
    """

    def __init__(self, ndim: int, bias: bool, *, p: float = 0.0625, eps: float = EPS) -> None:
        super().__init__()
        if not 0.0 < p <= 1.0:
            raise UserError(f"prmsnorm's p is {p}: it must be above 0 and at most 1")
        self.k = math.ceil(p * ndim)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(ndim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        y = x.to(_statistics_dtype(x))
        mean_square = y[..., : self.k].square().mean(-1, keepdim=True)
        return (self.weight * y * torch.rsqrt(mean_square + self.eps)).type_as(x)


class CRMSNorm(nn.Module):
    """g * x / sqrt((sum x^2 + (sum x)^2) / (ndim + 1) + eps): LayerNorm of a vector stored short.

    x holds all but the last of the ndim + 1 coordinates of a vector whose mean is 0, so the last is -sum(x),
    and the result is LayerNorm's of that vector, without its last coordinate.

    Source: Jiang et al. 2023, arXiv:2305.14858.

    Args:
        ndim: size of the last dimension, the stored coordinates.
        bias: unused.
        eps: added to the variance.
    """

    def __init__(self, ndim: int, bias: bool, *, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(ndim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        y = x.to(_statistics_dtype(x))
        total = y.square().sum(-1, keepdim=True) + y.sum(-1, keepdim=True).square()
        return (self.weight * y * torch.rsqrt(total / (x.shape[-1] + 1) + self.eps)).type_as(x)


class ScaleNorm(nn.Module):
    """g * x / max(||x||, eps), one scalar g from sqrt(ndim): at first RMSNorm without a gain.

    Source: Nguyen & Salazar 2019, arXiv:1910.05895.

    Args:
        ndim: size of the last dimension.
        bias: unused.
        eps: the smallest length to divide by.
    """

    def __init__(self, ndim: int, bias: bool, *, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.tensor([math.sqrt(ndim)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        return (self.weight * F.normalize(x.to(_statistics_dtype(x)), dim=-1, eps=self.eps)).type_as(x)


class DynamicTanh(nn.Module):
    """g * tanh(alpha * x) + b, alpha one learned scalar: no statistics at all.

    Source: Zhu et al. 2025, arXiv:2503.10622 (DyT).

    Args:
        ndim: size of the last dimension.
        bias: whether there is b.
        alpha: where alpha begins; the paper lowers it as the width grows.
    """

    def __init__(self, ndim: int, bias: bool, *, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([alpha]))
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        y = self.weight * torch.tanh(self.alpha * x.to(_statistics_dtype(x)))
        return (y if self.bias is None else y + self.bias).type_as(x)


class Derf(nn.Module):
    """g * erf(alpha * x + s) + b, alpha and s learned scalars, s from 0: no statistics at all.

    Source: Chen et al. 2025, arXiv:2512.10938.

    Args:
        ndim: size of the last dimension.
        bias: whether there is b.
        alpha: where alpha begins.
    """

    def __init__(self, ndim: int, bias: bool, *, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([alpha]))
        self.shift = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., ndim) -> (..., ndim)."""
        y = self.weight * torch.erf(self.alpha * x.to(_statistics_dtype(x)) + self.shift)
        return (y if self.bias is None else y + self.bias).type_as(x)


def _statistics_dtype(x: torch.Tensor) -> torch.dtype:
    """fp32, or fp64 where the input has it."""
    return torch.promote_types(x.dtype, torch.float32)


NORMS: dict[str, type[nn.Module]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
    "prmsnorm": PartialRMSNorm,
    "crmsnorm": CRMSNorm,
    "scalenorm": ScaleNorm,
    "dyt": DynamicTanh,
    "derf": Derf,
}
