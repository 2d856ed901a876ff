"""What enters each block and what leaves the last, of any design."""

from collections.abc import Callable
from typing import Any

import torch

from model import GPT
from model.hyper_connections import StreamTopology

from .left_out import Change, NotMeasurable, replaced


@torch.no_grad()
def read_streams(
    gpt: GPT, idx: torch.Tensor, documents: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """h, (layers + 1, B, T, C): what enters each block, and last what the final norm reads; and what the head
    reads, (B, T, C).

    Where a topology keeps several streams, h is their mean.

    Raises NotMeasurable where a block is not called once, with a tensor (B, T, C).
    """
    topology = gpt.transformer["topology"]
    methods = gpt.repeated_methods()
    firsts = [number for number, (block, _) in enumerate(methods) if block is not methods[number - 1][0]]
    firsts = firsts or [0]  # one block of two branches
    read: dict[int, list[torch.Tensor]] = {number: [] for number in range(len(firsts) + 1)}

    def reading(layer: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def read_first(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            read[layer].append(x)
            return function(x, *args, **kwargs)

        return read_first

    changes = []
    for layer, number in enumerate(firsts):
        module, method = methods[number]
        if isinstance(topology, StreamTopology):
            module, method = topology.connections[number], "forward"
        changes.append(Change(module, method, reading(layer, getattr(module, method))))
    final_norm = gpt.transformer["ln_f"]
    changes.append(Change(final_norm, "forward", reading(len(firsts), final_norm.forward)))
    with replaced(changes):
        final = gpt.hidden(idx, documents)
    found = []
    for layer, of_layer in read.items():
        if len(of_layer) != 1:
            raise NotMeasurable(f"what enters block {layer} is not one tensor")
        h = of_layer[0].mean(dim=2) if of_layer[0].dim() == 4 else of_layer[0]
        if h.shape != final.shape:
            raise NotMeasurable(f"what enters block {layer} is no tensor (B, T, C)")
        found.append(h)
    return torch.stack(found), final
