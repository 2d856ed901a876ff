"""Topologies that keep more than one residual stream, or look back at all of them.

F_k is the k-th residual branch: a block of the kind x + F1, x + F2 has two.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from .config import TopologyConfig
from .errors import UserError
from .norms import RMSNorm
from .residuals import learned
from .topologies import Branch, State, Topology


class BranchTopology(Topology, ABC):
    """The base of the topologies over branches: `forward` takes new branches to `join` in each call."""

    def __init__(self, config: TopologyConfig, blocks: Sequence[nn.Module]) -> None:
        super().__init__(config, blocks)
        self.n_branch = len(self.branches({}))

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.join(x, self.branches({} if state is None else state))

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

    def methods_between(self) -> list[tuple[nn.Module, str]]:
        """A graph for each number of sources."""
        return [(self, "mean")]

    def mean(self, sources: list[torch.Tensor], query: torch.Tensor) -> torch.Tensor:
        """Sources, each (B, T, C), and a query (C,) -> (B, T, C)."""
        logits = torch.stack([self.norm(source) @ query for source in sources])
        weights = logits.softmax(dim=0).type_as(sources[0])
        return torch.stack([w[..., None] * v for w, v in zip(weights, sources, strict=True)]).sum(dim=0)


STREAMS: dict[str, type[nn.Module]] = {
    "residual": ResiDual,
    "attention_residuals": AttentionResiduals,
}
