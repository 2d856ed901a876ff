"""Blocks that differ from GPT-2's in how a branch joins the residual stream.

N is the chosen norm, A attention, M the MLP. AdamW moves a scalar by about the learning rate per step,
whatever its gradient, so a scale would hardly leave its start: such scalars learn at `SCALE_LR` times the
model's rate, the low end of what speedruns of GPT-2 give theirs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import PreNormBlock, ResidualBlock
from .config import BlockConfig
from .errors import UserError
from .layers import MLP, CausalSelfAttention

SCALE_LR = 10.0


def learned(value: torch.Tensor, lr_mult: float = 1.0) -> nn.Parameter:
    """A parameter at `lr_mult` times the learning rate that weight decay leaves alone."""
    parameter = nn.Parameter(value)
    vars(parameter).update(_no_weight_decay=True, _lr_mult=lr_mult)
    return parameter


class BareBlock(ResidualBlock):
    """x = x + A x; x = x + M x: no norms, for a topology that has its own, such as `residual`."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.attn = CausalSelfAttention(config)
        self.mlp = MLP(config)

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """A x: (B, T, C) -> (B, T, C)."""
        return self.attn(x)

    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """M x: (B, T, C) -> (B, T, C)."""
        return self.mlp(x)


class ReZeroBlock(BareBlock):
    """x = x + a1 A x; x = x + a2 M x, with scalars a1 = a2 = 0 at the start and no norm. (The paper's
    Transformer has one a for both.)

    Source: Bachlechner et al. 2020, arXiv:2003.04887.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.scale_1 = learned(torch.zeros(1), SCALE_LR)
        self.scale_2 = learned(torch.zeros(1), SCALE_LR)

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """a1 A x: (B, T, C) -> (B, T, C)."""
        return self.scale_1 * super().attention_branch(x)

    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """a2 M x: (B, T, C) -> (B, T, C)."""
        return self.scale_2 * super().mlp_branch(x)


class _ScaledPreNormBlock(PreNormBlock):
    """x = x + s1 A(N1 x); x = x + s2 M(N2 x), where s has `size` values that start at `init`."""

    def __init__(self, config: BlockConfig, size: int, init: float) -> None:
        super().__init__(config)
        self.scale_1 = learned(torch.full((size,), init), SCALE_LR)
        self.scale_2 = learned(torch.full((size,), init), SCALE_LR)

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """s1 A(N1 x): (B, T, C) -> (B, T, C)."""
        return self.scale_1 * super().attention_branch(x)

    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """s2 M(N2 x): (B, T, C) -> (B, T, C)."""
        return self.scale_2 * super().mlp_branch(x)


class SkipInitBlock(_ScaledPreNormBlock):
    """x = x + a1 A(N1 x); x = x + a2 M(N2 x), with a scalar a for each branch.

    Source: De & Smith 2020, arXiv:2002.10444.

    Args:
        config: the model's shape.
        init: what each a starts at.
    """

    def __init__(self, config: BlockConfig, *, init: float = 0.0) -> None:
        super().__init__(config, 1, init)


class LayerScaleBlock(_ScaledPreNormBlock):
    """x = x + diag(s1) A(N1 x); x = x + diag(s2) M(N2 x), with a scale s for each channel.

    Source: Touvron et al. 2021 (CaiT), arXiv:2103.17239, which starts s at 0.1 up to 18 layers, at 1e-5 up to
    24, and at 1e-6 in deeper models.

    Args:
        config: the model's shape.
        init: what each s starts at.
    """

    def __init__(self, config: BlockConfig, *, init: float = 0.1) -> None:
        super().__init__(config, config.n_embd, init)


class GatedBlock(nn.Module):
    """x = (1 - t1) x + t1 A(N1 x); x = (1 - t2) x + t2 M(N2 x), with t = sigmoid(W x + b) for each channel.

    b starts at -2, so that at first a branch replaces about an eighth of the stream.

    Source: Srivastava et al. 2015 (highway networks), arXiv:1505.00387.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.ln_1 = config.norm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.gate_1 = nn.Linear(config.n_embd, config.n_embd)
        self.ln_2 = config.norm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.gate_2 = nn.Linear(config.n_embd, config.n_embd)
        self.init_weights()

    def init_weights(self) -> None:
        """Close the gates: b = -2."""
        nn.init.constant_(self.gate_1.bias, -2.0)
        nn.init.constant_(self.gate_2.bias, -2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + torch.sigmoid(self.gate_1(x)) * (self.attn(self.ln_1(x)) - x)
        return x + torch.sigmoid(self.gate_2(x)) * (self.mlp(self.ln_2(x)) - x)


class StochasticDepthBlock(PreNormBlock):
    """x = x + d1 A(N1 x); x = x + d2 M(N2 x).

    In training d is 0 with probability p_l = p l / L for layer l of L, else 1 / (1 - p_l), drawn for each
    sequence and branch; in evaluation d is 1.

    Source: Huang et al. 2016, arXiv:1603.09382; branches of a Transformer: Fan et al. 2019, arXiv:1909.11556.

    Args:
        config: the model's shape.
        p: the last layer's probability.
    """

    def __init__(self, config: BlockConfig, *, p: float = 0.1) -> None:
        super().__init__(config)
        if not 0.0 <= p < 1.0:
            raise UserError(f"model.block_options.p is {p}: it must be at least 0 and below 1")
        self.p = p * (config.layer_idx + 1) / config.n_layer

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """d1 A(N1 x): (B, T, C) -> (B, T, C)."""
        return self._drop(super().attention_branch(x))

    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """d2 M(N2 x): (B, T, C) -> (B, T, C)."""
        return self._drop(super().mlp_branch(x))

    def _drop(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return branch
        # Float32: in bf16 the rescaling itself would be rounded.
        kept = F.dropout(torch.ones(branch.shape[0], 1, 1, device=branch.device), self.p)
        return (branch * kept).type_as(branch)


class ValueResidualAttention(CausalSelfAttention):
    """Attention over v_l <- (1 - m) v_l + m v_1: the values of layer l mixed with the first layer's.

    Attributes:
        mix_first: m, a learned scalar; None in the first layer, where it would change nothing.
    """

    def __init__(self, config: BlockConfig, init: float) -> None:
        super().__init__(config)
        self.mix_first = learned(torch.full((1,), init), SCALE_LR) if config.layer_idx > 0 else None

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:  # type: ignore[override]
        """(B, T, C) -> (B, T, C); the first layer leaves its values in `state`."""
        q, k, v = self.qkv(x)
        if self.mix_first is None:
            state["first_values"] = v
        else:
            # Under autocast a parameter is in fp32, and attention wants one precision.
            v = (v + self.mix_first * (state["first_values"] - v)).type_as(v)
        return self.resid_dropout(self.c_proj(self.mix(q, k, v)))


class ValueResidualBlock(nn.Module):
    """x = x + A(N1 x); x = x + M(N2 x), where A mixes its values with the first layer's.

    Source: Zhou et al. 2024 (ResFormer), arXiv:2410.17897.

    Args:
        config: the model's shape.
        init: what the first layer's share m starts at, in each later layer.
    """

    def __init__(self, config: BlockConfig, *, init: float = 0.5) -> None:
        super().__init__()
        self.ln_1 = config.norm(config.n_embd, bias=config.bias)
        self.attn = ValueResidualAttention(config, init)
        self.ln_2 = config.norm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), state)
        return x + self.mlp(self.ln_2(x))


class ValueEmbeddingAttention(CausalSelfAttention):
    """Attention over v <- v + s E[token]: the values, and a row for each token of an embedding of their own.

    Attributes:
        value_embedding: E, (vocab_size, C), not decayed.
        value_scale: s, a learned scalar.
    """

    def __init__(self, config: BlockConfig, init: float) -> None:
        super().__init__(config)
        self.value_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        vars(self.value_embedding.weight).update(_no_weight_decay=True)
        self.value_scale = learned(torch.full((1,), init), SCALE_LR)

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:  # type: ignore[override]
        """(B, T, C) -> (B, T, C); `state["idx"]` holds the token ids (B, T)."""
        q, k, v = self.qkv(x)
        if "idx" not in state:
            raise UserError(
                "model.block value_embedding needs the token ids: let the topology's forward take `state`, "
                "and give it to the blocks"
            )
        rows = self.heads(self.value_embedding(state["idx"]))
        v = (v + self.value_scale * rows).type_as(v)
        return self.resid_dropout(self.c_proj(self.mix(q, k, v)))


class ValueEmbeddingBlock(nn.Module):
    """x = x + A(N1 x); x = x + M(N2 x), where A adds an embedding of the tokens to its values, in the last
    layer and each `every`-th before it.

    The embeddings start at normal(0, 0.02), as all do here: nanochat's have 1 / sqrt(C), modded-nanogpt's
    0.01. Both have a gate for each head and token, from 1, in the place of s. nanochat decays them at a
    hundredth of a rate of their own; here they are not decayed.

    Source: Jordan et al. 2024 (modded-nanogpt); Karpathy 2025 (nanochat), after ResFormer, arXiv:2410.17897.

    Args:
        config: the model's shape.
        every: the distance of layers that have an embedding; nanochat's is 2.
        init: what each s starts at.
    """

    def __init__(self, config: BlockConfig, *, every: int = 2, init: float = 1.0) -> None:
        super().__init__()
        if every < 1:
            raise UserError(f"model.block_options.every is {every}: it must be at least 1")
        self.embeds = (config.n_layer - 1 - config.layer_idx) % every == 0
        self.ln_1 = config.norm(config.n_embd, bias=config.bias)
        self.attn = ValueEmbeddingAttention(config, init) if self.embeds else CausalSelfAttention(config)
        self.ln_2 = config.norm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        normed = self.ln_1(x)
        x = x + (self.attn(normed, state) if self.embeds else self.attn(normed))
        return x + self.mlp(self.ln_2(x))


RESIDUALS: dict[str, type[nn.Module]] = {
    "bare": BareBlock,
    "rezero": ReZeroBlock,
    "skipinit": SkipInitBlock,
    "layerscale": LayerScaleBlock,
    "gated": GatedBlock,
    "stochastic_depth": StochasticDepthBlock,
    "value_residual": ValueResidualBlock,
    "value_embedding": ValueEmbeddingBlock,
}
