"""Blocks that differ from GPT-2's in what attention does with its output, before `c_proj`.

N is the chosen norm, A attention, M the MLP.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import PreNormBlock
from .config import BlockConfig
from .layers import CausalSelfAttention

Granularity = Literal["head", "element"]
Start = Literal["half", "open"]


class ExclusiveAttention(CausalSelfAttention):
    """Attention whose output has no part along the token's own value: y - (y . v / |v|^2) v, for each head.

    The first token sees itself alone, so its output is 0.
    """

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Three (B, n_head, T, head size) -> (B, T, C)."""
        y = super().mix(q, k, v).unflatten(2, (self.n_head, -1))  # (B, T, n_head, head size)
        precise = torch.promote_types(y.dtype, torch.float32)
        own = F.normalize(v.transpose(1, 2).to(precise), dim=-1)
        along = (y.to(precise) * own).sum(-1, keepdim=True)
        return (y - along * own).type_as(y).flatten(2)


class ExclusiveBlock(PreNormBlock):
    """x = x + A(N1 x); x = x + M(N2 x), where A leaves out what lies along the token's own value.

    Source: Zhai 2026 (XSA), arXiv:2603.09078, built from its abstract and from the formula that marin
    (experiments/grug/moe/model.py) and modded-nanogpt (pull request 260) use.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.attn = ExclusiveAttention(config)


class GatedAttention(CausalSelfAttention):
    """Attention whose output is multiplied by a gate that follows from its input.

    Args:
        config: the model's shape.
        granularity: a gate for each head, or for each element of each head.
        start: `half` is sigmoid(W x) at GPT-2's initial weights, near 1/2; `open` is 2 sigmoid(W x) with
            W = 0, so that it starts as plain attention.
    """

    def __init__(self, config: BlockConfig, granularity: Granularity, start: Start) -> None:
        super().__init__(config)
        gates = config.n_head if granularity == "head" else config.n_embd
        self.gate = nn.Linear(config.n_embd, gates, bias=False)
        self.start = start
        self.init_weights()

    def init_weights(self) -> None:
        """W = 0 where the gates start open."""
        if self.start == "open":
            nn.init.zeros_(self.gate.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        y = self.mix(*self.qkv(x)).unflatten(2, (self.n_head, -1))  # (B, T, n_head, head size)
        gate = torch.sigmoid(self.gate(x)).type_as(y).unflatten(2, (self.n_head, -1))
        gate = 2 * gate if self.start == "open" else gate
        return self.resid_dropout(self.c_proj((y * gate).flatten(2)))


class GatedAttentionBlock(PreNormBlock):
    """x = x + A(N1 x); x = x + M(N2 x), where A multiplies its heads by gates that follow from N1 x.

    Source: Qiu et al. 2025, arXiv:2505.06708, built from descriptions of it (Megatron-LM and OLMo-core have
    it); gates that start open: Jordan et al. 2024 (modded-nanogpt), marin (experiments/grug/moe/model.py).

    Args:
        config: the model's shape.
        granularity: a gate for each head, or for each element of each head.
        start: `half` is sigmoid(W x) at GPT-2's initial weights, near 1/2; `open` is 2 sigmoid(W x) with
            W = 0, so that it starts as GPT-2's.
    """

    def __init__(
        self, config: BlockConfig, *, granularity: Granularity = "head", start: Start = "half"
    ) -> None:
        super().__init__(config)
        self.attn = GatedAttention(config, granularity, start)


ATTENTION_BLOCKS: dict[str, type[nn.Module]] = {
    "exclusive": ExclusiveBlock,
    "gated_attention": GatedAttentionBlock,
}
