"""All measures of a model on one set of sequences, as rows: diagnosis.parquet holds them."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from tqdm import tqdm

from model import GPT
from model.errors import UserError

from . import geometry
from .left_out import Change, NotMeasurable, changed, swapped, without_branch, without_layer
from .lens import lens_divergence
from .quantisation import ALL_SCALES, FakeQuantised, Scales
from .streams import find_branches, read_streams

GEOMETRY_TOKENS = 4096
"""Of so many tokens, in whole sequences, the streams of all layers are in memory for the measures of them."""
LENS_EPS = 0.1
"""Nats: from which layer on the logit lens says what the model says."""
DROP_EPS = 0.01
"""Nats: what a layer that counts costs where it is left out."""
PAIRS = {"cka": geometry.linear_cka, "angular_distance": geometry.angular_distance}
"""Measures of two layers."""
BY_LAYER = {
    "block_influence": geometry.block_influence,
    "effective_rank": geometry.effective_rank,
    "rank_collapse": geometry.rank_collapse,
    "token_cosine": geometry.token_cosine,
}
"""Measures of a layer's stream, or of what a block does to it."""


class Row(NamedTuple):
    """One value. `layer` is 0 for what enters the first block and n_layer for what leaves the last, or the
    block's own number, from 0; None for a value of the whole model. `layer_2` is the second of a pair."""

    name: str
    layer: int | None
    layer_2: int | None
    part: str
    value: float


@dataclass(frozen=True)
class Sequences:
    """What is measured on.

    Attributes:
        inputs: (S, T) token ids, on the model's device.
        targets: (S, T) what follows each.
        documents: (S, T) each token's document where attention stays within it, else None.
        batch: sequences of one forward pass.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor | None
    batch: int

    def first(self, most: int) -> "Sequences":
        """At most so many of them."""
        documents = None if self.documents is None else self.documents[:most]
        return Sequences(self.inputs[:most], self.targets[:most], documents, self.batch)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Inputs, targets and documents, a batch at a time."""
        documents = itertools.repeat(None) if self.documents is None else self.documents.split(self.batch)
        yield from zip(self.inputs.split(self.batch), self.targets.split(self.batch), documents, strict=False)


@dataclass
class Diagnosis:
    """What was measured, and what could not be.

    Attributes:
        rows: the values.
        missing: layers (None for the whole model) by measure and reason.
    """

    rows: list[Row] = field(default_factory=list)
    missing: dict[tuple[str, str], list[int | None]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Keep a value. Raises NotMeasurable for one that is not finite."""
        if not math.isfinite(row.value):
            raise NotMeasurable("it is not defined there")
        self.rows.append(row)

    @contextmanager
    def missing_where(self, name: str, layer: int | None = None) -> Iterator[None]:
        """Note that a measure is absent where it turns out within that it cannot be taken."""
        try:
            yield
        except NotMeasurable as reason:
            self.missing.setdefault((name, str(reason)), []).append(layer)

    def notes(self) -> list[str]:
        """A sentence about each measure that is absent, in full or for some layers."""
        return [
            f"{name}{_of_layers(layers)} is absent: {reason}"
            for (name, reason), layers in self.missing.items()
        ]


def _of_layers(layers: list[int | None]) -> str:
    numbers = [str(layer) for layer in dict.fromkeys(layers) if layer is not None]
    return f" of layer{'s' * (len(numbers) > 1)} {', '.join(numbers)}" if numbers else ""


def measure(gpt: GPT, sequences: Sequences, bar: Callable[..., tqdm]) -> Diagnosis:
    """Every measure that the design allows.

    Args:
        gpt: in evaluation mode, in fp32, uncompiled.
        sequences: what it reads.
        bar: makes the progress bar, as `Console.bar`.

    Raises UserError where the loss itself is not finite.
    """
    branches = find_branches(gpt, sequences.inputs[:1])
    total = 4 + len(branches) + sum(map(len, branches)) + len(branches) - 1
    with bar("measuring", total=total, unit=" passes") as passes:
        return _measure(gpt, sequences, branches, passes.update)


def _measure(
    gpt: GPT, sequences: Sequences, branches: Sequence[Sequence[str]], advance: Callable[[], object]
) -> Diagnosis:
    found = Diagnosis()
    loss = mean_loss(gpt, sequences)
    if not math.isfinite(loss):
        raise UserError(f"the loss of these weights is {loss}: choose a checkpoint from before, with --step")
    found.add(Row("loss", None, None, "", loss))
    advance()
    _measure_streams(gpt, sequences, found)
    advance()
    for scales in ALL_SCALES:
        with found.missing_where("quant_gap"):
            found.add(Row("quant_gap", None, None, scales, mean_loss(gpt, sequences, scales) - loss))
        advance()
    _measure_costs(gpt, sequences, loss, branches, found, advance)
    with found.missing_where("effective_depth"):
        found.rows += effective_depths(found.rows, len(gpt.blocks))
    return found


def _measure_streams(gpt: GPT, sequences: Sequences, found: Diagnosis) -> None:
    """The measures of what enters the blocks, on GEOMETRY_TOKENS tokens."""
    few = sequences.first(max(1, GEOMETRY_TOKENS // sequences.inputs.shape[1]))
    with found.missing_where(", ".join((*BY_LAYER, *PAIRS, "lens_kl"))):
        parts = [read_streams(gpt, inputs, documents) for inputs, _, documents in few.batches()]
        h, final = torch.cat([part[0] for part in parts], dim=1), torch.cat([part[1] for part in parts])
        for name, of_layers in BY_LAYER.items():
            for layer, value in enumerate(of_layers(h).tolist()):
                with found.missing_where(name, layer):
                    found.add(Row(name, layer, None, "", value))
        for name, of_pairs in PAIRS.items():
            for layer, values in enumerate(of_pairs(h).tolist()):
                for layer_2, value in enumerate(values[layer + 1 :], start=layer + 1):
                    with found.missing_where(name, layer):
                        found.add(Row(name, layer, layer_2, "", value))
        with found.missing_where("lens_kl"):
            if not getattr(gpt.transformer["topology"], "final_norm", True):
                raise NotMeasurable("its topology turns the last stream into what the head reads by itself")
            for layer, value in enumerate(lens_divergence(gpt, h, final).tolist()):
                found.add(Row("lens_kl", layer, None, "", value))


def _measure_costs(
    gpt: GPT,
    sequences: Sequences,
    loss: float,
    branches: Sequence[Sequence[str]],
    found: Diagnosis,
    advance: Callable[[], object],
) -> None:
    """What the loss rises by without each layer, without its branches, and with neighbours swapped."""

    def cost(name: str, layer: int, part: str, changes: Callable[[], list[Change]]) -> None:
        with found.missing_where(f"{name}{part and f' ({part})'}", layer):
            value = changed(changes(), lambda: mean_loss(gpt, sequences)) - loss
            found.add(Row(name, layer, layer + 1 if name == "layer_swap" else None, part, value))
        advance()

    first = sequences.inputs[:1]
    for layer, parts in enumerate(branches):
        cost("layer_drop", layer, "", partial(without_layer, gpt, layer, first))
        for part in parts:
            cost("layer_drop", layer, part, partial(without_branch, gpt, layer, part))
        if layer + 1 < len(gpt.blocks):
            cost("layer_swap", layer, "", partial(swapped, gpt, layer))


def effective_depths(rows: list[Row], n_layer: int) -> list[Row]:
    """By the lens the lowest layer from which its divergence is below LENS_EPS; by leaving out the number of
    layers that cost more than DROP_EPS, where all were measured.

    Raises NotMeasurable where neither is there.
    """
    divergences = [row.value for row in rows if row.name == "lens_kl"]
    costs = [row.value for row in rows if (row.name, row.part) == ("layer_drop", "")]
    found = []
    if divergences:
        lowest = [layer for layer, value in enumerate(divergences) if value < LENS_EPS][:1]
        found += [Row("effective_depth", None, None, "lens", depth) for depth in lowest]
    if len(costs) == n_layer:
        found.append(Row("effective_depth", None, None, "layer_drop", sum(cost > DROP_EPS for cost in costs)))
    if not found:
        raise NotMeasurable("it needs lens_kl or layer_drop of all layers")
    return found


@torch.no_grad()
def mean_loss(gpt: GPT, sequences: Sequences, scales: Scales | None = None) -> float:
    """Nats per token over all targets; with `scales` under W8A8, sequence by sequence, the head as it is.

    Raises NotMeasurable where nothing of the model is an 8-bit product then.
    """
    losses = []
    if scales is not None:  # the scale of one tensor must not depend on what else is in the batch
        sequences = replace(sequences, batch=1)
    for inputs, targets, documents in sequences.batches():
        if scales is None:
            hidden = gpt.hidden(inputs, documents)
        else:
            with FakeQuantised(scales) as mode:
                hidden = gpt.hidden(inputs, documents)
            if not mode.products:
                raise NotMeasurable("no part of the model before its head is a linear layer of torch")
        losses.append(gpt.lm_head(hidden, targets, "none").double().cpu())
    return float(torch.cat(losses).mean())
