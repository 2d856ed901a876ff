"""Run a function on several gloo ranks of this machine."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


def run_on_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> None:
    """`function(rank, *arguments)` in `world_size` processes; an exception in any of them is raised here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (world_size, port, function, arguments), nprocs=world_size)


def _rank(
    rank: int, world_size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from training.engine.ranks import join_ranks

    join_ranks()
    try:
        function(rank, *arguments)
    finally:
        torch.distributed.destroy_process_group()
