"""Log-likelihoods of tokens from what the head reads, a part of the vocabulary at a time."""

import torch
import torch.nn.functional as F

from model.loss import Head, softcapped

LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**27}
"""Logits in memory at once, by device: 8 MB in fp32, which caches hold, and 0.5 GB (not measured)."""


def token_scores(
    head: Head, hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How likely tokens are, and whether each is the likeliest: the first of several that are.

    Args:
        head: the model's.
        hidden: (N, C) what it reads.
        rows: (P,) which of them each token follows.
        targets: (P,) the tokens' ids.

    Returns:
        (P,) log-likelihoods in nats, in fp32 or the model's fp64; (P,) bool.
    """
    weight = head.rows()
    wide = torch.promote_types(hidden.dtype, torch.float32)
    width = max(256, LOGITS_AT_ONCE["cpu" if hidden.device.type == "cpu" else "cuda"] // len(hidden))
    highest = hidden.new_full((len(hidden),), -torch.inf, dtype=wide)
    total = torch.zeros_like(highest)  # of exp(logit - highest)
    likeliest = torch.zeros_like(highest, dtype=torch.long)
    chosen = torch.zeros_like(targets, dtype=wide)
    for start in range(0, len(weight), width):
        logits = F.linear(hidden, weight[start : start + width]).to(wide)
        logits = softcapped(logits, head.softcap) if head.softcap else logits
        place = targets - start
        is_here = (place >= 0) & (place < logits.shape[1])
        chosen = torch.where(is_here, logits[rows, place.clamp(0, logits.shape[1] - 1)], chosen)
        found, index = logits.max(dim=-1)
        likeliest = torch.where(found > highest, index + start, likeliest)
        higher = torch.maximum(highest, found)
        total = total * (highest - higher).exp() + logits.sub_(higher[:, None]).exp_().sum(dim=-1)
        highest = higher
    return chosen - (highest + total.log())[rows], likeliest[rows] == targets
