"""A rank that dies is seen by the others of its host, with its signal, and none of them waits for ever."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import training.watch.others as others
from tests.distributed import free_port, of_rank
from tests.processes import ENVIRONMENT, fork, fork_this
from training.watch.others import Member, others_watched, this_process, wait_status


@pytest.mark.parametrize("reaped", [False, True])
@pytest.mark.parametrize(
    ("signum", "exit_status"), [(signal.SIGKILL, None), (signal.SIGTERM, None), (None, 7)]
)
def test_how_a_process_ended_is_known_until_and_after_it_is_reaped(
    signum: signal.Signals | None, exit_status: int, reaped: bool
) -> None:
    pid = fork_this(lambda: os.kill(os.getpid(), signum) if signum else os._exit(exit_status))
    descriptor = os.pidfd_open(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        _, status = os.waitpid(pid, 0)
    found = wait_status(descriptor, pid)
    if not reaped:
        _, status = os.waitpid(pid, 0)
    os.close(descriptor)
    assert found == status or (reaped and found is None)  # before Linux 6.15 nobody knows any more


def watch(statuses: list[tuple[int, int]], exit_status: int, namespace: str | None = None) -> None:
    """Watch a process that ends with `exit_status` once it is watched."""
    leave, wait = os.pipe()[::-1]
    pid = fork_this(lambda: os.read(wait, 1) and os._exit(exit_status))
    own = this_process(0)
    members = [own, Member(1, namespace or own.namespace, pid)]
    with others_watched(0, lambda rank, status: statuses.append((rank, status)), members):
        os.write(leave, b"!")
        end = time.monotonic() + (10 if exit_status and not namespace else 0.5)
        while not statuses and time.monotonic() < end:
            time.sleep(0.01)
    os.waitpid(pid, 0)


def test_a_rank_that_fails_is_told_and_one_that_ends_well_is_not() -> None:
    failed: list[tuple[int, int]] = []
    watch(failed, 1)
    assert failed == [(1, 1 << 8)]
    for status in (0, 3, 75):
        well: list[tuple[int, int]] = []
        watch(well, status)
        assert well == []


def test_a_process_of_another_host_is_not_taken_for_one_of_this() -> None:
    told: list[tuple[int, int]] = []
    watch(told, 1, namespace="another boot pid:[1]")
    assert told == []


def hang(folder: Path) -> None:
    """Two ranks; rank 1 is killed, and rank 0 waits for something that never comes."""
    import torch.distributed as dist

    from tests.training.test_failures import Console
    from training.engine.ranks import join_ranks
    from training.run.folder import RunFolder
    from training.watch.endings import run_watched

    others.ENDS_WITHIN_S = 1.0
    ranks = join_ranks()
    run = RunFolder(folder, ranks.rank)
    run.claim()
    dist.barrier()
    console: Any = Console()
    with run_watched(run, ranks, console):
        run.update_summary(status="running", step=0)
        run.append_metrics(kind="train", step=4, loss=1.0)
        dist.barrier()
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()


def test_a_survivor_that_hangs_ends_and_the_killed_rank_is_named(tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "printed").open("w+") as printed:
        processes = [
            fork(
                hang, tmp_path / "run", stdout=printed, stderr=printed,
                environment=ENVIRONMENT | of_rank(rank, 2, port),
            )
            for rank in (0, 1)
        ]  # fmt: skip
        statuses = [process.wait(120) for process in processes]
        printed.seek(0)
        assert statuses == [1, -signal.SIGKILL], printed.read()
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert (failure["rank"], failure["signal"], failure["exception"]) == (1, "SIGKILL", None)
    assert (failure["step"], failure["log"], failure["traceback"]) == (4, "logs/rank1.log", "")
    assert failure["host"] == os.uname().nodename and "was ended by SIGKILL" in failure["sentence"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["failed_rank"]) == ("failed", 1)
    assert summary["error"] == failure["sentence"] and abs(summary["heartbeat"] - time.time()) < 600
