"""How one branch reads, mixes and writes the n residual streams of hyper-connections.

A connection is called as `connection(H, branch)` with the streams H, (B, T, n, C), and the branch F,
(B, T, C) -> (B, T, C), and returns the new streams. What it computes before and after the branch is a method
each, `read` and `write`, because these are compiled apart from the branch.
"""

from abc import ABC, abstractmethod
from itertools import permutations

import torch
from torch import nn

from .norms import RMSNorm
from .residuals import SCALE_LR, learned
from .topologies import Branch


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
        u, H, depth = self.read(H)
        return self.write(H, depth, branch(u))

    def read(self, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """H -> u (B, T, C), A^T H (B, T, n, C), and b."""
        width, depth = self.coefficients(H)
        mixed = width.transpose(-1, -2) @ H
        return mixed[..., 0, :], mixed[..., 1:, :], depth

    def write(self, H: torch.Tensor, depth: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """A^T H, b and F(u) -> the new streams."""
        return H + depth[..., None] * output[..., None, :]

    def coefficients(self, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """H (B, T, n, C) -> (a, A) as (n, 1 + n) and b (n,), for each token where dynamic."""
        if not self.dynamic:
            return self.width, self.depth
        moved = torch.tanh(self.norm(H) @ self.projection)
        width = self.width + self.scale_width * moved[..., :-1]
        return width, self.depth + self.scale_depth * moved[..., -1]


class DynamicConnection(nn.Module, ABC):
    """One branch's u = p^T H and H <- A H + q F(u), with p = sigmoid(.) and q = 2 sigmoid(.).

    The logits of p, q and A are g (RMSNorm(vec H) W) + c, with a scalar gate g for each of the three, from
    0.01. W starts at 0, q at 1, and p with sum 1.

    Args:
        index: which branch this is: p starts at 3/4 for stream `index` modulo n, the rest shares 1/4.
        streams: n, at least 2.
        n_embd: C.
        mix: what the logits of A start at, none for a connection without any.
    """

    def __init__(self, index: int, streams: int, n_embd: int, mix: torch.Tensor) -> None:
        super().__init__()
        self.sizes = [streams, streams, len(mix)] if len(mix) else [streams, streams]
        pre = torch.full((streams,), 0.25 / (streams - 1))
        pre[index % streams] = 0.75
        self.norm = RMSNorm(streams * n_embd, bias=False, gain="none")
        self.projection = nn.Parameter(torch.zeros(streams * n_embd, sum(self.sizes)))
        self.gates = learned(torch.full((len(self.sizes),), 0.01))
        self.constant = learned(torch.cat([pre.logit(), torch.zeros(streams), mix]), SCALE_LR)

    def weights(self, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """H (B, T, n, C) -> p and q (B, T, n), and A's logits where it has some, all at least in fp32."""
        wide = torch.promote_types(H.dtype, torch.float32)  # bf16 rounds coarsely near the constant of 8
        gates = torch.cat([g.expand(size) for g, size in zip(self.gates, self.sizes, strict=True)])
        moved = (self.norm(H.flatten(2)) @ self.projection).to(wide)
        logits = gates.to(wide) * moved + self.constant.to(wide)
        pre, post, *mix = logits.split(self.sizes, dim=-1)
        return pre.sigmoid(), 2 * post.sigmoid(), mix

    @abstractmethod
    def forward(self, H: torch.Tensor, branch: Branch) -> torch.Tensor:
        """(B, T, n, C) -> (B, T, n, C)."""


class IdentityConnection(DynamicConnection):
    """The connection with A = I."""

    def __init__(self, index: int, streams: int, n_embd: int) -> None:
        super().__init__(index, streams, n_embd, torch.zeros(0))

    def forward(self, H: torch.Tensor, branch: Branch) -> torch.Tensor:
        """(B, T, n, C) -> (B, T, n, C)."""
        u, post = self.read(H)
        return self.write(H, post, branch(u))

    def read(self, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """H -> u (B, T, C) and q (B, T, n)."""
        pre, post, _ = self.weights(H)
        return (pre.type_as(H)[..., None, :] @ H).squeeze(-2), post.type_as(H)

    def write(self, H: torch.Tensor, post: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """H, q and F(u) -> the new streams."""
        return H + post[..., None] * output[..., None, :]


class MixingConnection(DynamicConnection):
    """A connection whose A is made from logits by `matrix`."""

    @abstractmethod
    def matrix(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, k) -> A (B, T, n, n), doubly stochastic."""

    def coefficients(self, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """H (B, T, n, C) -> p (B, T, n), q (B, T, n) and A (B, T, n, n), in H's dtype."""
        pre, post, mix = self.weights(H)
        return pre.type_as(H), post.type_as(H), self.matrix(mix[0]).type_as(H)

    def forward(self, H: torch.Tensor, branch: Branch) -> torch.Tensor:
        """(B, T, n, C) -> (B, T, n, C)."""
        u, post, A = self.read(H)
        return self.write(H, post, A, branch(u))

    def read(self, H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """H -> u (B, T, C), q (B, T, n) and A (B, T, n, n)."""
        pre, post, A = self.coefficients(H)
        return (pre[..., None, :] @ H).squeeze(-2), post, A

    def write(
        self, H: torch.Tensor, post: torch.Tensor, A: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        """H, q, A and F(u) -> the new streams."""
        return A @ H + post[..., None] * output[..., None, :]


class SinkhornConnection(MixingConnection):
    """A = the exponentials of n^2 logits, their columns and rows divided by their sums `iterations` times,
    the rows last. A's logits start as 8 I. 1e-6 keeps divisors away from 0, as in DeepSeek-V4."""

    def __init__(self, index: int, streams: int, n_embd: int, iterations: int) -> None:
        super().__init__(index, streams, n_embd, 8.0 * torch.eye(streams).flatten())
        self.streams, self.iterations, self.eps = streams, iterations, 1e-6

    def matrix(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, n^2) -> A (B, T, n, n), whose rows sum to 1 and whose columns nearly do."""
        A = logits.unflatten(-1, (self.streams, self.streams)).softmax(dim=-2) + self.eps
        A = A / (A.sum(dim=-1, keepdim=True) + self.eps)
        for _ in range(self.iterations - 1):
            A = A / (A.sum(dim=-2, keepdim=True) + self.eps)
            A = A / (A.sum(dim=-1, keepdim=True) + self.eps)
        return A


class BirkhoffConnection(MixingConnection):
    """A = sum_i softmax_i(.) P_i over the n! permutation matrices P_i, near I at the start."""

    permutations: torch.Tensor

    def __init__(self, index: int, streams: int, n_embd: int) -> None:
        # The first permutation is the identity.
        orders = torch.tensor(list(permutations(range(streams))))
        mix = torch.zeros(len(orders))
        mix[0] = 8.0
        super().__init__(index, streams, n_embd, mix)
        self.register_buffer("permutations", torch.eye(streams)[orders], persistent=False)

    def matrix(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, n!) -> A (B, T, n, n), whose rows and columns sum to 1."""
        return torch.einsum("btk,knm->btnm", logits.softmax(dim=-1), self.permutations.to(logits))
