"""Transformer blocks: `Block(config)`, from (B, T, C) to (B, T, C).

N is the chosen norm, A attention, M the MLP. Each block lays out its own norms, so each reads as its formula.
"""

import torch
from torch import nn

from .config import BlockConfig
from .layers import MLP, CausalSelfAttention


class PreNormBlock(nn.Module):
    """x = x + A(N1 x); x = x + M(N2 x). GPT-2's block.

    Source: Radford et al. 2019; Xiong et al. 2020, arXiv:2002.04745.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.ln_1 = config.norm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = config.norm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PostNormBlock(PreNormBlock):
    """x = N1(x + A x); x = N2(x + M x). The first Transformer's block; it wants a long warm-up.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.ln_1(x + self.attn(x))
        return self.ln_2(x + self.mlp(x))


class ParallelBlock(PreNormBlock):
    """x = x + A(N1 x) + M(N2 x): both sublayers read the same stream, each through its own norm.

    Source: Black et al. 2022 (GPT-NeoX), arXiv:2204.06745.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return x + self.attn(self.ln_1(x)) + self.mlp(self.ln_2(x))


BLOCKS: dict[str, type[nn.Module]] = {"pre": PreNormBlock, "post": PostNormBlock, "parallel": ParallelBlock}
