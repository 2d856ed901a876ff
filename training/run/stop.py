"""Why a run should stop after the step that is under way: it was asked to, or nobody would see it end."""

import os
import signal

import psutil


class StopRequest:
    """Notices SIGTERM, SIGINT and SIGUSR1, and the end of the `deepspeed` command that started this rank.

    From construction on these signals end no process. DeepSpeed's launcher leaves its ranks behind when it is
    killed: they would hold their GPUs until the last step.
    """

    def __init__(self) -> None:
        self._signalled = False
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, self._note)
        parent = psutil.Process(os.getppid())
        self._launcher = None
        # The `deepspeed` command starts this module on each node, and it starts the ranks.
        if "deepspeed.launcher.launch" in parent.cmdline():
            self._launcher = (parent.pid, parent.ppid())

    def asked(self) -> bool:
        """Whether this rank should stop."""
        return self._signalled or self._launcher_is_gone()

    def _note(self, signum: int, frame: object) -> None:
        self._signalled = True

    def _launcher_is_gone(self) -> bool:
        if self._launcher is None:
            return False
        try:
            parent = psutil.Process(os.getppid())
            return (parent.pid, parent.ppid()) != self._launcher
        except psutil.NoSuchProcess:  # it ended between the two looks
            return True
