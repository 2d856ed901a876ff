"""Topologies: how blocks are joined across depth. `Topology(config, blocks)`, from (B, T, C) to (B, T, C).

B_l is the l-th block, l from 1; a topology over branches takes each residual block x + F1, x + F2 apart.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import nn

from .blocks import ResidualBlock
from .config import TopologyConfig
from .errors import UserError
from .norms import RMSNorm
from .residuals import SCALE_LR, learned

State = dict[str, Any]
"""What one forward's topology and blocks share, new each time: `state["idx"]` holds the token ids (B, T). A
block or topology whose `forward` names `state` is called as `block(x, state)` or `topology(x, state)`."""
Branch = Callable[[torch.Tensor], torch.Tensor]


class Topology(nn.Module):
    """The base of the registered topologies; a user's own need not inherit from it.

    Attributes:
        final_norm: whether the model's final norm follows; a block class may say `final_norm = False` too.
        blocks: the blocks, in a plain list, because the model itself registers them.
    """

    final_norm = True

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = list(blocks)
        self._takes_state = [takes_state(block) for block in blocks]

    def run(self, layer: int, x: torch.Tensor, state: State) -> torch.Tensor:
        """Block `layer`, counted from 0, on x: (B, T, C) -> (B, T, C)."""
        block = self.blocks[layer]
        return block(x, state) if self._takes_state[layer] else block(x)

    def methods_between(self) -> list[tuple[nn.Module, str]]:
        """What is computed between blocks or branches and is worth a graph of its own where blocks are
        compiled, as (module, name of its method)."""
        return []

    def branches(self, state: State) -> list[Branch]:
        """The residual branches F in order of depth, each (B, T, C) -> (B, T, C): two for a `ResidualBlock`,
        B(x) - x for any other block."""
        found: list[Branch] = []
        for layer, block in enumerate(self.blocks):
            if is_residual(block):
                found += [block.attention_branch, block.mlp_branch]
            else:
                found.append(partial(self._residual, layer, state))
        return found

    def _residual(self, layer: int, state: State, x: torch.Tensor) -> torch.Tensor:
        return self.run(layer, x, state) - x


class Chain(Topology):
    """x = B_l(x), block after block: GPT-2's."""

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        state = {} if state is None else state
        for layer in range(len(self.blocks)):
            x = self.run(layer, x, state)
        return x


class EmbeddingShortcut(Topology):
    """x = B_l(r_l x + z_l x_0), with x_0 = RMSNorm(embedding) without a gain and learned scalars r and z.

    z learns at `SCALE_LR` times the rate of r: every r multiplies the whole stream, so that a step in all of
    them compounds over the layers. (nanochat's z learns 100 times as fast as r, but there the stream starts
    as x_0 itself; GPT-2's starts with entries near 0.03.)

    Source: Jordan et al. 2024 (modded-nanogpt), Karpathy 2025 (nanochat).

    Args:
        config: the model's shape.
        blocks: the blocks, in order of depth.
        stream: what each r starts at.
        embedding: what each z starts at.
    """

    def __init__(
        self,
        config: TopologyConfig,
        blocks: Sequence[nn.Module],
        *,
        stream: float = 1.0,
        embedding: float = 0.0,
    ) -> None:
        super().__init__(config, blocks)
        self.norm = RMSNorm(config.n_embd, bias=False, gain="none")
        self.stream = learned(torch.full((len(self.blocks),), stream))
        self.embedding = learned(torch.full((len(self.blocks),), embedding), SCALE_LR)

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        state = {} if state is None else state
        x_0 = self.norm(x)
        for layer in range(len(self.blocks)):
            x = self.run(layer, self.stream[layer] * x + self.embedding[layer] * x_0, state)
        return x


class DenseFormer(Topology):
    """X_l = B_l(x_{l-1}); x_l = sum over j <= l of a_lj X_j, with X_0 = x_0 the embedding.

    a_l starts at (0, ..., 0, 1), which is the chain.

    Source: Pagliardini et al. 2024, arXiv:2402.02622.
    """

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module]) -> None:
        super().__init__(config, blocks)
        depths = range(1, len(self.blocks) + 1)
        self.weights = nn.ParameterList(learned(torch.eye(depth + 1)[depth]) for depth in depths)

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        state = {} if state is None else state
        outputs = [x]
        for layer, weights in enumerate(self.weights):
            outputs.append(self.run(layer, x, state))
            x = self.mixture(weights, outputs)
        return x

    def methods_between(self) -> list[tuple[nn.Module, str]]:
        """A graph for each depth."""
        return [(self, "mixture")]

    def mixture(self, weights: torch.Tensor, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Weights (n,) and n outputs, each (B, T, C) -> their weighted sum, (B, T, C)."""
        x = weights[0] * outputs[0]
        for weight, output in zip(weights[1:], outputs[1:], strict=True):
            x = x + weight * output
        return x


class UNet(Topology):
    """x = B_l(x + w_i X_i) for l = L - 1 - i in the second half, with X_i block i's output in the first half
    (both counted from 0) and a learned scalar w_i; x = B_l(x) elsewhere.

    Source: Jordan et al. 2024 (modded-nanogpt), after Ronneberger et al. 2015, arXiv:1505.04597.

    Args:
        config: the model's shape.
        blocks: the blocks, in order of depth.
        init: what each w starts at; the source's is 1, and 0 is the chain.
    """

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module], *, init: float = 0.0) -> None:
        super().__init__(config, blocks)
        if len(self.blocks) < 2:
            raise UserError(f"model.n_layer is {len(self.blocks)}, but a skip needs 2 layers")
        self.skips = learned(torch.full((len(self.blocks) // 2,), init), SCALE_LR)

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        state = {} if state is None else state
        n_layer = len(self.blocks)
        saved: list[torch.Tensor] = []
        for layer in range(n_layer):
            i = n_layer - 1 - layer
            if i < len(saved):
                x = x + self.skips[i] * saved[i]
            x = self.run(layer, x, state)
            if layer < n_layer // 2:
                saved.append(x)
        return x


class Backout(Topology):
    """The chain's x_L - b x_m, with x_m what block m = floor(L / 2), counted from 0, puts out and a learned
    scalar b: what later layers needed from the first half need not count in the prediction.

    Source: Jordan et al. 2024 (modded-nanogpt, pull request 140); m as in Karpathy 2025 (nanochat).

    Args:
        config: the model's shape.
        blocks: the blocks, in order of depth.
        init: what b starts at; nanochat's is 0.2, modded-nanogpt's 0.5, and 0 is the chain.
    """

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module], *, init: float = 0.0) -> None:
        super().__init__(config, blocks)
        if len(self.blocks) < 2:
            raise UserError(f"model.n_layer is {len(self.blocks)}, but a layer in the middle needs 2 layers")
        self.backout = learned(torch.full((1,), init), SCALE_LR)

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        state = {} if state is None else state
        middle = x
        for layer in range(len(self.blocks)):
            x = self.run(layer, x, state)
            if layer == len(self.blocks) // 2:
                middle = x
        return x - self.backout * middle


class EmbeddingNorm(Chain):
    """The chain from N(embedding), with the chosen norm N over the sum of token and position.

    Source: Kim et al. 2025 (Peri-LN), arXiv:2502.02732, with `sandwich` blocks and RMSNorm.
    """

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module]) -> None:
        super().__init__(config, blocks)
        self.norm = config.norm(config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return super().forward(self.norm(x), state)


def is_residual(block: nn.Module) -> TypeGuard[ResidualBlock]:
    """Whether a block is x + F1, x + F2 and nothing else, so that a topology may take it apart."""
    return isinstance(block, ResidualBlock) and type(block).forward is ResidualBlock.forward


def takes_state(module: nn.Module) -> bool:
    """Whether a block or topology is called with the state too."""
    return "state" in inspect.signature(module.forward).parameters


TOPOLOGIES: dict[str, type[nn.Module]] = {
    "chain": Chain,
    "x0": EmbeddingShortcut,
    "denseformer": DenseFormer,
    "unet": UNet,
    "backout": Backout,
    "embedding_norm": EmbeddingNorm,
}
