"""Sequences that share their beginnings in one row of tokens: what they share is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

NEIGHBOURS = {"cpu": 64, "cuda": 512}
"""Positions that attend in one call, by device, where branches lie side by side: each call has a cost, and so
have the scores of pairs that do not see each other. Measured on a CPU alone."""


@dataclass(frozen=True)
class _Part:
    """Neighbours in the row that attend in one call.

    Attributes:
        asks: the positions.
        sees: slices of the row, in order, in which lies all that they see. The last ends where `asks` does.
        mask: (asked, seen) which of it each sees; None where it is all up to itself.
    """

    asks: slice
    sees: tuple[slice, ...]
    mask: torch.Tensor | None


class SharedContexts:
    """A forest of tokens in a row, each tree depth first: a token follows its parent, or is a first one.

    Position j sees position i where i is j, or above it in its tree. Those below i are the ones from i to
    `ends[i]`, so that j sees i exactly where i <= j < ends[i].

    Args:
        depths: how many tokens are above each, (N,): its position in its sequence. It is at most one more
            than the depth before it.
        device: where the row will be.
    """

    def __init__(self, depths: Sequence[int], device: torch.device) -> None:
        self.positions = torch.tensor(depths, device=device)
        self._depths = np.asarray(depths)
        self._ends = _ends(depths)
        self._device = device
        self._neighbours = NEIGHBOURS["cpu" if device.type == "cpu" else "cuda"]
        self._parts = self._split(0, len(depths), ())

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Three (1, n_head, N, head size) -> one."""
        found = v.new_empty(1, v.shape[2], v.shape[1], v.shape[3])  # as SDPA has it in memory
        for part in self._parts:
            y = F.scaled_dot_product_attention(
                q[:, :, part.asks],
                _rows(k, part.sees),
                _rows(v, part.sees),
                part.mask,
                is_causal=part.mask is None,
            )
            found[:, part.asks] = y.transpose(1, 2)
        return found.transpose(1, 2)

    def _trees(self, first: int, last: int) -> list[tuple[int, int]]:
        """The trees side by side from `first` to `last`, each as (its first token, the end of its last)."""
        trees = []
        while first < last:
            trees.append((first, int(self._ends[first])))
            first = trees[-1][1]
        return trees

    def _split(self, first: int, last: int, above: tuple[slice, ...]) -> list[_Part]:
        """The parts of trees side by side below the positions `above`: small neighbours are one together, of
        a larger tree the stem is one, and what branches from it is split in turn."""
        parts: list[_Part] = []
        waiting = first
        for start, end in self._trees(first, last):
            if waiting < start and end - waiting > self._neighbours:
                parts.append(self._part(waiting, start, above))
                waiting = start
            if end - start > self._neighbours:
                beside = np.flatnonzero(self._ends[start:end] != end)
                stem = slice(start, start + int(beside[0]) if len(beside) else end)
                parts.append(self._part(stem.start, stem.stop, above))
                parts += self._split(stem.stop, end, _joined(above, stem))
                waiting = end
        return parts if waiting == last else [*parts, self._part(waiting, last, above)]

    def _part(self, first: int, last: int, above: tuple[slice, ...]) -> _Part:
        asks = slice(first, last)
        asked = np.arange(first, last)[:, None]
        seen = np.arange(first, last)[None]
        sees = (seen <= asked) & (asked < self._ends[None, first:last])
        size = sum(one.stop - one.start for one in above)
        if not size and (self._depths[first:last] == self._depths[first] + np.arange(last - first)).all():
            return _Part(asks, (asks,), None)
        mask = np.concatenate([np.ones((last - first, size), dtype=bool), sees], axis=1)
        return _Part(asks, _joined(above, asks), torch.from_numpy(mask).to(self._device))


def _ends(depths: Sequence[int]) -> np.ndarray:
    """For each token the end of those below it: the next one that is no deeper, (N,)."""
    ends = np.full(len(depths), len(depths))
    open_: list[int] = []
    for i, depth in enumerate(depths):
        for closed in open_[depth:]:
            ends[closed] = i
        del open_[depth:]
        open_.append(i)
    return ends


def _joined(slices: tuple[slice, ...], one: slice) -> tuple[slice, ...]:
    """Slices and one more, which is put to the last where it goes on there."""
    if slices and slices[-1].stop == one.start:
        return *slices[:-1], slice(slices[-1].start, one.stop)
    return *slices, one


def _rows(x: torch.Tensor, slices: tuple[slice, ...]) -> torch.Tensor:
    """(B, n_head, N, head size) -> its rows in the slices."""
    parts = [x[:, :, one] for one in slices]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
