"""How the ranks of a run find each other: where rank 0 listens, within a time limit, and not in silence."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from model.errors import LauncherError, UserError

from .environment import LAUNCHER, TIMEOUT, Launch

SAY_AFTER_S = 30.0
"""So long a rank waits before it says for whom. The pre-flight check, on rank 0, may take half of it."""


def meet(launch: Launch, run: str, limit: timedelta, say: Callable[[str], None]) -> dist.Store:
    """Return once all ranks of a run are there: the store through which they join.

    Args:
        launch: what the launcher told this rank.
        run: its name, so that ranks of another run are not taken for its own.
        limit: how long a rank waits for others.
        say: is told for whom it waits, if it waits for long.

    Raises:
        LauncherError: the port is taken, rank 0 cannot be reached, or ranks do not come in time.
        UserError: the same, where rank 0 says which.
        OSError: rank 0 went away.
    """
    end = time.monotonic() + limit.total_seconds()
    store = _connect(launch, limit, end, say)
    # torchrun restarts ranks on the store that it keeps
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = dist.PrefixStore(f"normlab {attempt} {run}", store)
    own.set(_key(launch.rank), "here")
    missing = set(range(launch.world_size))
    next_word = time.monotonic() + SAY_AFTER_S
    while missing:
        left_s = max(0.01, min(end, next_word) - time.monotonic())
        try:
            own.wait(list(map(_key, missing)), timedelta(seconds=left_s))
            return own
        except dist.DistStoreError:
            with suppress(dist.DistError):
                missing = {rank for rank in missing if not own.check([_key(rank)])}
        except dist.DistError as error:
            raise ConnectionError(f"rank 0 left {_place(launch)} before all ranks were there") from error
        if not missing:
            break
        if time.monotonic() >= end:
            kind = LauncherError if launch.rank == 0 else UserError
            raise kind(
                f"{_names(missing)} of {launch.world_size} did not come to {_place(launch)} within "
                f"{limit.total_seconds():g} s: {_remedy()}"
            )
        if time.monotonic() >= next_word:
            if launch.rank == 0:
                say(f"waiting for {_names(missing)} of {launch.world_size} at {_place(launch)}")
            next_word = end
    return own


def _connect(launch: Launch, limit: timedelta, end: float, say: Callable[[str], None]) -> dist.Store:
    """Rank 0 listens, unless torchrun does it for it; the others connect to it."""
    listens = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not listens:
        _wait_for_rank_0(launch, limit, end, say)
    try:
        return dist.TCPStore(
            launch.host, launch.port, is_master=listens, timeout=limit, wait_for_workers=False
        )
    except dist.DistError as error:
        if listens and "EADDRINUSE" in str(error):
            raise LauncherError(
                f"port {launch.port} is taken, by another run perhaps: give the launcher another one, "
                f"deepspeed --master_port {launch.port + 1 if launch.port < 65535 else 29500} train.py ..."
            ) from error
        what = str(error).strip().splitlines()
        raise LauncherError(
            f"rank {launch.rank} cannot use {_place(launch)} ({what[0] if what else type(error).__name__}): "
            f"{_remedy()}"
        ) from error


def _wait_for_rank_0(launch: Launch, limit: timedelta, end: float, say: Callable[[str], None]) -> None:
    """Return once rank 0 listens, which the pre-flight check delays.

    torch itself tries once per second, so that half a second of every start would be spent waiting.
    """
    wait, said_at = 0.01, time.monotonic() + SAY_AFTER_S
    while True:
        try:
            socket.create_connection((launch.host, launch.port), timeout=1).close()
            return
        except OSError as error:
            why = "" if isinstance(error, ConnectionRefusedError) else f" ({error})"
        if time.monotonic() >= end:
            raise LauncherError(
                f"rank {launch.rank} found no rank 0 at {_place(launch)}{why} within "
                f"{limit.total_seconds():g} s: {_remedy()}"
            )
        if time.monotonic() >= said_at:
            say(f"rank {launch.rank} waits for rank 0 at {_place(launch)}{why}")
            said_at = end
        time.sleep(wait)
        wait = min(1.2 * wait, 0.1)


def _key(rank: int) -> str:
    return f"rank {rank}"


def _place(launch: Launch) -> str:
    return f"{launch.host}:{launch.port}"


def _names(ranks: set[int]) -> str:
    first = sorted(ranks)[:8]
    more = f" and {len(ranks) - len(first)} more" if len(ranks) > len(first) else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, first))}{more}"


def _remedy() -> str:
    return (
        f"start all ranks by one launcher, or `unset {' '.join(LAUNCHER)}` to train on one; {TIMEOUT} sets "
        "the limit, in minutes"
    )
