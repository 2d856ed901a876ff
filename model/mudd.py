"""MUDD: each block reads mixtures of all earlier outputs, whose weights depend on the token."""

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from .config import BlockConfig, TopologyConfig
from .errors import UserError
from .layers import MLP, CausalSelfAttention
from .norms import RMSNorm
from .residuals import learned
from .topologies import State, Topology

Ways = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What queries, keys and values are made from, each (B, T, C)."""


class ApartLinear(nn.Linear):
    """A linear layer whose thirds of the outputs may have inputs of their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) or (3, B, T, C) -> (B, T, out_features), the first third of which is made from x[0]."""
        if x.dim() == 3:
            return super().forward(x)
        biases = (None,) * 3 if self.bias is None else self.bias.chunk(3)
        parts = zip(x, self.weight.chunk(3), biases, strict=True)
        return torch.cat([F.linear(part, weight, bias) for part, weight, bias in parts], dim=-1)


class ApartAttention(CausalSelfAttention):
    """Attention on x (B, T, C), or on (3, B, T, C): queries, keys and values from one each."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.c_attn = ApartLinear(config.n_embd, 3 * config.n_embd, bias=config.bias)


class MultiwayBlock(nn.Module):
    """x = r + A(N1 q, N1 k, N1 v); x = x + M(N2 x): queries, keys, values and the stream have ways of their
    own into the block, where the topology is `mudd`. In any other it is GPT-2's block."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.ln_1 = config.norm(config.n_embd, bias=config.bias)
        self.attn = ApartAttention(config)
        self.ln_2 = config.norm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, ways: Ways | None = None) -> torch.Tensor:
        """r (B, T, C), and q, k and v where they differ from it -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x if ways is None else torch.stack(ways)))
        return x + self.mlp(self.ln_2(x))


class DenseWeights(nn.Module):
    """gelu(RMSNorm(x) W1) W2 + b: for each token and way the weights of the sources.

    W1 starts at normal(0, 1 / sqrt(C)), W2 at 0, and b at 1 for the last source, 0 for the others.

    Args:
        n_embd: C.
        sources: how many outputs there are to mix.
        ways: how many mixtures are made.
    """

    def __init__(self, n_embd: int, sources: int, ways: int) -> None:
        super().__init__()
        hidden = 4 * sources  # 1 for each weight where there are four ways
        self.shape = (ways, sources)
        self.norm = RMSNorm(n_embd, bias=False, gain="none")
        self.projection_1 = nn.Parameter(torch.empty(n_embd, hidden))
        self.projection_2 = nn.Parameter(torch.zeros(hidden, ways * sources))
        self.constant = learned(torch.eye(sources)[-1].repeat(ways, 1))

    def init_weights(self) -> None:
        """Draw W1."""
        nn.init.normal_(self.projection_1, std=self.projection_1.shape[0] ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, ways, sources), in x's dtype."""
        moved = F.gelu(self.norm(x) @ self.projection_1) @ self.projection_2
        wide = torch.promote_types(x.dtype, torch.float32)  # bf16 rounds coarsely near 1
        return (moved.unflatten(-1, self.shape).to(wide) + self.constant.to(wide)).type_as(x)


class Mudd(Topology):
    """X_l = B_l(x_{l-1}); x_l = sum over j <= l of a_lj X_j, with X_0 the embedding. The weights depend on
    the token: a_l = gelu(RMSNorm(X_l) W1) W2 + b. It starts as the chain.

    With `multiway` blocks four such mixtures are made, of which the next block's queries, keys, values and
    stream are; the model's end has the stream's. With other blocks there is the stream's alone.

    Source: Xiao et al. 2025 (MUDDFormer), arXiv:2502.12170, after its PyTorch code, without its other changes
    to the Transformer: norms for each way, MLPs that widen with depth, a hidden size rounded to 64.

    Args:
        config: the model's shape.
        blocks: the blocks, in order of depth.
        last: how many blocks, from the last, have mixtures after them; 0 for all, as in the paper.
    """

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module], *, last: int = 0) -> None:
        super().__init__(config, blocks)
        n_layer = len(self.blocks)
        if not 0 <= last <= n_layer:
            raise UserError(
                f"model.topology_options.last is {last}: it must be from 0 to {n_layer}, the layers"
            )
        self.first = n_layer - last if last else 0
        self.weights = nn.ModuleList(
            DenseWeights(config.n_embd, layer + 2, 4 if self._is_multiway(layer + 1) else 1)
            for layer in range(self.first, n_layer)
        )

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        state = {} if state is None else state
        outputs, ways = [x], None
        for layer, block in enumerate(self.blocks):
            x = block(x, ways) if is_multiway(block) else self.run(layer, x, state)
            outputs.append(x)
            if layer < self.first:
                continue
            *apart, x = self.mixtures(self.weights[layer - self.first](x), outputs)
            ways = (apart[0], apart[1], apart[2]) if apart else None
        return x

    def methods_between(self) -> list[tuple[nn.Module, str]]:
        """A graph for each depth."""
        return [(self, "mixtures")]

    def mixtures(self, weights: torch.Tensor, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Weights (B, T, ways, sources) and the sources, each (B, T, C) -> a mixture for each way."""
        return [mixture(of_way, outputs) for of_way in weights.unbind(dim=2)]

    def _is_multiway(self, layer: int) -> bool:
        return layer < len(self.blocks) and is_multiway(self.blocks[layer])


def is_multiway(block: nn.Module) -> TypeGuard[MultiwayBlock]:
    """Whether a block takes queries, keys and values from elsewhere."""
    return isinstance(block, MultiwayBlock)


def mixture(weights: torch.Tensor, sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weights (B, T, sources) and the sources, each (B, T, C) -> their weighted sum, (B, T, C)."""
    first, *others = (w[..., None] * x for w, x in zip(weights.unbind(-1), sources, strict=True))
    return sum(others, first)


MUDD_BLOCKS: dict[str, type[nn.Module]] = {"multiway": MultiwayBlock}
MUDD_TOPOLOGIES: dict[str, type[nn.Module]] = {"mudd": Mudd}
