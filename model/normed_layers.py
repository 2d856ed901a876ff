"""Attention and MLP with norms and scales of their own inside."""

import torch
from torch import nn

from .config import BlockConfig
from .errors import UserError
from .layers import MLP, CausalSelfAttention


class InnerNormAttention(CausalSelfAttention):
    """Attention with a norm before `c_proj`."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.ln = config.norm(config.n_embd, bias=config.bias)

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Three (B, n_head, T, head size) -> (B, T, C)."""
        return self.ln(super().mix(q, k, v))


class ScaledHeadsAttention(CausalSelfAttention):
    """Attention that multiplies each head by a learned scalar before `c_proj`."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.head_scale = nn.Parameter(torch.ones(config.n_head))

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Three (B, n_head, T, head size) -> (B, T, C)."""
        y = super().mix(q, k, v).unflatten(2, (self.n_head, -1))
        return (y * self.head_scale.type_as(y)[:, None]).flatten(2)


class QKVNormAttention(CausalSelfAttention):
    """Attention with the chosen norm over each head's queries, keys and values."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        if config.qk_norm != "none":
            raise UserError(
                f"model.qk_norm is '{config.qk_norm}', but this block norms queries and keys itself: set none"
            )
        self.ln_q, self.ln_k, self.ln_v = (
            config.norm(config.n_embd // config.n_head, bias=config.bias) for _ in range(3)
        )

    def qkv(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, C) -> queries, keys and values, each (B, n_head, T, head size)."""
        q, k, v = super().qkv(x)
        return self.ln_q(q), self.ln_k(k), self.ln_v(v)


class InnerNormMLP(MLP):
    """The MLP with a norm after its activation."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.ln = config.norm(4 * config.n_embd, bias=config.bias)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, 4C)."""
        return self.ln(super().hidden(x))
