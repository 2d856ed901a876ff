"""The shape of a GPT-2 and the names of the designs plugged into it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import UserError
from .values import FROM_0, FROM_1, Range, check_ranges

if TYPE_CHECKING:  # what only describes a model is read without torch
    from torch import nn

    from .training_step import TrainingStep

IGNORED_TARGET = -1
"""A target that is not learnt and not scored."""

PRESETS: dict[str, dict[str, int]] = {
    "gpt2_small": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2_medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2_large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2_xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}
"""GPT-2's four sizes: 124M, 355M, 774M and 1.5B parameters (Radford et al. 2019)."""

QKNorm = Literal["none", "head", "head_no_gain", "joint"]
"""What attention does to queries and keys: see `model.layers.CausalSelfAttention`."""
Positions = Literal["learned", "rotary"]
"""How a token's position enters: an embedding at the bottom, or a rotation of each query and key."""
MLPKind = Literal["gelu_tanh", "gelu", "relu_squared", "swiglu"]
"""What the MLP computes: see `model.layers.MLP`."""
RANGES = {
    "n_layer": FROM_1,
    "n_head": FROM_1,
    "n_embd": FROM_1,
    "n_inner": FROM_1,
    "block_size": FROM_1,
    "vocab_size": FROM_1,
    "dropout": Range(at_least=0, below=1),
    "z_loss": FROM_0,
    "logit_softcap": FROM_0,
}
"""Of GPTConfig's numbers."""


@dataclass(frozen=True)
class GPTConfig:
    """The model: GPT-2's shape and fixed parts, and the norm, block and topology that are studied.

    Attributes:
        n_layer: number of transformer blocks
        n_head: attention heads; divides n_embd
        n_embd: width of the residual stream
        block_size: longest sequence, in tokens
        vocab_size: rows of embedding and head; GPT-2's 50257 padded to a multiple of 64. Left out of a
            recipe, it follows from data.tokenizer
        dropout: probability, in attention and after each sublayer
        bias: biases in the linear layers and LayerNorms, as GPT-2 has
        qk_norm: RMSNorm of queries and keys: none, head (each head its own), head_no_gain, or joint (all
            heads together, as OLMo 2)
        mlp: the MLP's activation: gelu_tanh (GPT-2's), gelu (the exact one), relu_squared, or swiglu, which
            has a gate and as many parameters
        n_inner: width of the MLP; null is 4 n_embd, or of swiglu the width with as many parameters. A
            baseline that is widened has the parameters of a design that adds some
        positions: learned, as GPT-2's, or rotary: queries and keys are turned, half against half, base 10000
        tied: whether the head's weight is the token embedding's
        z_loss: the coefficient of mean(logsumexp(logits)^2), whose gradient training adds; every loss that is
            reported stays the cross-entropy
        logit_softcap: logits become cap * tanh(logits / cap), in training and afterwards; 0 leaves them
        norm: a registered name, package.module:Class, or path/to/file.py:Class
        norm_options: the norm's own options, e.g. --model.norm_options.eps 1e-6
        block: a registered name, package.module:Class, or path/to/file.py:Class
        block_options: the block's own options
        topology: how blocks are joined across depth: a registered name, package.module:Class, or
            path/to/file.py:Class
        topology_options: the topology's own options
    """

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    block_size: int = 1024
    vocab_size: int = 50304
    dropout: float = 0.0
    bias: bool = True
    qk_norm: QKNorm = "none"
    mlp: MLPKind = "gelu_tanh"
    n_inner: int | None = None
    positions: Positions = "learned"
    tied: bool = True
    z_loss: float = 0.0
    logit_softcap: float = 0.0
    norm: str = "layernorm"
    norm_options: dict[str, Any] = field(default_factory=dict)
    block: str = "pre"
    block_options: dict[str, Any] = field(default_factory=dict)
    topology: str = "chain"
    topology_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges("model", self, RANGES)
        if self.n_embd % self.n_head:
            raise UserError(
                f"model.n_embd is {self.n_embd}, which model.n_head {self.n_head} does not divide"
            )
        if self.positions == "rotary" and (self.n_embd // self.n_head) % 2:
            raise UserError(
                f"model.positions is rotary, which turns pairs: model.n_embd / model.n_head is "
                f"{self.n_embd // self.n_head}, and must be even"
            )

    @property
    def size(self) -> str:
        """The shape in words, with what of the fixed parts is not GPT-2's: `12L 12H 768d swiglu untied`."""
        words = [f"{self.n_layer}L {self.n_head}H {self.n_embd}d"]
        words += [self.mlp] if self.mlp != GPTConfig.mlp else []
        words += [] if self.n_inner is None else [f"n_inner={self.n_inner}"]
        words += [self.positions] if self.positions != GPTConfig.positions else []
        words += [] if self.tied else ["untied"]
        for name in ("z_loss", "logit_softcap"):
            words += [f"{name}={getattr(self, name):g}"] if getattr(self, name) else []
        return " ".join(words)


def _step_0() -> "TrainingStep":
    from .training_step import TrainingStep

    return TrainingStep()


@dataclass(frozen=True, kw_only=True)
class TopologyConfig:
    """What a `Topology(config, blocks)` is given: GPTConfig's fields, and the norm's class."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    dropout: float
    bias: bool
    qk_norm: QKNorm
    mlp: MLPKind = "gelu_tanh"
    n_inner: int | None = None
    positions: Positions = "learned"
    norm: "type[nn.Module]"
    """Builds the chosen norm, its options set: `config.norm(config.n_embd, bias=config.bias)`."""
    training_step: "TrainingStep" = field(default_factory=_step_0)
    """Called, it gives the step that the model is at; a model's blocks and topology share it."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig(TopologyConfig):
    """What a `Block(config)` is given: the same, and which layer it is."""

    layer_idx: int
    """0 for the block next to the embedding, n_layer - 1 for the last."""
