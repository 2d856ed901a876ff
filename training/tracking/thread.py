"""W&B in a thread of its own: what it is given waits in a queue, and nothing waits for W&B without end."""

import concurrent.futures.thread  # noqa: F401 (it has a hook at exit too, which must come after that of here)
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

import psutil

QUEUED = 5000
"""How many things may wait for W&B; a row of a training takes 1 to 2 KB."""
START_S = 20.0
"""How long a W&B run has to begin, once wandb is imported."""
END_S = 30.0
"""How long it has to end."""
STOPPED_END_S = 10.0
"""The same where a signal asked for the end: Slurm kills 30 s after it, and a checkpoint came first."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

_open: "list[WandbThread]" = []
"""Those that this process waits for before it ends."""


class WandbThread:
    """Does what it is given, in turn, until W&B has it all or is lost.

    W&B's client waits for its own process, wandb-core, and this for a server. A thread that waits there
    without end is left behind, and wandb-core is killed, which releases whatever waits for it: W&B's own hook
    at the interpreter's exit too.

    Attributes:
        lost: why W&B is lost; None while it is not.
        dropped: how many things were left out because `QUEUED` others waited.

    Args:
        say: is told what is dropped.
        give_up: called with the reason once W&B is lost, on any thread; wandb-core writes no more.
        at_exit: called where the process ends and nobody has called `close`.
    """

    def __init__(
        self, say: Callable[[str], None], give_up: Callable[[str], None], at_exit: Callable[[], None]
    ) -> None:
        self.lost: str | None = None
        self.dropped = 0
        self._say, self._give_up, self._at_exit = say, give_up, at_exit
        self._waiting: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._losing = threading.Lock()
        self._begun_at: float | None = None
        self._start_ends: float | None = None
        self._closed_at: float | None = None
        self._seconds = END_S
        self._leaving: threading.Thread | None = None
        self._pid = os.getpid()

    def put(self, action: Callable[[], object]) -> None:
        """Have the thread call `action` after all that came before. Returns at once.

        Where too much waits it is dropped and counted, and where W&B is lost it is forgotten.
        """
        self._look_at_start()
        if self.lost or self._closed_at is not None:
            return
        if self._waiting.qsize() >= QUEUED:
            if not self.dropped:
                self._say(
                    f"W&B takes nothing, and {QUEUED:,} rows wait for it: more are left out there, and "
                    "metrics.jsonl has them all"
                )
            self.dropped += 1
            return
        self._waiting.put(action)
        if self._thread is None:
            # W&B's reports on its own faults wait for a server at exit, and nothing can end that.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            _wait_for_at_exit(self)
            self._thread.start()

    def start_now(self) -> float:
        """The thread begins the W&B run; returns when it must have begun, as `time.monotonic` counts."""
        self._start_ends = time.monotonic() + START_S
        return self._start_ends

    def has_begun(self) -> None:
        """The W&B run has begun."""
        self._begun_at, self._start_ends = time.monotonic(), None

    def close(self, last: Callable[[], object], seconds: float = END_S) -> None:
        """Have the thread call `last` and end, within so many seconds from now or from the end of the start.

        Returns at once; `wait` waits, or else the process before it ends.
        """
        if self._thread is None or self._closed_at is not None:
            return
        if self.dropped:
            self._say(f"W&B lacks {self.dropped:,} rows that came while it took none: metrics.jsonl has them")
        self._closed_at, self._seconds = time.monotonic(), seconds
        self._waiting.put(last)
        self._waiting.put(None)

    def wait(self, is_over: Callable[[], bool] = lambda: False, until: float = math.inf) -> None:
        """Until all is done that was given before `close`; W&B is lost once its time is up, or `is_over`.

        Its time is up at `until`, as `time.monotonic` counts, where that comes first.
        """
        try:
            while self._thread and self._thread.is_alive() and self._closed_at is not None and not self.lost:
                begun_at = self._closed_at + START_S if self._begun_at is None else self._begun_at
                if is_over():
                    self.lose(InterruptedError("a signal ended the wait for it"))
                elif time.monotonic() > min(max(begun_at, self._closed_at) + self._seconds, until):
                    seconds = min(self._seconds, until - self._closed_at)
                    self.lose(TimeoutError(f"it did not end within {seconds:.0f} s"))
                else:
                    self._look_at_start()
                    self._thread.join(0.1)
        except BaseException:  # the handler of a signal's: whoever raised it need not wait again at the exit
            self.lose(InterruptedError("a signal ended the wait for it"))
            raise
        finally:
            with self._losing:
                leaving = self._leaving
            if leaving:
                leaving.join(5)
            if self in _open and self._closed_at is not None:
                _open.remove(self)

    def lose(self, error: BaseException) -> None:
        """W&B gets no more; any thread may find that out."""
        with self._losing:
            if self.lost:
                return
            self.lost = reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self._leaving = threading.Thread(target=self._leave, args=(reason,), daemon=True)
            self._leaving.start()

    def _leave(self, reason: str) -> None:
        """Beside whoever found out: a loop must not wait for this either."""
        # Its first act is to take W&B's hook off the interpreter's exit; the rest may wait for wandb-core.
        tearing_down = threading.Thread(target=_tear_down, daemon=True)
        tearing_down.start()
        tearing_down.join(2)
        kill_service()
        self._give_up(reason)

    def end_with_process(self, is_over: Callable[[], bool]) -> None:
        """The process ends: what was not closed is, and waited for."""
        if os.getpid() == self._pid:  # and not in a fork, which has the list but not the thread
            self._at_exit()
            self.wait(is_over)

    def _look_at_start(self) -> None:
        ends = self._start_ends
        if ends is not None and time.monotonic() > ends:
            self.lose(TimeoutError(f"it did not begin within {START_S:.0f} s"))

    def _work(self) -> None:
        while (action := self._waiting.get()) is not None and not self.lost:
            try:
                action()
            except BaseException as error:  # W&B calls sys.exit too
                self.lose(error)


def kill_service() -> None:
    """Kill wandb-core where this process has started one; it may be stopped, or wait for a server."""
    with suppress(psutil.Error):
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.name() == "wandb-core":
                    child.kill()


def _tear_down() -> None:
    if "wandb" in sys.modules:
        with suppress(BaseException):  # W&B calls sys.exit where its process was killed
            sys.modules["wandb"].teardown()


def wait_for_closed(is_over: Callable[[], bool] = lambda: False, until: float = math.inf) -> str | None:
    """Until those threads of this process that were closed have ended, or lost W&B: why, if one has.

    For the arguments see `WandbThread.wait`.
    """
    threads = list(_open)
    for thread in threads:
        thread.wait(is_over, until)
    return next((thread.lost for thread in threads if thread.lost), None)


def _wait_for_at_exit(thread: WandbThread) -> None:
    """Before the hooks of `atexit`: W&B's waits for wandb-core without end, and comes before ours there."""
    if not _open:
        with suppress(RuntimeError):  # the interpreter ends already
            threading._register_atexit(_end_all)  # type: ignore[attr-defined]
    _open.append(thread)


def _end_all() -> None:
    """From here on a signal ends the wait for W&B alone: the process leaves with its exit status."""
    received: list[int] = []
    if _open and threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            signal.signal(signum, lambda signum, frame: received.append(signum))
    for thread in list(_open):
        thread.end_with_process(lambda: bool(received))
