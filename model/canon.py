"""Blocks with short causal convolutions beside attention."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import PreNormBlock
from .config import BlockConfig
from .errors import UserError
from .layers import MLP, CausalSelfAttention


class CanonLayer(nn.Module):
    """x_t + w_0 * x_t + w_1 * x_{t-1} + ... over the last `kernel` tokens, each channel for itself.

    The weights begin as those of torch's depthwise convolution do, uniform within 1 / sqrt(kernel).

    Attributes:
        crosses_documents: it reads earlier tokens whatever their document, so that no document mask fits.
        weight: (channels, 1, kernel) as in `nn.Conv1d`: the last is w_0.
    """

    crosses_documents = True

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel).uniform_(-1, 1) / kernel**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, channels) -> (B, T, channels)."""
        # A sum of shifted streams: it gives a position the same bits however long the sequence is.
        precise = torch.promote_types(x.dtype, torch.float32)
        T, kernel = x.shape[1], self.weight.shape[2]
        padded = F.pad(x, (0, 0, kernel - 1, 0)).to(precise)
        y = x.to(precise)
        for i in range(kernel):
            y = y + self.weight[:, 0, i] * padded[:, i : i + T]
        return y.type_as(x)


class CanonAttention(CausalSelfAttention):
    """Attention with a Canon layer over queries, keys and values together, before anything else is done."""

    def __init__(self, config: BlockConfig, kernel: int) -> None:
        super().__init__(config)
        self.canon = CanonLayer(self.c_attn.out_features, kernel)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, 3C)."""
        return self.canon(super().project(x))


class CanonMLP(MLP):
    """The MLP with a Canon layer before its activation, and over its gate where there is one."""

    def __init__(self, config: BlockConfig, kernel: int) -> None:
        super().__init__(config)
        self.canon = CanonLayer(self.width * (1 if self.gate is None else 2), kernel)

    def activated(self, x: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        """The activation of x, or x times that of the gate where there is one: (B, T, width), as both are."""
        if gate is None:
            return super().activated(self.canon(x), None)
        return super().activated(*self.canon(torch.cat([x, gate], dim=-1)).chunk(2, dim=-1))


class CanonBlock(PreNormBlock):
    """x = x + A(K_A N1 x); x = x + M(K_C N2 x): pre-norm with Canon layers K before the sublayers and within.

    Source: Allen-Zhu 2025, arXiv:2512.17351, built from the code of facebookresearch/PhysicsLM4, without its
    optional activation and biases.

    Args:
        config: the model's shape.
        positions: where they stand: A before attention, B on queries, keys and values, C before the MLP, D
            before the MLP's activation.
        kernel: how many tokens one reads, its own among them.
    """

    def __init__(self, config: BlockConfig, *, positions: str = "ABCD", kernel: int = 4) -> None:
        super().__init__(config)
        if not positions or set(positions) - set("ABCD") or len(set(positions)) < len(positions):
            raise UserError(f"model.block_options.positions is '{positions}': it must be some of A, B, C, D")
        if kernel < 1:
            raise UserError(f"model.block_options.kernel is {kernel}: it must be at least 1")
        if "B" in positions:
            self.attn = CanonAttention(config, kernel)
        if "D" in positions:
            self.mlp = CanonMLP(config, kernel)
        self.canon_a = CanonLayer(config.n_embd, kernel) if "A" in positions else nn.Identity()
        self.canon_c = CanonLayer(config.n_embd, kernel) if "C" in positions else nn.Identity()

    def attention_branch(self, x: torch.Tensor) -> torch.Tensor:
        """A(K_A N1 x): (B, T, C) -> (B, T, C)."""
        return self.attn(self.canon_a(self.ln_1(x)))

    def mlp_branch(self, x: torch.Tensor) -> torch.Tensor:
        """M(K_C N2 x): (B, T, C) -> (B, T, C)."""
        return self.mlp(self.canon_c(self.ln_2(x)))


CANON_BLOCKS: dict[str, type[nn.Module]] = {"canon": CanonBlock}
