"""Hyper-connections: n residual streams, which each branch reads, mixes and writes with learned weights.

F_k is the k-th residual branch, as in `streams`. The streams are H, (B, T, n, C), and start as n copies of
the embedding.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .config import TopologyConfig
from .connections import BirkhoffConnection, HyperConnection, IdentityConnection, SinkhornConnection
from .errors import UserError
from .streams import BranchTopology
from .topologies import Branch


class StreamTopology(BranchTopology):
    """The base of the topologies over n streams: a connection for each branch, and H's mean at the end.

    Attributes:
        connections: for each branch a module `connection(H, branch)`, (B, T, n, C) -> (B, T, n, C).
    """

    connections: nn.ModuleList

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module], streams: int) -> None:
        super().__init__(config, blocks)
        if streams < 1:
            raise UserError(f"model.topology_options.streams is {streams}: it must be at least 1")
        self.streams = streams

    def methods_between(self) -> list[tuple[nn.Module, str]]:
        """What the connections do before and after their branches."""
        return [(connection, name) for connection in self.connections for name in ("read", "write")]

    def join(self, x: torch.Tensor, branches: list[Branch]) -> torch.Tensor:
        """The embedding (B, T, C) -> the mean of the streams, (B, T, C)."""
        H = x[:, :, None].expand(-1, -1, self.streams, -1)
        for connection, branch in zip(self.connections, branches, strict=True):
            H = connection(H, branch)
        return H.mean(dim=2)


class HyperConnections(StreamTopology):
    """u = a_k^T H; H = A_k^T H + b_k F_k(u); the result is H's mean over the streams.

    a_k starts as stream k modulo n, A_k as I, b_k as 1. With the mean that is the chain; the paper's sum is n
    times as long, which the final norm takes out. a, A and b are not decayed, and learn at the model's rate:
    a step in every A_k compounds over the layers.

    Source: Zhu et al. 2024, arXiv:2409.19606.

    Args:
        config: the model's shape.
        blocks: the blocks, in order of depth.
        streams: n; the paper's best is 4.
        dynamic: whether a, A and b also depend on the token: see `HyperConnection`.
    """

    def __init__(
        self,
        config: TopologyConfig,
        blocks: Sequence[nn.Module],
        *,
        streams: int = 4,
        dynamic: bool = False,
    ) -> None:
        super().__init__(config, blocks, streams)
        self.connections = nn.ModuleList(
            HyperConnection(k, streams, config.n_embd, dynamic) for k in range(self.n_branch)
        )


class IdentityHyperConnections(StreamTopology):
    """u = p_k^T H; H = H + q_k F_k(u); the result is H's mean over the streams.

    mHC with A = I: the streams differ by what was written to them, and are never mixed. p and q depend on the
    token, see `DynamicConnection`; they start so that this is the chain.

    Source: after Xie et al. 2025 (mHC), arXiv:2512.24880, whose matrix A is left out. Public results for
    "identity hyper-connections" name no formula; this one was written for the lab.

    Args:
        config: the model's shape.
        blocks: the blocks, in order of depth.
        streams: n, at least 2.
    """

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module], *, streams: int = 4) -> None:
        super().__init__(config, blocks, at_least_2(streams))
        self.connections = nn.ModuleList(
            IdentityConnection(k, streams, config.n_embd) for k in range(self.n_branch)
        )


class MHC(StreamTopology):
    """u = p_k^T H; H = A_k H + q_k F_k(u); the result is H's mean over the streams.

    A is made doubly stochastic by Sinkhorn's iteration, see `SinkhornConnection`, and starts near I, p with
    sum 1, q at 1: the chain. That start is the lab's: in transformers A starts uniform. The logits' constants
    learn at `SCALE_LR` times the model's rate, because no A makes the streams larger.

    Source: Xie et al. 2025, arXiv:2512.24880, as DeepSeek-V4 in transformers has it.

    Args:
        config: the model's shape.
        blocks: the blocks, in order of depth.
        streams: n, at least 2.
        iterations: how often columns and rows are divided by their sums.
    """

    def __init__(
        self,
        config: TopologyConfig,
        blocks: Sequence[nn.Module],
        *,
        streams: int = 4,
        iterations: int = 20,
    ) -> None:
        super().__init__(config, blocks, at_least_2(streams))
        if iterations < 1:
            raise UserError(f"model.topology_options.iterations is {iterations}: it must be at least 1")
        self.connections = nn.ModuleList(
            SinkhornConnection(k, streams, config.n_embd, iterations) for k in range(self.n_branch)
        )


class MHCLite(StreamTopology):
    """u = p_k^T H; H = A_k H + q_k F_k(u); the result is H's mean over the streams.

    A is a mean of permutations, see `BirkhoffConnection`, and starts near I, p with sum 1, q at 1: the chain.
    The logits' constants learn at `SCALE_LR` times the model's rate, which is safe here, because no A makes
    the streams larger.

    Source: Yang & Gao 2026, arXiv:2601.05732, after mHC: Xie et al. 2025, arXiv:2512.24880.

    Args:
        config: the model's shape.
        blocks: the blocks, in order of depth.
        streams: n, from 2 to 5: there are n! logits.
    """

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module], *, streams: int = 4) -> None:
        super().__init__(config, blocks, streams)
        if not 2 <= streams <= 5:
            raise UserError(
                f"model.topology_options.streams is {streams}: it must be from 2 to 5, because there is a "
                "logit for each permutation of the streams"
            )
        self.connections = nn.ModuleList(
            BirkhoffConnection(k, streams, config.n_embd) for k in range(self.n_branch)
        )


def at_least_2(streams: int) -> int:
    """The number of streams. Raises UserError for one that leaves nothing to choose from."""
    if streams < 2:
        raise UserError(f"model.topology_options.streams is {streams}: it must be at least 2")
    return streams


HYPER_CONNECTIONS: dict[str, type[nn.Module]] = {
    "hyper_connections": HyperConnections,
    "identity_connections": IdentityHyperConnections,
    "mhc": MHC,
    "mhc_lite": MHCLite,
}
