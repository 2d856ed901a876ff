"""A model as it was built, beside the one that an engine trains: uncompiled, in fp32, whole."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from model import GPT

from ..engine.ranks import deepspeed


class PlainCopy:
    """A copy of a model that holds weights only while something is measured.

    It is taken before the model is compiled and an engine is built around it, so that nothing of DeepSpeed's
    is in it, and with everything else that a design's constructor has made.

    Attributes:
        gpt: the copy. Its parameters are empty until `fill`.
        size: how many numbers its parameters hold then.

    Args:
        gpt: on the CPU, as it was built.

    Raises TypeError where a module keeps a function of its own that a copy would share, and what copying a
    design's attributes raises.
    """

    def __init__(self, gpt: GPT) -> None:
        _refuse_shared_functions(gpt)
        self.size = gpt.num_parameters()
        # Known to deepcopy as copied already: the weights themselves never are.
        empty = {id(p): nn.Parameter(p.new_empty(0), p.requires_grad) for p in gpt.parameters()}
        self.gpt: GPT = copy.deepcopy(gpt, dict(empty))
        self._parameters = dict(self.gpt.named_parameters())

    def fill(self, name: str, weight: torch.Tensor) -> None:
        """Give one parameter its weight, of any shape and on any device."""
        self._parameters[name].data = weight

    def take_buffers(self, gpt: GPT) -> None:
        """Give the buffers the values and the device of the trained model's, in their own precision."""
        theirs = dict(gpt.named_buffers())
        for name, buffer in self.gpt.named_buffers():
            buffer.data = theirs[name].to(buffer.dtype, copy=True)

    def empty(self) -> None:
        """Let go of all weights."""
        for parameter in self._parameters.values():
            parameter.data = parameter.new_empty(0)


def _refuse_shared_functions(gpt: GPT) -> None:
    """A function is not copied: one that was made around a module goes on using that one's weights."""
    for name, module in gpt.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        for function in (*vars(module).values(), *hooks):
            held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
            if any(isinstance(one, nn.Module | torch.Tensor) for one in held):
                raise TypeError(f"{name} keeps a function around the trained model, which a copy would use")


def fp32_weights(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter's name and its weight in fp32, whole, on this rank's device; nothing else refers to it.

    It is the optimizer's fp32 copy where there is one. All ranks go through it together, to the end. Raises
    TypeError for a parameter in less than fp32 whose copy is not found.
    """
    optimizer = engine.optimizer
    masters = {
        id(parameter): master
        for parameters, copies in zip(
            getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=False
        )
        for parameter, master in zip(parameters, copies, strict=True)
    }
    unused = engine.module.unused_parameters()
    for name, parameter in engine.module.named_parameters():
        if name not in unused and hasattr(parameter, "ds_id"):
            weight = deepspeed.utils.safe_get_full_fp32_param(parameter)
        elif hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter]):
                weight = parameter.detach().float().clone()
        elif getattr(parameter, "_hp_mapping", masters) is not masters:
            weight = deepspeed.utils.safe_get_full_fp32_param(parameter)
        elif id(parameter) in masters:
            weight = masters[id(parameter)].detach().clone()
        elif parameter.dtype == torch.float32 or name in unused:
            weight = parameter.detach().float().clone()
        else:
            raise TypeError(f"{type(optimizer).__name__} has no fp32 copy of {name}")
        yield name, weight
