"""A training under way: its ranks, forked, or the `deepspeed` command as a user types it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .ambush import Ambush
from .server import ENVIRONMENT, ROOT, Forks, Request


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(words: Sequence[str], ambush: Ambush | None) -> int:
    """The main job, in a rank that was forked."""
    import train

    if ambush is not None:
        ambush.lie()
    sys.argv = ["train.py", *words]
    return train.main(list(words))


@dataclass
class Job:
    """One start of a run.

    Attributes:
        forks: where ranks are forked.
        words: the arguments of train.py.
        output: what the ranks print; emptied first.
        ranks: how many.
        launched: whether DeepSpeed's launcher starts them, in interpreters of their own.
        environment: variables beside the usual ones.
        ambushes: by rank; not where the ranks are launched.
        port: at which the ranks meet; a free one where it is 0.
        began: when, by `time.monotonic`.
    """

    forks: Forks
    words: Sequence[str]
    output: Path
    ranks: int = 2
    launched: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    ambushes: dict[int, Ambush] = field(default_factory=dict)
    port: int = 0

    def __post_init__(self) -> None:
        self.output.unlink(missing_ok=True)
        self.output.touch()
        self.began = time.monotonic()
        self._command: subprocess.Popen[bytes] | None = None
        self._pids: list[int] = []
        environment = ENVIRONMENT | self.environment
        port = self.port or free_port()
        if self.launched:
            launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"]
            launcher += ["--num_accelerators", str(self.ranks), "--master_port", str(port), "train.py"]
            with self.output.open("ab") as output:
                self._command = subprocess.Popen(
                    [*launcher, *self.words], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                    stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
            return
        for rank in range(self.ranks):
            launch = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks),
                "LOCAL_SIZE": str(self.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            arguments = (list(self.words), self.ambushes.get(rank))
            group = self._pids[0] if rank else 0
            request = Request(train, arguments, self.output, environment | launch, group)
            self._pids.append(self.forks.start(request))

    def rank_pids(self) -> list[int]:
        """The processes of the ranks, in order; those that a launcher has started so far."""
        if self._command is None:
            return self._pids
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self._command.pid).children(recursive=True)
            ranks = [process for process in found if _is_rank(process)]
            return [process.pid for process in sorted(ranks, key=lambda process: process.pid)]
        return []

    def workers(self, rank: int) -> list[int]:
        """The processes that read a rank's data: those below it that have none below themselves."""
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.rank_pids()[rank]).children(recursive=True)
            return [process.pid for process in below if not process.children()]
        return []

    def send(self, signum: signal.Signals, ranks: Sequence[int] | None = None) -> None:
        """A signal to these ranks, or to all; a launched command gets it with all that is below it."""
        if self._command is not None and ranks is None:
            with suppress(ProcessLookupError):
                os.killpg(self._command.pid, signum)
            return
        pids = self.rank_pids()
        for rank in range(len(pids)) if ranks is None else ranks:
            send(pids[rank], signum)

    def statuses(self) -> list[int | None]:
        """The exit status of each rank, or of the command; None while it runs."""
        if self._command is not None:
            return [self._command.poll()]
        return [self.forks.status(pid) for pid in self._pids]

    def is_over(self) -> bool:
        return None not in self.statuses()

    def wait(self, limit_s: float, ranks: Sequence[int] = ()) -> list[int | None]:
        """The exit statuses once all have ended, or these ranks; what still runs then is killed: None.

        So it is after `limit_s` seconds.
        """
        wait_until(
            lambda: None not in [self.statuses()[rank] for rank in ranks or range(len(self.statuses()))],
            limit_s,
        )
        statuses = self.statuses()
        self.kill()
        return statuses

    def kill(self) -> None:
        """End all that it has started, data workers and what is stopped included."""
        with suppress(ProcessLookupError):
            os.killpg(self._command.pid if self._command else self._pids[0], signal.SIGKILL)
        wait_until(self.is_over, 30)

    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def printed(self) -> str:
        """What came to the terminal."""
        return self.output.read_text(errors="replace")


def send(pid: int, signum: signal.Signals) -> None:
    """A signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether a condition came true within so many seconds."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _is_rank(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        words = process.cmdline()
        below = process.parent()
        is_train = "train.py" in words and "deepspeed.launcher.runner" not in words
        # A data worker is a copy of its rank: the launcher's module is the parent of ranks alone.
        return is_train and below is not None and "deepspeed.launcher.launch" in below.cmdline()
    return False
