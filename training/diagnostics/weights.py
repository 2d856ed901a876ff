"""Norms of weights, gradients and updates, by layer, by part, and by group of layers."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from .formulas import norm
from .table import Row

EMBEDDING, HEAD, TOPOLOGY = "embedding", "head", "topology"


def norm_rows(name: str, tensors: Mapping[str, torch.Tensor], n_layer: int) -> list[Row]:
    """The norms of a model's parameters, or of something of their shapes, as rows called `name`.

    Args:
        name: of the rows.
        tensors: by name of the parameter.
        n_layer: how many layers the model has.
    """
    return rows_of(name, {key: norm(tensor) for key, tensor in tensors.items()}, n_layer)


def rows_of(name: str, norms: Mapping[str, float], n_layer: int) -> list[Row]:
    """Norms by parameter, joined to those of each layer and of each part.

    A layer has a row for each module in its block, and one with part "" for the whole block. Embeddings
    stand in layer 0 as part `embedding`; the head, with the final norm, and the topology's own parameters
    behind the last layer. A tied head is the embedding's.
    """
    squares: dict[tuple[int, str], float] = {}
    for parameter, size in norms.items():
        for place in _places(parameter, n_layer):
            squares[place] = squares.get(place, 0.0) + size**2
    return [Row(name, layer, part, math.sqrt(square)) for (layer, part), square in squares.items()]


def ratios(rows: Iterable[Row], wholes: Iterable[Row]) -> list[Row]:
    """Rows divided by those of the same layer and part, where these are not 0."""
    divisors = {(row.layer, row.part): row.value for row in wholes}
    return [
        row._replace(value=row.value / divisor)
        for row in rows
        if (divisor := divisors.get((row.layer, row.part)))
    ]


def by_group(rows: Iterable[Row], n_layer: int) -> dict[str, float]:
    """Norms by group: embedding, the thirds of the depth as `layers_00-07`, head, and the topology's own."""
    squares: dict[str, float] = {}
    groups = _thirds(n_layer)
    for row in rows:
        if row.part in (EMBEDDING, HEAD, TOPOLOGY):
            group = row.part
        elif row.part == "":
            group = groups[row.layer]
        else:
            continue
        squares[group] = squares.get(group, 0.0) + row.value**2
    return {group: math.sqrt(square) for group, square in squares.items()}


def _thirds(n_layer: int) -> list[str]:
    """The group of each layer."""
    thirds = [part for part in np.array_split(np.arange(n_layer), 3) if len(part)]
    return [f"layers_{part[0]:02d}-{part[-1]:02d}" for part in thirds for _ in part]


def _places(parameter: str, n_layer: int) -> list[tuple[int, str]]:
    words = parameter.split(".")
    if words[:2] == ["transformer", "h"]:
        layer = int(words[2])
        return [(layer, ""), (layer, words[3])] if len(words) > 4 else [(layer, "")]
    if words[0] == "transformer" and words[1] in ("wte", "wpe"):
        return [(0, EMBEDDING)]
    if words[:2] == ["transformer", "topology"]:
        return [(n_layer, TOPOLOGY)]
    return [(n_layer, HEAD)]
