"""Topologies that keep more than one residual stream, or look back at all of them.

F_k is the k-th residual branch: a block of the kind x + F1, x + F2 has two. n is the number of streams; they
are H, (B, T, n, C), and start as n copies of the embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import permutations

import torch
from torch import nn

from .config import TopologyConfig
from .errors import UserError
from .norms import RMSNorm
from .residuals import SCALE_LR, learned
from .topologies import Branch, State, Topology


class BranchTopology(Topology, ABC):
    """The base of the topologies over branches: `forward` takes new branches to `join` in each call."""

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module]) -> None:
        super().__init__(config, blocks)
        self.n_branch = len(self.branches({}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        state: State = {}
        return self.join(x, self.branches(state))

    @abstractmethod
    def join(self, x: torch.Tensor, branches: list[Branch]) -> torch.Tensor:
        """The embedding (B, T, C) -> what the final norm reads, (B, T, C)."""


class ResiDual(BranchTopology):
    """x = N_k(x + F_k x) and s = s + F_k x, both from the embedding; the result is x + N(s).

    The blocks are `bare`: the norms are here, one for each branch and one for s.

    Source: Xie et al. 2023, arXiv:2304.14802.
    """

    final_norm = False

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module]) -> None:
        super().__init__(config, blocks)
        self.norms = nn.ModuleList(config.norm(config.n_embd, bias=config.bias) for _ in range(self.n_branch))
        self.norm = config.norm(config.n_embd, bias=config.bias)

    def join(self, x: torch.Tensor, branches: list[Branch]) -> torch.Tensor:
        """The embedding (B, T, C) -> x + N(s), (B, T, C)."""
        s = x
        for branch, norm in zip(branches, self.norms, strict=True):
            output = branch(x)
            x, s = norm(x + output), s + output
        return x + self.norm(s)


class HyperConnection(nn.Module):
    """One branch's u = a^T H and H <- A^T H + b F(u): from a, A and b for all tokens, or with a dynamic part.

    The dynamic part of (a, A) is s1 tanh(RMSNorm(H) W), and of b s2 tanh(RMSNorm(H) w), without gains; W and
    w start at 0, s1 and s2 at 0.01.

    Args:
        index: which branch this is: a starts as stream `index` modulo n.
        streams: n.
        n_embd: C.
        dynamic: whether there is a dynamic part.
    """

    def __init__(self, index: int, streams: int, n_embd: int, dynamic: bool) -> None:
        super().__init__()
        one_hot = torch.eye(streams)[index % streams]
        self.width = learned(torch.cat([one_hot[:, None], torch.eye(streams)], dim=1))
        self.depth = learned(torch.ones(streams))
        self.dynamic = dynamic
        if dynamic:
            self.norm = RMSNorm(n_embd, bias=False, gain="none")
            self.projection = nn.Parameter(torch.zeros(n_embd, streams + 2))
            self.scale_width = learned(torch.full((1,), 0.01))
            self.scale_depth = learned(torch.full((1,), 0.01))

    def forward(self, H: torch.Tensor, branch: Branch) -> torch.Tensor:
        """(B, T, n, C) -> (B, T, n, C)."""
        width, depth = self.coefficients(H)
        mixed = width.transpose(-1, -2) @ H
        u, H = mixed[..., 0, :], mixed[..., 1:, :]
        return H + depth[..., None] * branch(u)[..., None, :]

    def coefficients(self, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """H (B, T, n, C) -> (a, A) as (n, 1 + n) and b (n,), for each token where dynamic."""
        if not self.dynamic:
            return self.width, self.depth
        moved = torch.tanh(self.norm(H) @ self.projection)
        width = self.width + self.scale_width * moved[..., :-1]
        return width, self.depth + self.scale_depth * moved[..., -1]


class HyperConnections(BranchTopology):
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
        super().__init__(config, blocks)
        if streams < 1:
            raise UserError(f"model.topology_options.streams is {streams}: it must be at least 1")
        self.streams = streams
        self.connections = nn.ModuleList(
            HyperConnection(k, streams, config.n_embd, dynamic) for k in range(self.n_branch)
        )

    def join(self, x: torch.Tensor, branches: list[Branch]) -> torch.Tensor:
        """The embedding (B, T, C) -> the mean of the streams, (B, T, C)."""
        H = x[:, :, None].expand(-1, -1, self.streams, -1)
        for connection, branch in zip(self.connections, branches, strict=True):
            H = connection(H, branch)
        return H.mean(dim=2)


class BirkhoffConnection(nn.Module):
    """One branch's u = p^T H and H <- A H + q F(u), with A doubly stochastic.

    The logits of p, q and A are g (RMSNorm(vec H) W) + c, with a scalar gate g for each of the three.

    Args:
        index: which branch this is: p starts at 3/4 for stream `index` modulo n, the rest shares 1/4.
        streams: n.
        n_embd: C.
    """

    permutations: torch.Tensor

    def __init__(self, index: int, streams: int, n_embd: int) -> None:
        super().__init__()
        # The first permutation is the identity.
        orders = torch.tensor(list(permutations(range(streams))))
        self.register_buffer("permutations", torch.eye(streams)[orders], persistent=False)
        self.sizes = [streams, streams, len(orders)]
        pre = torch.full((streams,), 0.25 / (streams - 1))
        pre[index % streams] = 0.75
        mix = torch.zeros(len(orders))
        mix[0] = 8.0
        self.norm = RMSNorm(streams * n_embd, bias=False, gain="none")
        self.projection = nn.Parameter(torch.zeros(streams * n_embd, sum(self.sizes)))
        self.gates = learned(torch.full((3,), 0.01))
        self.constant = learned(torch.cat([pre.logit(), torch.zeros(streams), mix]), SCALE_LR)

    def coefficients(self, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """H (B, T, n, C) -> p (B, T, n), q (B, T, n) and A (B, T, n, n), in H's dtype."""
        wide = torch.promote_types(H.dtype, torch.float32)  # bf16 rounds coarsely near the constant of 8
        gates = torch.cat([g.expand(size) for g, size in zip(self.gates, self.sizes, strict=True)])
        moved = (self.norm(H.flatten(2)) @ self.projection).to(wide)
        logits = gates.to(wide) * moved + self.constant.to(wide)
        pre, post, mix = logits.split(self.sizes, dim=-1)
        A = torch.einsum("btk,knm->btnm", mix.softmax(dim=-1), self.permutations.to(wide))
        return pre.sigmoid().type_as(H), 2 * post.sigmoid().type_as(H), A.type_as(H)

    def forward(self, H: torch.Tensor, branch: Branch) -> torch.Tensor:
        """(B, T, n, C) -> (B, T, n, C)."""
        pre, post, A = self.coefficients(H)
        u = (pre[..., None, :] @ H).squeeze(-2)
        return A @ H + post[..., None] * branch(u)[..., None, :]


class MHCLite(BranchTopology):
    """u = p_k^T H; H = A_k H + q_k F_k(u); the result is H's mean over the streams.

    p = sigmoid(.), q = 2 sigmoid(.), A = sum_i softmax_i(.) P_i over the n! permutation matrices P_i, so that
    its rows and columns sum to 1. The logits depend on the token through RMSNorm(vec H) W. W starts at 0, q
    at 1, p with sum 1, and A near I: the chain. The logits' constants learn at `SCALE_LR` times the model's
    rate, which is safe here, because no A makes the streams larger.

    Source: Yang & Gao 2026, arXiv:2601.05732, after mHC: Xie et al. 2025, arXiv:2512.24880.

    Args:
        config: the model's shape.
        blocks: the blocks, in order of depth.
        streams: n, from 2 to 5: there are n! logits.
    """

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module], *, streams: int = 4) -> None:
        super().__init__(config, blocks)
        if not 2 <= streams <= 5:
            raise UserError(
                f"model.topology_options.streams is {streams}: it must be from 2 to 5, because there is a "
                "logit for each permutation of the streams"
            )
        self.streams = streams
        self.connections = nn.ModuleList(
            BirkhoffConnection(k, streams, config.n_embd) for k in range(self.n_branch)
        )

    def join(self, x: torch.Tensor, branches: list[Branch]) -> torch.Tensor:
        """The embedding (B, T, C) -> the mean of the streams, (B, T, C)."""
        H = x[:, :, None].expand(-1, -1, self.streams, -1)
        for connection, branch in zip(self.connections, branches, strict=True):
            H = connection(H, branch)
        return H.mean(dim=2)


class AttentionResiduals(BranchTopology):
    """u_k = sum_i softmax_i(w_k . RMSNorm(v_i)) v_i, over the embedding, the sums of each group of earlier
    branches' outputs F(u), and the sum of the present group so far. One more such mean is the result.

    w starts at 0, a plain mean, and is not decayed. F_1 reads the embedding, the one source there is.

    Source: Kimi Team 2026 (Block AttnRes), arXiv:2603.15031.

    Args:
        config: the model's shape.
        blocks: the blocks, in order of depth.
        group: branches that are summed to one source; 1 is the paper's Full AttnRes.
    """

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module], *, group: int = 8) -> None:
        super().__init__(config, blocks)
        if group < 1:
            raise UserError(f"model.topology_options.group is {group}: it must be at least 1")
        self.group = group
        self.norm = RMSNorm(config.n_embd, bias=False, gain="none")
        self.queries = learned(torch.zeros(self.n_branch, config.n_embd))

    def join(self, x: torch.Tensor, branches: list[Branch]) -> torch.Tensor:
        """The embedding (B, T, C) -> the last mean, (B, T, C)."""
        sources = [x]
        for k, (branch, query) in enumerate(zip(branches, self.queries, strict=True)):
            output = branch(x)
            if k % self.group == 0:
                sources.append(output)
            else:
                sources[-1] = sources[-1] + output
            x = self.mean(sources, query)
        return x

    def mean(self, sources: list[torch.Tensor], query: torch.Tensor) -> torch.Tensor:
        """Sources, each (B, T, C), and a query (C,) -> (B, T, C)."""
        logits = torch.stack([self.norm(source) @ query for source in sources])
        weights = logits.softmax(dim=0).type_as(sources[0])
        return torch.stack([w[..., None] * v for w, v in zip(weights, sources, strict=True)]).sum(dim=0)


STREAMS: dict[str, type[nn.Module]] = {
    "residual": ResiDual,
    "hyper_connections": HyperConnections,
    "mhc_lite": MHCLite,
    "attention_residuals": AttentionResiduals,
}
