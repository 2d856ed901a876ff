"""What enters blocks and leaves the last, and which branches there are, as training's diagnostics see it."""

from collections.abc import Sequence

import torch

from model import GPT
from training.diagnostics.observe import observe

from .left_out import NotMeasurable


@torch.no_grad()
def read_streams(
    gpt: GPT, idx: torch.Tensor, documents: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """h, (layers + 1, B, T, C): what enters each block, and last what the final norm reads; and what the head
    reads, (B, T, C).

    Where a topology keeps several streams, h is their mean.

    Raises NotMeasurable where a block is not called once, with a tensor (B, T, C).
    """
    with observe(gpt, documents) as seen:
        final = gpt.hidden(idx)
    layers = [seen.stream.get(layer) for layer in range(len(gpt.blocks) + 1)]
    for layer, h in enumerate(layers):
        if h is None or h.shape != final.shape:
            raise NotMeasurable(f"what enters block {layer} is not one tensor (B, T, C)")
    return torch.stack([h for h in layers if h is not None]), final


@torch.no_grad()
def find_branches(gpt: GPT, idx: torch.Tensor) -> Sequence[Sequence[str]]:
    """The names of the branches by layer, such as attn and mlp; idx is (B, T)."""
    with observe(gpt) as seen:
        gpt.hidden(idx)
    return [[part for of, part in seen.branches if of == layer and part] for layer in range(len(gpt.blocks))]
