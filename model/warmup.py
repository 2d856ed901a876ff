"""Blocks whose branches open while the model trains."""

import torch
from torch import nn

from .blocks import PreNormBlock
from .config import BlockConfig
from .errors import UserError


class ResidualWarmupBlock(PreNormBlock):
    """x = x + a A(N1 x); x = x + a M(N2 x), with a = min(t / (T l), 1) in layer l, from 1, at step t.

    At step 0 it is the identity. The layers open one after another: the first at step T, the last at T L.

    Source: Chen et al. 2026 (ProRes), arXiv:2603.05369, its linear schedule. Its T is 1000, a hundredth of
    its 100,000 steps; here it is a hundredth of some 10,000.

    Args:
        config: the model's shape.
        steps: T, the steps in which the first layer opens.
    """

    opening: torch.Tensor

    def __init__(self, config: BlockConfig, *, steps: int = 100) -> None:
        super().__init__(config)
        if steps < 1:
            raise UserError(f"model.block_options.steps is {steps}: it must be at least 1")
        self.training_step = config.training_step
        # In a buffer, so that one compiled graph serves all layers; an integer, which bf16 does not round.
        opening = torch.tensor([steps * (config.layer_idx + 1)])
        self.register_buffer("opening", opening, persistent=False)

    def share(self) -> torch.Tensor:
        """a, the share of a branch that is let through at the model's step: a 0-dim fp32 tensor."""
        return (self.training_step() / self.opening[0]).clamp(max=1.0)

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """a A(N1 x): (B, T, C) -> (B, T, C)."""
        return self.share() * super().attention_branch(x)

    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """a M(N2 x): (B, T, C) -> (B, T, C)."""
        return self.share() * super().mlp_branch(x)


WARMUP_BLOCKS: dict[str, type[nn.Module]] = {"residual_warmup": ResidualWarmupBlock}
