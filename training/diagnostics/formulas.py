"""The formulas of the diagnostics, on what passes through one layer. All sums are in fp64."""

import torch

MASSIVE = 100.0
"""A massive activation is above this,"""
MASSIVE_RATIO = 1000.0
"""and above so many times the median of its layer: Sun et al. 2024, arXiv:2402.17762."""


def rms(x: torch.Tensor) -> float:
    """sqrt(mean x^2), of any shape."""
    return float(x.double().square().mean().sqrt())


def norm(x: torch.Tensor) -> float:
    """sqrt(sum x^2), of any shape."""
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64))


def feature_kurtosis(x: torch.Tensor) -> float:
    """mean_i s_i^4 / (mean_i s_i^2)^2 of (B, T, C), s_i the RMS of feature i over the tokens: from 1, where
    all features are as large, to C, where one holds everything (He et al. 2024, arXiv:2405.19279)."""
    squares = x.double().square().flatten(0, -2).mean(0)
    return float(squares.square().mean() / squares.mean().square())


def token_kurtosis(x: torch.Tensor) -> float:
    """The mean over tokens of mean_i x_i^4 / (mean_i x_i^2)^2, of (B, T, C): the same within a token."""
    squares = x.double().square()
    return float((squares.square().mean(-1) / squares.mean(-1).square()).mean())


def massive(x: torch.Tensor) -> tuple[float, float, float]:
    """Of (B, T, C): the largest |x|, how many are massive activations, and the largest over the median."""
    sizes = x.abs().flatten()
    largest, median = sizes.max().double(), sizes.median().double()
    count = ((sizes > MASSIVE) & (sizes > MASSIVE_RATIO * median)).sum()
    # 0 * largest: of what is not finite nothing is counted
    return float(largest), float(count + 0 * largest), float(largest / median)


def ratio(branch: torch.Tensor, stream: torch.Tensor) -> float:
    """The mean over tokens of |branch| / |stream|, both (B, T, C)."""
    return float((branch.double().norm(dim=-1) / stream.double().norm(dim=-1)).mean())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """The mean over tokens of the cosine of two (B, T, C); tokens at which one is 0 have none. NaN if all."""
    a, b = a.double(), b.double()
    sizes = a.norm(dim=-1) * b.norm(dim=-1)
    return float(((a * b).sum(-1) / sizes)[sizes != 0].mean())
