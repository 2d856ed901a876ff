"""A rank that kills itself, or all ranks, at the n-th thing that it does to files of some kind.

So moments inside the writing of a checkpoint, which lasts milliseconds, are met as often as one wants.
"""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}
"""Python's audit events of what a program does to files."""


@dataclass(frozen=True)
class Ambush:
    """What a rank counts, and what it does when it has counted far enough.

    Attributes:
        inside: a part of the path of the files that count.
        log: a file that gets a line for each operation.
        at: the number of the operation, from 1, before which the kill happens; 0 only counts.
        delay_s: seconds from there to the kill.
        kills_all: whether the other ranks are killed with this one.
    """

    inside: str
    log: Path
    at: int = 0
    delay_s: float = 0.0
    kills_all: bool = False

    def lie(self) -> None:
        """From here on this process counts. It cannot be taken back."""
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        count = 0

        def count_operation(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in EVENTS or self.inside not in (path := str(arguments[0])):
                return
            count += 1
            os.write(log, f"{event} {path}\n".encode())
            if count == self.at:
                self._kill_later() if self.delay_s else self._kill()

        sys.addaudithook(count_operation)

    def _kill_later(self) -> None:
        timer = threading.Timer(self.delay_s, self._kill)
        timer.daemon = True
        timer.start()

    def _kill(self) -> None:
        if self.kills_all:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def operations(log: Path) -> list[str]:
    """What a rank has counted."""
    return log.read_text().splitlines() if log.is_file() else []
