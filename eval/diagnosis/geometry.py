"""How the residual stream changes over depth: how alike its layers are, and how much of the space it fills.

h is (layers, B, T, C): what enters each block, and at the end what leaves the last one. All is computed in
fp64; what a stream leaves undefined, such as the angle to a vector of 0, is NaN.
"""

import torch
import torch.nn.functional as F


def linear_cka(h: torch.Tensor) -> torch.Tensor:
    """|Y'X|^2 / (|X'X| |Y'Y|) of each two layers, by Frobenius norms over all tokens: (layers, layers).

    X and Y, (tokens, C), are centred. It is 1 for layers that a rotation and one factor make equal. With few
    tokens for each of the C features it is too high.

    Source: Kornblith et al. 2019, arXiv:1905.00414.
    """
    layers = h.flatten(1, 2).double()
    layers = layers - layers.mean(dim=1, keepdim=True)
    products = torch.zeros(len(h), len(h), dtype=torch.float64)
    for lower in range(len(h)):
        for upper in range(lower, len(h)):
            product = (layers[upper].T @ layers[lower]).square().sum()
            products[lower, upper] = products[upper, lower] = product
    own = products.diagonal().sqrt()
    return products / (own[:, None] * own)


def angular_distance(h: torch.Tensor) -> torch.Tensor:
    """arccos(cos(x, y)) / pi of each two layers, the mean over tokens: (layers, layers), 0 to 1.

    Source: Gromov et al. 2024, arXiv:2403.17887, there at the last token alone.
    """
    angles = torch.stack([cosine(layer, h).clamp(-1, 1).arccos().mean(dim=(1, 2)) for layer in h]) / torch.pi
    return angles.fill_diagonal_(0).cpu()  # where rounding leaves 1e-8


def block_influence(h: torch.Tensor) -> torch.Tensor:
    """1 - cos(x, B x) of each block B, the mean over tokens: (layers - 1,).

    Source: Men et al. 2024 (ShortGPT), arXiv:2403.03853.
    """
    return (1 - cosine(h[:-1], h[1:])).mean(dim=(1, 2)).cpu()


def effective_rank(h: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of a sequence's singular values, divided by their sum; the mean over sequences:
    (layers,), from 1 to min(T, C).

    Source: Roy & Vetterli 2007.
    """
    values = torch.linalg.svdvals(h.double())
    shares = values / values.sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1).exp().mean(dim=1).cpu()


def rank_collapse(h: torch.Tensor) -> torch.Tensor:
    """|H - 1 m'| / |H| of a sequence H (T, C) with mean token m, by Frobenius norms; the mean over sequences:
    (layers,), 0 where all tokens are one.

    Source: Dong et al. 2021, arXiv:2103.03404.
    """
    H = h.double()
    rest = H - H.mean(dim=2, keepdim=True)
    return (rest.flatten(2).norm(dim=-1) / H.flatten(2).norm(dim=-1)).mean(dim=1).cpu()


def token_cosine(h: torch.Tensor) -> torch.Tensor:
    """The cosine between two tokens of a sequence, the mean over all pairs and sequences: (layers,).

    Source: Noci et al. 2022, arXiv:2206.03126.
    """
    T = h.shape[2]
    sums = F.normalize(h.double(), dim=-1).sum(dim=2).square().sum(dim=-1)
    return ((sums - T) / (T * (T - 1))).mean(dim=1).cpu() if T > 1 else torch.full((len(h),), torch.nan)


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """cos(x, y) along C, NaN where one of them is 0: (..., C) -> (...)."""
    x, y = x.double(), y.double()
    return (x * y).sum(dim=-1) / (x.norm(dim=-1) * y.norm(dim=-1))
