"""Packing: documents into blocks, and what attention and loss may see of a block."""

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from model.config import IGNORED_TARGET

if TYPE_CHECKING:
    import torch


def best_fit(
    documents: Sequence[np.ndarray], length: int, eot: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Blocks of `length` tokens in which documents stand whole where they fit, in an order drawn at random.

    A document longer than a block fills blocks of its own and is cut only there. The longest piece goes
    first, each into the fullest block that it fits into (best-fit decreasing); what stays free is filled
    with `eot`, which no target is made of (see `inputs_and_targets`).

    Source: Ding et al. 2024, "Fewer truncations improve language modeling", arXiv:2404.10830.
    """
    pieces = [document[at : at + length] for document in documents for at in range(0, len(document), length)]
    blocks: list[list[np.ndarray]] = []
    by_space: list[tuple[int, int]] = []  # (free tokens, block), sorted
    for piece in sorted(pieces, key=len, reverse=True):
        fullest = bisect.bisect_left(by_space, (len(piece), 0))
        if fullest < len(by_space):
            free, block = by_space.pop(fullest)
        else:
            free, block = length, len(blocks)
            blocks.append([])
        blocks[block].append(piece)
        if free > len(piece):
            bisect.insort(by_space, (free - len(piece), block))
    packed = []
    for number in generator.permutation(len(blocks)):
        tokens = np.concatenate(blocks[number])
        packed.append(np.pad(tokens, (0, length - len(tokens)), constant_values=eot))
    return packed


def inputs_and_targets(tokens: "torch.Tensor", eot: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """(B, T + 1) token ids -> inputs and targets, each (B, T); a target that fills up a block is ignored.

    No document is empty, so an `eot` after an `eot` is filling.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    return inputs, targets.masked_fill((inputs == eot) & (targets == eot), IGNORED_TARGET)


def document_ids(inputs: "torch.Tensor", eot: int) -> "torch.Tensor":
    """(B, T) token ids -> (B, T) numbers, the same for the tokens of one document.

    The `eot` that closes a document opens the next one: with a document mask it sees nothing but itself, and
    predicts the next document's first token from that alone. So no prediction sees another document.
    """
    return (inputs == eot).cumsum(dim=1)
