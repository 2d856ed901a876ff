"""Run a function on several gloo ranks of this machine."""

import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from tests.processes import ENVIRONMENT, fork


class RankFailedError(Exception):
    """What a rank printed before it ended."""


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
    """`function(rank, *arguments)` in `world_size` processes.

    Raises:
        RankFailedError: the first rank that failed, with its traceback. The others are ended.
    """
    port = free_port()
    with tempfile.TemporaryFile() as printed:
        ranks = [
            fork(
                as_rank, function, rank, arguments, stdout=printed, stderr=printed,
                environment=ENVIRONMENT | of_rank(rank, world_size, port),
            )
            for rank in range(world_size)
        ]  # fmt: skip
        running = dict(zip((rank.client for rank in ranks), ranks, strict=True))
        try:
            failed: list[str] = []
            while running and not failed:
                for client in connection.wait(list(running)):
                    rank = running.pop(client)
                    if status := rank.wait():
                        failed.append(f"rank {ranks.index(rank)} ended with status {status}")
        finally:
            for rank in ranks:
                rank.kill()
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    if failed:
        raise RankFailedError(f"{', '.join(failed)}\n{text}")
    sys.stderr.write(text)


def as_rank(function: Callable[..., Any], rank: int, arguments: tuple[Any, ...]) -> None:
    from training.engine.ranks import join_ranks

    join_ranks()
    status = 1
    try:
        function(rank, *arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # What Python takes apart at its end takes longer than many tests, and a rank that failed would wait in
    # destroy_process_group for the others.
    os._exit(status)
