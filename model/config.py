"""The shape of a GPT-2 and the names of the designs plugged into it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

PRESETS: dict[str, dict[str, int]] = {
    "gpt2_small": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2_medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2_large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2_xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}
"""GPT-2's four sizes: 124M, 355M, 774M and 1.5B parameters (Radford et al. 2019)."""


@dataclass(frozen=True)
class GPTConfig:
    """The model: GPT-2's shape, and the norm and block that are studied.

    Attributes:
        n_layer: number of transformer blocks
        n_head: attention heads; divides n_embd
        n_embd: width of the residual stream
        block_size: longest sequence, in tokens
        vocab_size: rows of the tied embedding; GPT-2's 50257 padded to a multiple of 64. Left out of a
            recipe, it follows from data.tokenizer
        dropout: probability, in attention and after each sublayer
        bias: biases in the linear layers and LayerNorms, as GPT-2 has
        norm: a registered name, package.module:Class, or path/to/file.py:Class
        block: a registered name, package.module:Class, or path/to/file.py:Class
    """

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    block_size: int = 1024
    vocab_size: int = 50304
    dropout: float = 0.0
    bias: bool = True
    norm: str = "layernorm"
    block: str = "pre"

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"model.n_embd is {self.n_embd}, which model.n_head {self.n_head} does not divide"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout is {self.dropout}: it must be at least 0 and below 1")


@dataclass(frozen=True)
class BlockConfig:
    """What a `Block(config)` is given: GPTConfig's fields, which layer it is, and the norm's class."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    dropout: float
    bias: bool
    norm: Callable[..., nn.Module]
    """Builds the chosen norm: `config.norm(config.n_embd, bias=config.bias)`."""
    layer_idx: int
    """0 for the block next to the embedding, n_layer - 1 for the last."""
