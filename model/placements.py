"""Blocks that differ from GPT-2's in where their norms stand.

N is the chosen norm, A attention, M the MLP, L the number of blocks.
"""

import math

import torch
from torch import nn

from .blocks import PostNormBlock, PreNormBlock, ResidualBlock
from .config import BlockConfig
from .errors import UserError
from .layers import (
    MLP,
    CausalSelfAttention,
    InnerNormAttention,
    InnerNormMLP,
    QKVNormAttention,
    ScaledHeadsAttention,
)


class SandwichBlock(ResidualBlock):
    """x = x + N1'(A(N1 x)); x = x + N2'(M(N2 x)): norms before and after each sublayer.

    Source: Ding et al. 2021 (CogView), arXiv:2105.13290; Kim et al. 2025 (Peri-LN), arXiv:2502.02732.

    Args:
        config: the model's shape.
        output_gain: what the output norms' gains begin at, beside their usual beginning.
    """

    def __init__(self, config: BlockConfig, *, output_gain: float = 1.0) -> None:
        super().__init__()
        self.ln_1 = _norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_1_out = _norm(config)
        self.ln_2 = _norm(config)
        self.mlp = MLP(config)
        self.ln_2_out = _norm(config)
        if output_gain != 1.0:
            for norm in (self.ln_1_out, self.ln_2_out):
                _multiply_gain(norm, output_gain)

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """N1'(A(N1 x)): (B, T, C) -> (B, T, C)."""
        return self.ln_1_out(self.attn(self.ln_1(x)))

    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """N2'(M(N2 x)): (B, T, C) -> (B, T, C)."""
        return self.ln_2_out(self.mlp(self.ln_2(x)))


class OutputNormBlock(ResidualBlock):
    """x = x + N1(A x); x = x + N2(M x): the norm after the sublayer, none before. It wants `qk_norm`.

    Source: OLMo 2025 (OLMo 2), arXiv:2501.00656.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.attn = CausalSelfAttention(config)
        self.ln_1 = _norm(config)
        self.mlp = MLP(config)
        self.ln_2 = _norm(config)

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """N1(A x): (B, T, C) -> (B, T, C)."""
        return self.ln_1(self.attn(x))

    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """N2(M x): (B, T, C) -> (B, T, C)."""
        return self.ln_2(self.mlp(x))


class SubNormBlock(PreNormBlock):
    """Pre-norm, and one norm more within each sublayer, before its `c_proj`.

    Initialisation is Xavier's; values, projections and the MLP have gain sqrt(ln(2L)).

    Source: Wang et al. 2022 (Magneto, Sub-LN), arXiv:2210.06423.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.attn = InnerNormAttention(config)
        self.mlp = InnerNormMLP(config)
        self.gain = math.sqrt(math.log(2 * config.n_layer))

    def init_weights(self) -> None:
        """Xavier's, with gain sqrt(ln(2L))."""
        _init_xavier(self.attn, self.mlp, self.gain)


class NormFormerBlock(PreNormBlock):
    """x = x + N1'(A'(N1 x)); x = x + M'(N2 x): pre-norm with a norm after attention and one within the MLP.

    A' multiplies each head by a learned scalar, from 1, before `c_proj`; M' has a norm after its activation.

    Source: Shleifer et al. 2021, arXiv:2110.09456.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.attn = ScaledHeadsAttention(config)
        self.ln_1_out = _norm(config)
        self.mlp = InnerNormMLP(config)

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """N1'(A'(N1 x)): (B, T, C) -> (B, T, C)."""
        return self.ln_1_out(self.attn(self.ln_1(x)))


class DeepNormBlock(PostNormBlock):
    """x = N1(alpha x + A x); x = N2(alpha x + M x), alpha = (2L)^(1/4).

    Initialisation is Xavier's; values, projections and the MLP have gain (8L)^(-1/4).

    Source: Wang et al. 2022, arXiv:2203.00555 (its decoder-only constants).
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.alpha = (2 * config.n_layer) ** 0.25
        self.beta = (8 * config.n_layer) ** -0.25

    def init_weights(self) -> None:
        """Xavier's, with gain (8L)^(-1/4)."""
        _init_xavier(self.attn, self.mlp, self.beta)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.ln_1(self.alpha * x + self.attn(x))
        return self.ln_2(self.alpha * x + self.mlp(x))


class B2TBlock(PostNormBlock):
    """y = N1(x + A x); x = N2(x + y + M y): post-norm, and the block's input reaches its last norm.

    Source: Takase et al. 2022, arXiv:2206.00330 (bottom-to-top connection).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        y = self.ln_1(x + self.attn(x))
        return self.ln_2(x + y + self.mlp(y))


class MixNormBlock(PreNormBlock):
    """Post-norm in the first floor(post_share * L) blocks, pre-norm in the others.

    Source: Li et al. 2024 (Mix-LN), arXiv:2412.13795.

    Args:
        config: the model's shape, and which layer this is.
        post_share: the share of the blocks that are post-norm, from 0 to 1.
    """

    def __init__(self, config: BlockConfig, *, post_share: float = 0.25) -> None:
        super().__init__(config)
        if not 0.0 <= post_share <= 1.0:
            raise UserError(f"post_share is {post_share}: it must be from 0 to 1")
        self.post = config.layer_idx < math.floor(post_share * config.n_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        if not self.post:
            return super().forward(x)
        x = self.ln_1(x + self.attn(x))
        return self.ln_2(x + self.mlp(x))


class ScaledNormBlock(PreNormBlock):
    """x = x + A(s N1 x); x = x + M(s N2 x), s = 1 / sqrt(l) in the l-th block, l from 1.

    Source: Sun et al. 2025 (LayerNorm Scaling), arXiv:2502.05795.

    Args:
        config: the model's shape, and which layer this is.
        plain_init: whether projections begin with standard deviation 0.02, not GPT-2's 0.02 / sqrt(2L), as
            the authors ask.
    """

    def __init__(self, config: BlockConfig, *, plain_init: bool = True) -> None:
        super().__init__(config)
        self.scale = 1 / math.sqrt(config.layer_idx + 1)
        self.plain_init = plain_init

    def init_weights(self) -> None:
        """Projections from normal(0, 0.02), where `plain_init`."""
        if self.plain_init:
            for projection in (self.attn.c_proj, self.mlp.c_proj):
                nn.init.normal_(projection.weight, std=0.02)

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """A(s N1 x): (B, T, C) -> (B, T, C)."""
        return self.attn(self.scale * self.ln_1(x))

    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """M(s N2 x): (B, T, C) -> (B, T, C)."""
        return self.mlp(self.scale * self.ln_2(x))


class HybridNormBlock(nn.Module):
    """y = x + A'(x); x = N2(y) + M(N2 y), A' attention with queries, keys and values normed head by head.

    Source: Zhuo et al. 2025, arXiv:2503.04598.

    Args:
        config: the model's shape, and which layer this is.
        first_block_pre: whether block 0 is y = x + A'(N1 x); x = y + M(N2 y), the paper's HybridNorm*.
    """

    def __init__(self, config: BlockConfig, *, first_block_pre: bool = True) -> None:
        super().__init__()
        self.ln_1 = _norm(config) if first_block_pre and config.layer_idx == 0 else None
        self.attn = QKVNormAttention(config)
        self.ln_2 = _norm(config)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        y = x + self.attn(x if self.ln_1 is None else self.ln_1(x))
        z = self.ln_2(y)
        return (z if self.ln_1 is None else y) + self.mlp(z)


class KeelBlock(nn.Module):
    """x = N1'(a x + A(N1 x)); x = N2'(a x + M(N2 x)), a = 2L, the number of sublayers.

    The model's first sublayer is pre-norm, x + A(N1 x).

    Source: Chen & Wei 2026, arXiv:2601.19895.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.alpha = 2 * config.n_layer
        self.ln_1 = _norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_1_out = _norm(config) if config.layer_idx > 0 else None
        self.ln_2 = _norm(config)
        self.mlp = MLP(config)
        self.ln_2_out = _norm(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        attended = self.attn(self.ln_1(x))
        x = x + attended if self.ln_1_out is None else self.ln_1_out(self.alpha * x + attended)
        return self.ln_2_out(self.alpha * x + self.mlp(self.ln_2(x)))


def _norm(config: BlockConfig) -> nn.Module:
    return config.norm(config.n_embd, bias=config.bias)


def _multiply_gain(norm: nn.Module, factor: float) -> None:
    weight, offset = getattr(norm, "weight", None), getattr(norm, "offset", 0.0)
    if weight is None:
        raise UserError(f"output_gain is {factor}, but {type(norm).__name__} has no gain that could hold it")
    with torch.no_grad():
        weight.copy_(factor * (offset + weight) - offset)


def _init_xavier(attn: CausalSelfAttention, mlp: MLP, gain: float) -> None:
    """Xavier normal, gain 1 for queries and keys."""
    q, k, v = attn.c_attn.weight.detach().chunk(3)
    for weight in (q, k):
        nn.init.xavier_normal_(weight)
    gate = [] if mlp.gate is None else [mlp.gate.weight]
    for weight in (v, attn.c_proj.weight, mlp.c_fc.weight, *gate, mlp.c_proj.weight):
        nn.init.xavier_normal_(weight, gain=gain)


PLACEMENTS: dict[str, type[nn.Module]] = {
    "sandwich": SandwichBlock,
    "olmo2": OutputNormBlock,
    "subln": SubNormBlock,
    "normformer": NormFormerBlock,
    "deepnorm": DeepNormBlock,
    "b2t": B2TBlock,
    "mix_ln": MixNormBlock,
    "lns": ScaledNormBlock,
    "hybridnorm": HybridNormBlock,
    "keel": KeelBlock,
}
