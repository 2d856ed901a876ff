"""The signals that stop a rank, the launcher above it, and the end of it with what it has started."""

import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

import psutil

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
NOT_FOR_CHILDREN = (signal.SIGUSR1, signal.SIGHUP)
"""Sent to every process of a job or a terminal, also to W&B's and to compilers, which they would end."""


class Bell:
    """Rings in a thread when this process gets a signal, or another thread rings it.

    From construction on the signals of STOPPING end nothing by themselves; a SIGHUP that was ignored before
    stays so, as after `nohup`. Python's own handlers wait for the main thread, which may be in a compilation
    or a collective.
    """

    def __init__(self) -> None:
        self._bell, self._ringer = socket.socketpair()
        self._ringer.setblocking(False)
        for signum in STOPPING:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, _nothing)
        signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_CHILDREN)  # also of all that is started from here on
        signal.set_wakeup_fd(self._ringer.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget)

    def let_through(self) -> None:
        """Have this thread get the signals that no child should; the one that waits calls it first."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_CHILDREN)

    def ring(self) -> None:
        """End a `wait` that is under way, or the next one."""
        with suppress(BlockingIOError):  # it rings already
            self._ringer.send(b"\0")

    def wait(self, seconds: float) -> Iterator[signal.Signals]:
        """The signals that came, as soon as one does or the bell rings; none after some seconds."""
        if select.select([self._bell], [], [], seconds)[0]:
            for number in self._bell.recv(64):
                if number:
                    yield signal.Signals(number)


class Launcher:
    """The `deepspeed` command that started this rank, if one did. Its end leaves ranks behind."""

    def __init__(self) -> None:
        parent = psutil.Process(os.getppid())
        self._processes = None
        # The command starts this module on each node, and it starts the ranks.
        if "deepspeed.launcher.launch" in parent.cmdline():
            self._processes = (parent.pid, parent.ppid())

    def is_gone(self) -> bool:
        """Whether there was one and it has ended."""
        if self._processes is None:
            return False
        try:
            parent = psutil.Process(os.getppid())
            return (parent.pid, parent.ppid()) != self._processes
        except psutil.NoSuchProcess:  # it ended between the two looks
            return True


def end_process(status: int) -> NoReturn:
    """End this process with what it has started, but for W&B's, which sends what it has and ends then."""
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "wandb" not in child.name():
                    child.kill()
    os._exit(status)


def _nothing(signum: int, frame: object) -> None:
    """The thread has been told by then."""


def _forget() -> None:
    """In a process that a rank forks: a signal to it is none to the rank."""
    signal.set_wakeup_fd(-1)
    for signum, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(signum) is _nothing:
            signal.signal(signum, usual)
