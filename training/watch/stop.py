"""Why a run should stop: it was asked to, something beside it failed, or nobody would see it end."""

import os
import signal
from typing import NamedTuple

import psutil

from model.errors import INTERRUPTED


class Request(NamedTuple):
    """Who asked a run to stop.

    Attributes:
        reason: as the end of "stops: ...", such as `SIGTERM was received`.
        exit_status: how the run ends then: INTERRUPTED where it is saved first, FAILED where it cannot go on.
    """

    reason: str
    exit_status: int


class StopRequest:
    """Notices SIGTERM, SIGINT and SIGUSR1, and the end of the `deepspeed` command that started this rank.

    From construction on these signals end no process. DeepSpeed's launcher leaves its ranks behind when it is
    killed: they would hold their GPUs until the last step. Parts of this rank that work beside the loop, such
    as the one that writes checkpoints, `ask` for the end of a run that cannot go on.

    Attributes:
        request: the first that was made; None while there is none.
    """

    def __init__(self) -> None:
        self.request: Request | None = None
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, self._note)
        parent = psutil.Process(os.getppid())
        self._launcher = None
        # The `deepspeed` command starts this module on each node, and it starts the ranks.
        if "deepspeed.launcher.launch" in parent.cmdline():
            self._launcher = (parent.pid, parent.ppid())

    def ask(self, reason: str, exit_status: int = INTERRUPTED) -> None:
        """Have all ranks stop at their next micro-batch. Any thread may call it; the first request stays."""
        self.request = self.request or Request(reason, exit_status)

    def asked(self) -> bool:
        """Whether this rank should stop. It costs nothing: whoever waits for something looks often."""
        if self.request is None and self._launcher_is_gone():
            self.ask("the deepspeed command that started it is gone")
        return self.request is not None

    def _note(self, signum: int, frame: object) -> None:
        self.ask(f"{signal.Signals(signum).name} was received")

    def _launcher_is_gone(self) -> bool:
        if self._launcher is None:
            return False
        try:
            parent = psutil.Process(os.getppid())
            return (parent.pid, parent.ppid()) != self._launcher
        except psutil.NoSuchProcess:  # it ended between the two looks
            return True
