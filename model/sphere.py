"""nGPT: a model on the unit hypersphere (Loshchilov et al. 2024, arXiv:2410.01131).

Every vector of C numbers has length 1: hidden states, embeddings, and the rows or columns of the matrices
that meet the stream. The paper's code normalises the matrices after each optimizer step; here it happens in
the forward, because the optimizer's fp32 copies of the weights live elsewhere and are split over the GPUs
(ZeRO). The lengths of the stored rows then change no output, but they grow in training, and each step turns a
longer row less. Scales are stored divided by sqrt(C) and multiplied back, as in the paper: AdamW moves them
by sqrt(C) times the learning rate.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from .config import BlockConfig, TopologyConfig
from .errors import UserError
from .layers import MLP, CausalSelfAttention
from .loss import Head
from .residuals import learned
from .topologies import Chain, State


def unit(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """x / |x| along `dim`, computed in fp32."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=dim).type_as(x)


class UnitLinear(nn.Linear):
    """x W^T with W's rows (dim 1) or columns (dim 0) at length 1, whatever the stored weight's; no bias."""

    def __init__(self, in_features: int, out_features: int, dim: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.dim = dim
        vars(self.weight).update(_no_weight_decay=True)

    def init_weights(self) -> None:
        """Start at length 1, which the paper's learning rates assume."""
        with torch.no_grad():
            self.weight.copy_(unit(self.weight, self.dim))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(input, unit(self.weight, self.dim))


class UnitHead(Head):
    """The head with rows at length 1, whatever the stored weight's."""

    def __init__(self, n_embd: int, vocab_size: int, z_loss: float = 0.0, softcap: float = 0.0) -> None:
        super().__init__(n_embd, vocab_size, z_loss, softcap)
        vars(self.weight).update(_no_weight_decay=True)

    def init_weights(self) -> None:
        """Start at length 1, which the paper's learning rates assume."""
        with torch.no_grad():
            self.weight.copy_(unit(self.weight))

    def rows(self) -> torch.Tensor:
        """What the logits are products with: (vocab_size, C)."""
        return unit(self.weight)


class UnitEmbedding(nn.Embedding):
    """The embedding of an untied model, from rows of length 1. `Sphere` norms what it gives."""

    def __init__(self, vocab_size: int, n_embd: int) -> None:
        super().__init__(vocab_size, n_embd)
        vars(self.weight).update(_no_weight_decay=True)

    def init_weights(self) -> None:
        """Start at length 1, which the paper's learning rates assume."""
        with torch.no_grad():
            self.weight.copy_(unit(self.weight))


class Scale(nn.Module):
    """Learned factors of effective value `init`, stored as 1 / sqrt(n_embd)."""

    def __init__(self, shape: tuple[int, ...], init: float, n_embd: int) -> None:
        super().__init__()
        self.factor = init * math.sqrt(n_embd)
        self.weight = learned(torch.full(shape, 1 / math.sqrt(n_embd)))

    def forward(self) -> torch.Tensor:
        """The effective values."""
        return self.factor * self.weight


class SphereAttention(CausalSelfAttention):
    """Attention with queries s * q / |q| and keys s * k / |k|, and sqrt(head size) as the softmax's scale.

    Rotary positions enter before s, as in the authors' code.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        C = config.n_embd
        self.c_attn = UnitLinear(C, 3 * C, dim=1)
        self.c_proj = UnitLinear(C, C, dim=0)
        self.qk_scale = Scale((config.n_head, 1, C // config.n_head), 1.0, C)

    def qkv(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, C) -> queries, keys and values, each (B, n_head, T, head size)."""
        q, k, v = super().qkv(x)
        s, head_size = self.qk_scale(), q.shape[-1]
        # The product is divided by sqrt(head size) again.
        return (head_size * s * unit(q)).type_as(v), (s * unit(k)).type_as(v), v


class SphereMLP(MLP):
    """The MLP with s * sqrt(C) on what its activation reads; with `swiglu`, the paper's s_u and s_v."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        C = config.n_embd
        self.c_fc = UnitLinear(C, self.width, dim=1)
        self.c_proj = UnitLinear(self.width, C, dim=0)
        # Stored as 1, as the paper has it.
        self.hidden_scale = learned(torch.ones(self.width))
        if self.gate is not None:
            self.gate = UnitLinear(C, self.width, dim=1)
            self.gate_scale = learned(torch.ones(self.width))

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, width)."""
        root = math.sqrt(x.shape[-1])
        if self.gate is None:
            return self.activation(self.c_fc(x) * (root * self.hidden_scale))
        return self.activated(self.c_fc(x) * self.hidden_scale, self.gate(x) * (root * self.gate_scale))


class SphereBlock(nn.Module):
    """h = Norm(h + a1 (Norm(A h) - h)); h = Norm(h + a2 (Norm(M h) - h)), where Norm makes length 1.

    a1 and a2 are learned for each channel from 0.05, and used without their sign. There are no biases and no
    other norms: `config.norm` and `config.bias` change nothing. Its topology is `sphere`.

    Source: Loshchilov et al. 2024, arXiv:2410.01131; with the MLP and positions of the config.

    Args:
        config: the model's shape.
        init: what a1 and a2 start at.
    """

    final_norm = False

    def __init__(self, config: BlockConfig, *, init: float = 0.05) -> None:
        super().__init__()
        if config.qk_norm != "none":
            raise UserError(
                f"it normalises queries and keys itself: set model.qk_norm none, not {config.qk_norm}"
            )
        config = replace(config, bias=False)
        self.attn = SphereAttention(config)
        self.mlp = SphereMLP(config)
        self.step_1 = Scale((config.n_embd,), init, config.n_embd)
        self.step_2 = Scale((config.n_embd,), init, config.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = unit(x + self.step_1().abs() * (unit(self.attn(x)) - x))
        return unit(x + self.step_2().abs() * (unit(self.mlp(x)) - x))


class Sphere(Chain):
    """s B_L(... B_1(Norm x)), where Norm makes length 1 and s is one learned scalar.

    The head's rows have length 1 too (`unit_embedding`), so that a logit is s times a cosine. The paper has
    one s for each token.

    Args:
        config: the model's shape.
        blocks: `ngpt` blocks.
        init: what s starts at; the paper's 1 needs more steps to useful logits.
    """

    final_norm = False
    unit_embedding = True

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module], *, init: float = 2.0) -> None:
        super().__init__(config, blocks)
        self.logit_scale = Scale((1,), init, config.n_embd)

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.logit_scale() * super().forward(unit(x), state)


SPHERE_BLOCKS: dict[str, type[nn.Module]] = {"ngpt": SphereBlock}
SPHERE_TOPOLOGIES: dict[str, type[nn.Module]] = {"sphere": Sphere}
