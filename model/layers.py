"""The sublayers of blocks: causal self-attention and the MLP as in GPT-2, and with norms or scales inside."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .config import BlockConfig, GPTConfig, MLPKind
from .document_mask import DocumentMask, attend
from .errors import UserError
from .norms import Gain, RMSNorm
from .shared_contexts import SharedContexts


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and earlier positions.

    `config.qk_norm` puts an RMSNorm on queries and keys before their product: `head` over each head with one
    gain for all (Qwen 3), `head_no_gain` the same without (nanochat), `joint` over all heads together
    (OLMo 2, arXiv:2501.00656). The scale stays 1 / sqrt(head size). Where `config.positions` is `rotary`,
    queries and keys are `rotated` after it.

    Source: Radford et al. 2019 (GPT-2), parameter names as in nanoGPT; Henry et al. 2020, arXiv:2010.04245
    (normalised queries and keys).

    Attributes:
        document_mask: which of those it sees, all where None; `GPT.hidden` sets it at the start of each call.
    """

    def __init__(self, config: GPTConfig | BlockConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.n_embd = config.n_embd
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.qk_norm = config.qk_norm
        self.rotary = config.positions == "rotary"
        if config.qk_norm != "none":
            size = config.n_embd if config.qk_norm == "joint" else config.n_embd // config.n_head
            gain: Gain = "none" if config.qk_norm == "head_no_gain" else "gain"
            self.q_norm = RMSNorm(size, bias=False, gain=gain)
            self.k_norm = RMSNorm(size, bias=False, gain=gain)
        self.document_mask: DocumentMask | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.resid_dropout(self.c_proj(self.mix(*self.qkv(x))))

    def qkv(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, C) -> queries, keys and values, each (B, n_head, T, head size)."""
        q, k, v = self.project(x).split(self.n_embd, dim=2)
        if self.qk_norm == "joint":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = self.normed(self.heads(q), self.heads(k), self.heads(v))
        if not self.rotary:
            return q, k, v
        shared = self.document_mask if isinstance(self.document_mask, SharedContexts) else None
        positions = None if shared is None else shared.positions
        return rotated(q, positions), rotated(k, positions), v

    def normed(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is normed head by head: three (B, n_head, T, head size), before positions enter."""
        if self.qk_norm in ("head", "head_no_gain"):
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> queries, keys and values side by side, (B, T, 3C)."""
        return self.c_attn(x)

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Three (B, n_head, T, head size) -> the heads' values side by side, (B, T, C)."""
        y = attend(q, k, v, self.document_mask, self.dropout if self.training else 0.0)
        return y.transpose(1, 2).flatten(2)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, n_head, T, head size)."""
        return x.unflatten(2, (self.n_head, -1)).transpose(1, 2)


def rotated(x: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Each pair (i, i + D/2) of a head turned by t * 10000^(-2i/D) at position t: (..., T, D) -> (..., T, D).

    The positions (T,) are 0, 1, ... where none are given.

    The angles are computed in fp32 at each call: a buffer would be rounded with the weights in bf16 training.

    Source: Su et al. 2021 (RoFormer), arXiv:2104.09864, in halves as in Llama.
    """
    T, D = x.shape[-2:]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    powers = torch.arange(0, D, 2, device=x.device, dtype=wide.dtype) / D
    t = torch.arange(T, device=x.device, dtype=wide.dtype) if positions is None else positions.type_as(wide)
    angles = t[:, None] * 10000.0**-powers
    cos, sin = angles.cos(), angles.sin()
    a, b = wide.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class MLP(nn.Module):
    """Linear to 4C (or `config.n_inner`), an activation, linear back to C; `config.mlp` says which.

    `gelu_tanh` is GPT-2's form of GELU, `gelu` the exact one (nanoGPT), `relu_squared` relu(x)^2 (So et al.
    2021, arXiv:2109.08668). `swiglu` is silu(gate x) * (c_fc x), Shazeer 2020, arXiv:2002.05202: its hidden
    width is `swiglu_width` in place of 4C, unless n_inner is given, so that it has as many parameters.

    Attributes:
        width: of what `c_proj` reads.
    """

    def __init__(self, config: GPTConfig | BlockConfig) -> None:
        super().__init__()
        gated = config.mlp == "swiglu"
        usual = swiglu_width(config.n_embd) if gated else 4 * config.n_embd
        self.width = config.n_inner or usual
        self.c_fc = nn.Linear(config.n_embd, self.width, bias=config.bias)
        self.gate = nn.Linear(config.n_embd, self.width, bias=config.bias) if gated else None
        self.activation = _ACTIVATIONS[config.mlp]()
        self.c_proj = nn.Linear(self.width, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.dropout(self.c_proj(self.hidden(x)))

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, width)."""
        return self.activated(self.c_fc(x), None if self.gate is None else self.gate(x))

    def activated(self, x: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        """The activation of x, or x times that of the gate where there is one: (B, T, width), as both are."""
        return self.activation(x) if gate is None else self.activation(gate) * x


class SquaredReLU(nn.Module):
    """relu(x)^2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of any shape."""
        return F.relu(x).square()


_ACTIVATIONS: dict[MLPKind, Callable[[], nn.Module]] = {
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "gelu": nn.GELU,
    "relu_squared": SquaredReLU,
    "swiglu": nn.SiLU,
}


def swiglu_width(n_embd: int) -> int:
    """The multiple of 64 next to 8 n_embd / 3, where three matrices have the parameters of two of 4 n_embd.

    Below 512 it is the next multiple of 8, because 64 would be far off.
    """
    step = 64 if 8 * n_embd >= 3 * 512 else 8
    return max(step, step * round(8 * n_embd / 3 / step))


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

    def normed(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Three (B, n_head, T, head size), each normed by its own norm."""
        return self.ln_q(q), self.ln_k(k), self.ln_v(v)


class InnerNormMLP(MLP):
    """The MLP with a norm after its activation, and after the gate's product where there is one."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.ln = config.norm(self.width, bias=config.bias)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, width)."""
        return self.ln(super().hidden(x))
