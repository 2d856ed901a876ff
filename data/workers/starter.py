"""The process that forks a loader's data workers, the first ones and those that follow a dead one.

When a worker dies, the training process has torch, CUDA and the threads of NCCL, W&B and checkpoints. A child
forked from it then would have copies of locks that some thread held, and of CUDA, which does not work in it;
and the page tables of a large process take long to copy. Starting an interpreter anew would need the open
source to be sent over, which holds files and streams. So a small process is forked at the very start, when
there is one thread and none of this; it does nothing but fork workers. All of them begin alike.
"""

import multiprocessing
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ..interrupts import LOOK_SECONDS, check_interrupted, interruptible, never

PARENT_LOOK_SECONDS = 1.0
ANSWER_SECONDS = 30.0
"""A starter that does not answer for so long is given up. Forking takes milliseconds."""
END_SECONDS = 5.0
"""So long a killed process may take to end. One that waits for a dead disk does not."""
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What a terminal or Slurm sends to all processes. The training process decides when to stop, and kills."""

_FORK, _END, _STOP = b"fork", b"end", b"stop"


class Starter:
    """Forks processes that `run(connection)`.

    It outlives the process that made it by at most `PARENT_LOOK_SECONDS`, and ends the workers with it.
    """

    def __init__(self, run: Callable[[socket.socket], object]) -> None:
        self._run = run
        self._owner = os.getpid()
        self._process: Any = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Fork it, where it is not there yet."""
        if self._process is not None:
            return
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ANSWER_SECONDS)
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(theirs, self._control, self._run, os.getpid()), daemon=True
        )
        self._process.start()
        theirs.close()

    def fork(self) -> tuple[int, socket.socket]:
        """The process id of a new worker, and the connection to it.

        A starter that was killed itself is followed by another: then from the process as it is now.

        Raises:
            OSError: neither can be had.
            Interrupted: waiting for it was.
        """
        self.start()
        with suppress(OSError):
            return self._forked()
        self.stop()
        self.start()
        return self._forked()

    def _forked(self) -> tuple[int, socket.socket]:
        assert self._control is not None
        ours, theirs = socket.socketpair()
        try:
            with theirs:  # nobody but the worker may hold this end: so its death is the end of the stream
                socket.send_fds(self._control, [_FORK], [theirs.fileno()])
                return int(self._answer()), ours
        except BaseException:
            ours.close()
            raise

    def end(self, pid: int) -> int | None:
        """Kill a worker where it still runs, and give the exit code that it had; None where nobody knows.

        Raises Interrupted.
        """
        if self._control is not None:
            with suppress(OSError):
                self._control.send(_END + str(pid).encode())
                code = self._answer()
                return int(code) if code != b"unknown" else None
        with suppress(OSError):  # the one that forked it is gone
            os.kill(pid, signal.SIGKILL)
        return None

    def stop(self) -> None:
        """End it and all its workers. In a forked process that has a copy of this nothing is done."""
        if self._process is None or os.getpid() != self._owner:
            return
        assert self._control is not None
        with suppress(OSError):
            self._control.send(_STOP)
        self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join()
        self._control.close()
        self._process = self._control = None

    def _answer(self) -> bytes:
        assert self._control is not None
        # looks are counted and not seconds: this process may have been stopped too
        for _ in range(round(ANSWER_SECONDS / LOOK_SECONDS)):
            if select.select([self._control], [], [], LOOK_SECONDS)[0]:
                break
            check_interrupted()
        else:
            raise TimeoutError("the process that forks data workers does not answer")
        answer = self._control.recv(64)
        if not answer:
            raise ConnectionError("the process that forks data workers is gone")
        return answer


def _serve(
    control: socket.socket, others: socket.socket, run: Callable[[socket.socket], object], parent: int
) -> NoReturn:
    others.close()
    call_process("data starter")
    for signum in IGNORED_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    workers: set[int] = set()
    with suppress(OSError):
        while os.getppid() == parent:
            if not select.select([control], [], [], PARENT_LOOK_SECONDS)[0]:
                continue
            request, connections, *_ = socket.recv_fds(control, 64, 1)
            if connections:
                workers.add(_fork(control, connections[0], run))
            elif request.startswith(_END):
                pid = int(request.removeprefix(_END))
                code = _end(pid) if pid in workers else None
                workers.discard(pid)
                control.send(b"unknown" if code is None else str(code).encode())
            else:  # it should stop, or the other end is closed
                break
    for pid in workers:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for pid in workers:
        _end(pid)
    os._exit(0)


def _fork(control: socket.socket, connection: int, run: Callable[[socket.socket], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            control.close()
            call_process("data worker")
            with interruptible(never):  # the training process asks
                run(socket.socket(fileno=connection))
        finally:
            os._exit(1)
    os.close(connection)
    control.send(str(pid).encode())
    return pid


def _end(pid: int) -> int | None:
    """Kill a child, and give its exit code: minus the signal's number where one ended it."""
    until = time.monotonic() + END_SECONDS
    # the one that ended by itself keeps the exit code that it had
    os.kill(pid, signal.SIGKILL)
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def call_process(name: str) -> None:
    """Give this process a name, at most 15 characters, that `ps` and `top` show."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)
