"""Blocks at the target's own width, built one after another, so that memory holds one of them at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .candidate import SEED, STEADY_STEP, Candidate, seed_all

_POOL = 1 << 20
_LARGE = 1 << 16
_INITS = (nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.xavier_normal_)


def full_width_blocks(candidate: Candidate) -> Iterator[nn.Module]:
    """The target's blocks in order of depth, in fp32 and eval mode.

    Their weights are drawn anew, so that none stays 0, as a gate's initial weight may be: behind a closed
    gate no leak shows.
    """
    candidate.designs.training_step.set(STEADY_STEP)
    draws = _RepeatedDraws()
    for given in candidate.designs.block_configs(candidate.config):
        seed_all()
        with draws:
            block = candidate.designs.one_block(candidate.config, given)
            with torch.no_grad():
                for parameter in block.parameters():
                    if parameter.ndim >= 2:
                        parameter.normal_(std=parameter.shape[-1] ** -0.5)
                    else:  # away from 0, and what was positive stays positive
                        parameter.add_(torch.randn(parameter.shape).abs() / 2)
        yield block.eval()


class _RepeatedDraws(TorchFunctionMode):
    """While it is entered, whatever fills a large tensor at random repeats 2^20 numbers from
    normal(0, 1 / sqrt(columns)): to draw all numbers of a block takes 30 times as long, and its own initial
    weights are replaced anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(SEED))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = func in (torch.Tensor.normal_, torch.Tensor.uniform_) or func in _INITS
        tensor = args[0] if args else kwargs.get("tensor")
        if not drawn or tensor.numel() <= _LARGE or not tensor.is_contiguous():
            return func(*args, **kwargs)
        return _fill(tensor, self.pool * tensor.shape[-1] ** -0.5)


def _fill(tensor: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().view(-1)
    whole = flat.numel() // len(pool) * len(pool)
    flat[:whole].view(-1, len(pool)).copy_(pool)
    flat[whole:].copy_(pool[: flat.numel() - whole])
    return tensor
