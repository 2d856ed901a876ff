"""Requests whose texts begin alike, such as an item's choices: their common beginning is computed once.

Which requests make a batch follows from the requests alone; how many tokens they share, too. Whether a design
may be asked so is found out by asking it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from model import GPT
from model.errors import UserError
from model.shared_contexts import SharedContexts

from .products import FasterLinear

WORTH_SHARING = 8
"""Tokens at the beginning of two requests that are shared at least: fewer save less than they cost."""
PROBE = ((8, (3, 1, 2)), (0, (20,)), (24, (17, 40, 5, 1)), (90, (7, 33)))
"""What a design is asked: trees of so many shared tokens, with branches of so many tokens behind them."""
TOLERANCE = 1e-4
"""What rounding in fp32 may change, of the largest number that the head reads."""

Tokens = Sequence[int]


@dataclass(frozen=True)
class Row:
    """Sequences in one row of tokens, what they share once.

    Attributes:
        tokens: (N,) ids.
        depths: (N,) each token's position in its sequences.
        places: for each sequence where its tokens are in the row.
    """

    tokens: list[int]
    depths: list[int]
    places: list[list[int]]

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> "Row":
        """Lay out sequences, of which those that share a beginning lie side by side, in order."""
        row, path = cls([], [], []), list[int]()
        before: Tokens = ()
        for sequence in sequences:
            shared = common(before, sequence)
            start = len(row.tokens)
            row.tokens.extend(sequence[shared:])
            row.depths.extend(range(shared, len(sequence)))
            path = [*path[:shared], *range(start, len(row.tokens))]
            row.places.append(path)
            before = sequence
        return row

    def hidden(self, gpt: GPT, device: torch.device) -> torch.Tensor:
        """What the head reads at each token, (N, C)."""
        idx = torch.tensor([self.tokens], device=device)
        return gpt.hidden(idx, shared=SharedContexts(self.depths, device))[0]


def common(a: Tokens, b: Tokens) -> int:
    """How many tokens at the beginning of both are computed once; 0 where it is not worth it."""
    size = min(len(a), len(b))
    same = next((i for i in range(size) if a[i] != b[i]), size)
    return same if same >= WORTH_SHARING else 0


def in_batches(sequences: Sequence[Tokens], tokens_per_batch: int) -> list[list[int]]:
    """Indices of sequences, those that share a beginning together, in batches of so many tokens at most.

    What is shared counts once. The trees with the longest sequences come first: memory runs out at the start
    or not at all. A tree that is larger than a batch is cut, and each of its batches begins with the stem.
    """
    trees: list[list[int]] = []
    before: Tokens = ()
    for i in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        if not common(before, sequences[i]):
            trees.append([])
        trees[-1].append(i)
        before = sequences[i]
    trees.sort(key=lambda tree: -max(len(sequences[i]) for i in tree))
    batches: list[list[int]] = []
    left = 0
    for tree in trees:
        costs = _costs([sequences[i] for i in tree])
        if sum(costs) > left:
            batches.append([])
            left = tokens_per_batch
        for i, cost in zip(tree, costs, strict=True):
            if cost > left and batches[-1]:
                batches.append([])
                left, cost = tokens_per_batch, len(sequences[i])
            batches[-1].append(i)
            left -= cost
    return batches


def _costs(sequences: Sequence[Tokens]) -> list[int]:
    """The tokens that each sequence adds to those before it."""
    befores: list[Tokens] = [(), *sequences[:-1]]
    return [len(one) - common(before, one) for before, one in zip(befores, sequences, strict=True)]


@torch.inference_mode()
def why_not_shared(gpt: GPT) -> str | None:
    """Why the beginnings of requests cannot be shared in a model, in words; None where they can be.

    All its attention must be `CausalSelfAttention`, and nothing in it may say that it crosses documents. Then
    the model itself, with the weights that it has, reads made-up branches in one row: a branch must have the
    same bits whatever stands in others, and to rounding those that it has alone.
    """
    parameter = next(gpt.parameters())
    try:
        gpt.check_document_mask()
    except UserError:
        return "not all its attention is model.layers.CausalSelfAttention, or other parts look back too"
    if parameter.dtype not in (torch.float32, torch.float64):
        return f"in {parameter.dtype} rounding hides whether its parts look at other tokens"
    draw = np.random.default_rng(0)
    block_size, vocab_size = gpt.config.block_size, gpt.config.vocab_size
    sequences = []
    for shared, lengths in PROBE:
        stem = draw.integers(vocab_size, size=min(shared, block_size - 1)).tolist()
        for length in lengths:
            branch = draw.integers(vocab_size, size=min(length, block_size - len(stem))).tolist()
            sequences.append(stem + branch)
    row = Row.of(sequences)
    kept = sorted({place for places in row.places[::2] for place in places})
    others = sorted(set(range(len(row.tokens))) - set(kept))
    changed = np.array(row.tokens)
    changed[others] = draw.integers(vocab_size, size=len(others))
    with FasterLinear():
        found = row.hidden(gpt, parameter.device)
        after = replace(row, tokens=changed.tolist()).hidden(gpt, parameter.device)
        if not torch.equal(found[kept], after[kept]):
            return "something besides attention looks at other tokens"
        for places, sequence in zip(row.places, sequences, strict=True):
            alone = gpt.hidden(torch.tensor([sequence], device=parameter.device))[0]
            if not (found[places] - alone).abs().max() <= TOLERANCE * alone.abs().max():
                return "something besides attention looks at other tokens or at positions"
    return None
