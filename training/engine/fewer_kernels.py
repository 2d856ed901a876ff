"""What DeepSpeed's ZeRO-1 in bf16 does to each parameter by itself, done with fewer kernels and passes.

GPT-2 Medium has 292 parameters, and most are small: on a GPU the launches of their kernels are what a step
waits for. What is computed stays the same.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .ranks import deepspeed

_SLICE = 2**22
"""Numbers that a CPU converts at once, on the way to a sum: 16 MB."""


def use_fewer_kernels(optimizer: Any) -> None:
    """Have a `BF16_Optimizer` add a bf16 gradient to its fp32 sum in one pass over it, in place of two, and
    measure and clip all gradients together."""
    optimizer._update_hp_grad = _Accumulation(optimizer)
    module = deepspeed.runtime.bf16_optimizer
    module.get_global_norm_of_tensors = _global_norm
    module.clip_tensors_by_global_norm = _clip


class _Accumulation:
    """`BF16_Optimizer._update_hp_grad`: the bf16 gradient of a parameter is added to its fp32 sum."""

    def __init__(self, optimizer: Any) -> None:
        self._sums, self._has = optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients

    @torch.no_grad()
    def __call__(self, parameter: nn.Parameter, group: int, index: int, clear_lp_grads: bool) -> None:
        if parameter.grad is None:
            return
        total: Any = self._sums[group][index]  # flat
        gradient = parameter.grad.view(total.shape)
        if gradient.is_cuda:
            total.add_(gradient)  # which converts on the way; a CPU makes a copy, here a small one
        else:
            for part, of in zip(total.split(_SLICE), gradient.split(_SLICE), strict=True):
                part.add_(of)
        parameter._hp_grad = total  # type: ignore[attr-defined]
        self._has[group][index] = True
        if clear_lp_grads:
            parameter.grad.zero_()


def _global_norm(input_tensors: Iterable[torch.Tensor], **_: Any) -> torch.Tensor:
    """The L2 norm of all fp32 tensors together, (), or -1 where it is not finite, as DeepSpeed has it.

    It is on the host: DeepSpeed, `_clip` and the log look at it, and a GPU is waited for once.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(input_tensors)))).cpu()
    return torch.where(norm.isfinite(), norm, -1.0)


def _clip(
    input_tensors: Iterable[torch.Tensor], max_norm: float, global_norm: torch.Tensor, **_: Any
) -> torch.Tensor:
    """Scale the gradients, in place, so that their norm is at most `max_norm`."""
    if (factor := float(max_norm / (global_norm + 1e-6))) < 1:
        torch._foreach_mul_(list(input_tensors), factor)
    return global_norm
