"""GPT-2's two sublayers, shared by every block: causal self-attention and the MLP."""

import torch
from torch import nn

from .config import BlockConfig, GPTConfig
from .document_mask import DocumentMask, attend


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and earlier positions.

    Source: Radford et al. 2019 (GPT-2); parameter names as in nanoGPT.

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
        self.document_mask: DocumentMask | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        q, k, v = (
            t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, n_head, T, head size)
            for t in self.c_attn(x).split(self.n_embd, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, self.document_mask, dropout)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))


class MLP(nn.Module):
    """Linear to 4C, GELU (GPT-2's tanh form), linear back to C."""

    def __init__(self, config: GPTConfig | BlockConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))
