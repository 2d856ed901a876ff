"""Processes that tests start: with the environment of every test, and forked where an import can be saved."""

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import connection
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
# One thread is enough for tiny models, and torch's threads would wait for each other busily, which takes
# minutes where others use the cores too.
ENVIRONMENT = os.environ | {
    "WANDB_MODE": "disabled",  # a second of every start
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",  # also where there is a GPU: those tests are marked
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # or each process that compiles starts others, which import torch
}
LOCK = threading.Lock()
"""Tests fork from several threads."""


class Forked:
    """A process that the fork server forked, with what tests use of `subprocess.Popen`."""

    def __init__(self, client: Connection) -> None:
        self.client = client
        self.pid: int = client.recv()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it runs."""
        if self.returncode is None and self.client.poll():
            self.returncode = self.client.recv()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not self.client.poll(timeout):
            raise subprocess.TimeoutExpired(str(self), timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def kill(self) -> None:
        """End it with all that it has started; nothing happens if it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ends now
                os.killpg(self.pid, signal.SIGKILL)


def fork(
    function: Callable[..., Any],
    *arguments: Any,
    stdout: IO[Any],
    stderr: IO[Any],
    argv: Sequence[str] = ("forked",),
    environment: Mapping[str, str] = ENVIRONMENT,
    folder: Path = ROOT,
) -> Forked:
    """Start `sys.exit(function(*arguments))` in a process and a session of its own.

    The function and its arguments are pickled. What libraries read from the environment as they are imported
    is the server's, which is `ENVIRONMENT`.
    """
    ours, theirs = Pipe()
    with theirs, LOCK:
        requests, said = server()
        try:
            socket.send_fds(requests, [b"!"], [theirs.fileno(), stdout.fileno(), stderr.fileno()])
        except BrokenPipeError:
            said.seek(0)
            raise ForkedError(f"the fork server ended: {said.read().decode(errors='replace')}") from None
    ours.send((list(argv), dict(environment), str(folder)))
    ours.send((function, arguments))
    return Forked(ours)


class ForkedError(Exception):
    """What a forked process printed before it ended."""


def run_forked(function: Callable[..., Any], *arguments: Any) -> None:
    """`function(*arguments)` in a process of its own; an exception in it is raised here."""
    run_all_forked(function, [arguments], [ENVIRONMENT])


def run_all_forked(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], environments: Sequence[dict[str, str]]
) -> None:
    """The function in several processes at once, each with its own arguments and environment.

    Raises:
        ForkedError: with the traceback of the first that failed; the others are ended.
    """
    with tempfile.TemporaryFile() as printed:
        processes = [
            fork(_report, function, given, stdout=printed, stderr=printed, environment=environment)
            for given, environment in zip(arguments, environments, strict=True)
        ]
        running = {process.client: process for process in processes}
        failed: list[str] = []
        try:
            while running and not failed:
                for client in connection.wait(list(running)):
                    process = running.pop(client)  # type: ignore[call-overload]
                    if status := process.wait():
                        failed.append(f"process {processes.index(process)} ended with status {status}")
        finally:
            for process in processes:
                process.kill()
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    if failed:
        raise ForkedError(f"{', '.join(failed)}\n{text}")
    sys.stderr.write(text)


def fork_this(function: Callable[..., Any], *arguments: Any) -> int:
    """The id of a fork of this very process that calls `function(*arguments)` and never comes back to pytest.

    Its status is 1 where the function raises, which is printed, else 0.
    """
    pid = os.fork()
    if pid == 0:
        _report(function, arguments)
    return pid


def status_of(pid: int) -> int:
    """The exit status of such a fork, or minus the signal that ended it; waits for its end."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _report(function: Callable[..., Any], arguments: tuple[Any, ...]) -> NoReturn:
    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # Taking Python apart lasts longer than many tests, and a rank that failed might wait for others.
        os._exit(status)


@cache
def server() -> tuple[socket.socket, IO[bytes]]:
    """To the server, and what it wrote to stderr.

    It is started once and ends with this process, or when this process is killed.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    said = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as this process)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours, said
