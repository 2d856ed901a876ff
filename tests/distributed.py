"""Run a function on several gloo ranks of this machine."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

from tests.processes import ENVIRONMENT, run_all_forked


def of_rank(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables that a launcher gives each rank of one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_on_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> None:
    """`function(rank, *arguments)` in `world_size` forked processes; an exception in any is raised here."""
    port = free_port()
    run_all_forked(
        _as_rank,
        [(function, rank, *arguments) for rank in range(world_size)],
        [ENVIRONMENT | of_rank(rank, world_size, port) for rank in range(world_size)],
    )


def run_on_fresh_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> None:
    """`run_on_ranks` in interpreters of their own, in which nothing has been imported or computed yet."""
    port = free_port()
    torch.multiprocessing.spawn(_as_fresh_rank, (world_size, port, function, *arguments), nprocs=world_size)


def _as_fresh_rank(
    rank: int, world_size: int, port: int, function: Callable[..., Any], *arguments: Any
) -> None:
    os.environ |= of_rank(rank, world_size, port)
    _as_rank(function, rank, *arguments)


def _as_rank(function: Callable[..., Any], *arguments: Any) -> None:
    from training.engine.ranks import join_ranks

    join_ranks()
    function(*arguments)
