"""The logit lens: what the head would say of the stream between two blocks."""

import torch

from model import GPT

ROWS = 256
"""Tokens whose probabilities are in memory at once."""


@torch.no_grad()
def lens_divergence(gpt: GPT, h: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """KL(p_l || p) in nats of softmax(head(norm(h_l))) to the model's own p, the mean over tokens: (layers,).

    Source: nostalgebraist 2020; Belrose et al. 2023, arXiv:2303.08112.

    Args:
        gpt: whose final norm and head read the stream.
        h: (layers, B, T, C).
        final: (B, T, C), what its head reads.
    """
    sums = torch.zeros(len(h), dtype=torch.float64)
    layers = h.flatten(1, 2)
    for start in range(0, layers.shape[1], ROWS):
        rows = slice(start, start + ROWS)
        own = gpt.lm_head(final.flatten(0, 1)[rows]).log_softmax(dim=-1)
        for layer, of_layer in enumerate(layers[:, rows]):
            seen = gpt.lm_head(gpt.transformer["ln_f"](of_layer)).log_softmax(dim=-1)
            sums[layer] += (seen.exp() * (seen - own)).sum(dtype=torch.float64).cpu()
    return sums / layers.shape[1]
