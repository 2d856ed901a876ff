"""Transformer blocks: `Block(config)`, from (B, T, C) to (B, T, C).

N is the chosen norm, A attention, M the MLP. Each block lays out its own norms, so each reads as its formula.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn

from .config import BlockConfig
from .layers import MLP, CausalSelfAttention


class ResidualBlock(nn.Module, ABC):
    """x = x + F1(x); x = x + F2(x): a block whose two branches a topology may join in other ways."""

    @abstractmethod
    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """F1: (B, T, C) -> (B, T, C)."""

    @abstractmethod
    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """F2: (B, T, C) -> (B, T, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention_branch(x)
        return x + self.mlp_branch(x)


class PreNormBlock(ResidualBlock):
    """x = x + A(N1 x); x = x + M(N2 x). GPT-2's block.

    Source: Radford et al. 2019; Xiong et al. 2020, arXiv:2002.04745.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.ln_1 = config.norm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = config.norm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """A(N1 x): (B, T, C) -> (B, T, C)."""
        return self.attn(self.ln_1(x))

    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """M(N2 x): (B, T, C) -> (B, T, C)."""
        return self.mlp(self.ln_2(x))


class PostNormBlock(nn.Module):
    """x = N1(x + A x); x = N2(x + M x). The first Transformer's block; it wants a long warm-up.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.attn = CausalSelfAttention(config)
        self.ln_1 = config.norm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.ln_2 = config.norm(config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.ln_1(x + self.attn(x))
        return self.ln_2(x + self.mlp(x))


class ParallelBlock(nn.Module):
    """x = x + A(N1 x) + M(N2 x): both sublayers read the same stream, each through its own norm.

    Source: Black et al. 2022 (GPT-NeoX), arXiv:2204.06745; with one norm for both: Wang & Komatsuzaki 2021
    (GPT-J), Chowdhery et al. 2022 (PaLM), arXiv:2204.02311.

    Args:
        config: the model's shape.
        shared_norm: whether N1 and N2 are one norm.
    """

    def __init__(self, config: BlockConfig, *, shared_norm: bool = False) -> None:
        super().__init__()
        self.ln_1 = config.norm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = None if shared_norm else config.norm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        normed = self.ln_1(x)
        return x + self.attn(normed) + self.mlp(normed if self.ln_2 is None else self.ln_2(x))


BLOCKS: dict[str, type[nn.Module]] = {"pre": PreNormBlock, "post": PostNormBlock, "parallel": ParallelBlock}
