"""Why a run should stop, and how all its ranks learn of it: what any of them was sent, saw, or asks for."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from model.errors import FAILED, INTERRUPTED, UserError

from .exchange import Exchange
from .hang import LOOK_EVERY_S, NoAnswer, Progress
from .request import Request
from .signals import Bell, Launcher, end_process

if TYPE_CHECKING:
    from ..config.recipe import TrainConfig
    from ..engine.ranks import Ranks
    from ..run.console import Console
    from ..run.folder import RunFolder

AT_ONCE = 130
"""Exit status after a second SIGINT, as shells give it."""
LEAVE_TOGETHER_S = 3.0
CONSEQUENCES = {
    "step": "the run is saved and stops after this micro-batch (a compilation under way finishes first)",
    "validation": "this validation is given up, and the run is saved and stops",
    "checkpoint": "the run stops once this checkpoint is written",
    "end": "the run is ending already",
}
"""What follows in each phase of the loop; in the others it is saved and stops."""


class Stopped(Exception):
    """All ranks have agreed to stop here."""


class _AtOnce(NamedTuple):
    """What a stop does while there is nothing to save: it ends the process, whatever the main thread does."""

    sentence: str
    note: Callable[[], object]


class StopRequest:
    """Notices what should end this rank, tells the other ranks, and says what follows.

    That is SIGTERM, SIGINT, SIGUSR1 and SIGHUP (which `nohup` keeps ignored), the end of the `deepspeed`
    command that started this rank, `train.max_minutes` and `train.stop_file`, another rank that should stop,
    and what other parts of this rank `ask` for. DeepSpeed's launcher signals one rank after the other, with
    30 s between, and leaves its ranks behind when it is killed.

    A thread does so: the main thread may be in a compilation or a collective, where Python calls no handler.
    While a run starts or is evaluated, nothing needs to be saved, and the thread ends the process itself.
    In the loop the ranks agree on where they stop, in `check` and at the end of a step.

    Attributes:
        request: the first that was made; None while there is none.
        progress: where the main thread is; see there.
    """

    def __init__(self) -> None:
        self.request: Request | None = None
        self.progress = Progress()
        self._at_once: _AtOnce | None = _AtOnce(
            "the run stops before its first step: the same command starts it again", lambda: None
        )
        self._leaving = threading.Lock()  # never given back by the thread that ends the process
        self._interrupts = 0
        self._is_said, self._speaking = False, threading.Lock()
        self._console: Console | None = None
        self._ranks: Ranks | None = None
        self._folder: RunFolder | None = None
        self._exchange: Exchange | None = None
        self._ends_at: float | None = None
        self._stop_file: Path | None = None
        self._launcher = Launcher()
        self._bell = Bell()
        threading.Thread(target=self._watch, name="stop", daemon=True).start()

    def limit(self, train: "TrainConfig", folder: "RunFolder", began: float) -> None:
        """From here on the recipe's limits hold too.

        Args:
            train: has `max_minutes` and `stop_file`.
            folder: in which a relative `stop_file` lies.
            began: when the command began, in seconds since the machine did.

        Raises UserError where the file is there already: the run would stop before it has begun.
        """
        if train.stop_file is not None:
            file = folder.path / Path(train.stop_file).expanduser()
            if file.exists():
                raise UserError(
                    f"train.stop_file is {file}, which exists and would stop the run at once: `rm {file}` "
                    "or name another file"
                )
            self._stop_file = file
        if train.max_minutes is not None:
            self._ends_at = began + 60 * train.max_minutes
            self._minutes = train.max_minutes

    def speak_on(self, console: "Console") -> None:
        """Say what is to be said on this console; until then rank 0 prints it."""
        self._console = console

    @contextmanager
    def joined(self, ranks: "Ranks", folder: "RunFolder") -> Iterator[None]:
        """Inside, the other ranks are told of a stop, and watched whether they answer. All ranks call it.

        An error inside is none of this rank's where a stop ends all ranks at once.

        Args:
            ranks: who trains.
            folder: this run's, which notes a stop during the start, and a rank that does not answer.
        """
        self._ranks, self._folder = ranks, folder
        if self._at_once:
            self._at_once = self._at_once._replace(note=self._note_interrupted)
        if ranks.world_size > 1:
            self._exchange = Exchange(ranks, self.progress, lambda: self.request, self.ask)
        with self._others_may_leave():
            yield

    def start_is_over(self) -> None:
        """From here on a stop is agreed on and the run is saved."""
        with self._leaving:
            self._at_once = None
        self.progress.enter("loop")

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Inside, the main thread is at `name`: what is said of a stop, and how long it may take, follow."""
        return self.progress.phase(name)

    def ask(self, reason: str, exit_status: int = INTERRUPTED) -> None:
        """Have all ranks stop at their next micro-batch. Any thread may call it; the first request stays."""
        self.request = self.request or Request(reason, exit_status)
        self._bell.ring()

    def asked(self) -> bool:
        """Whether this rank should stop. It costs nothing: whoever waits for something looks often."""
        return self.request is not None

    def check(self) -> None:
        """Raise Stopped where any rank was asked to stop. All ranks call it, and all raise or none."""
        self.progress.beat()
        if self._ranks is None or self._ranks.world_size == 1:
            stops = self.asked()
        else:
            stops = self._ranks.any_soon(self.asked())
        if stops:
            raise Stopped

    def agreed(self) -> AbstractContextManager[None]:
        """What is inside ends early where the ranks agree on that."""
        return suppress(Stopped)

    def of_all_ranks(self) -> Request | None:
        """The request of the ranks, one that failed before one that was interrupted. All ranks call it."""
        if self._ranks is None or self._ranks.world_size == 1:
            return self.request
        found = [
            request if rank == self._ranks.rank else request.of_rank(rank)
            for rank, request in enumerate(self._ranks.gather(self.request))
            if request
        ]
        if not found:
            return None
        self.request = self.request or found[0]
        self._acknowledge(self.request)  # the ranks may agree on it before the thread has heard of it
        return min(found, key=lambda request: not request.is_failure)

    @contextmanager
    def ends_at_once(self, sentence: str, note: Callable[[], object]) -> Iterator[None]:
        """Inside, nothing needs to be saved: a stop ends this process, with the status INTERRUPTED of rank 0.

        Args:
            sentence: what is said then.
            note: what is written then, on each rank.
        """
        self.progress.enter("evaluation")
        self._at_once = _AtOnce(sentence, note)
        try:
            with self._others_may_leave():
                yield
        finally:
            self.progress.enter("end")
            with self._leaving:
                self._at_once = None

    @contextmanager
    def _others_may_leave(self) -> Iterator[None]:
        """Where a stop ends all ranks at once, an error may come of it: this rank waits for its own end."""
        try:
            yield
        except Exception:
            while self.request and self._at_once:
                time.sleep(1)
            raise

    def _watch(self) -> NoReturn:
        """What the thread does."""
        self._bell.let_through()
        while True:
            try:
                for signum in self._bell.wait(LOOK_EVERY_S):
                    self._received(signum)
                self._look()
                if self.request and self._at_once:
                    self._leave()
                elif self.request:
                    self._acknowledge(self.request)
                self.progress.tick()
                if self._exchange:
                    self._exchange.look()
            except NoAnswer as error:
                self._end_without(error)
            except Exception:
                traceback.print_exc()  # to the log: a look that fails is not the last
                time.sleep(LOOK_EVERY_S)

    def _received(self, signum: signal.Signals) -> None:
        self._interrupts += signum == signal.SIGINT
        if self._interrupts > 1:
            self._say(
                "a second SIGINT was received: this ends at once, and begins again where it was saved last"
            )
            end_process(AT_ONCE)
        self.ask(f"{signum.name} was received")

    def _look(self) -> None:
        if self.request:
            return
        if self._ends_at is not None and time.clock_gettime(time.CLOCK_BOOTTIME) >= self._ends_at:
            self.ask(f"train.max_minutes, {self._minutes:g}, are over")
        if self._stop_file and self._stop_file.exists():
            self.ask(f"{self._stop_file} exists")
        if self._launcher.is_gone():
            self.ask("the deepspeed command that started it is gone")

    def _acknowledge(self, request: Request) -> None:
        with self._speaking:
            if self._is_said:
                return
            self._is_said = True
        what = CONSEQUENCES.get(self.progress.name, "the run is saved and stops")
        self._say(f"{request.reason}: {what if request.exit_status == INTERRUPTED else 'the run stops'}")

    def _leave(self) -> None:
        with self._leaving:
            if self._at_once is None or self.request is None:  # the main thread went on meanwhile
                return
            status = self.request.exit_status
            self._say(f"{self.request.reason}: {self._at_once.sentence}")
            with suppress(Exception):  # the main thread may be writing the same, or the disk be full
                self._at_once.note()
            if self._exchange:
                self._exchange.wait_until_all_know(LEAVE_TOGETHER_S)
            # A launcher ends all ranks at the first status that is not 0. Ranks that have not joined have to.
            is_silent = self._ranks is not None and self._ranks.rank > 0 and status == INTERRUPTED
            end_process(0 if is_silent else status)

    def _note_interrupted(self) -> None:
        if self._folder and self._folder.rank == 0:
            with self._folder.locked_summary(LEAVE_TOGETHER_S) as summary:
                summary["status"] = "interrupted"

    def _end_without(self, error: NoAnswer) -> NoReturn:
        """Another rank does not answer, and the main thread waits for it, perhaps for ever."""
        import faulthandler

        from .failures import describe, record_failure

        assert self._ranks and self._folder and self._exchange
        faulthandler.dump_traceback(sys.stderr.fileno(), all_threads=True)
        with suppress(Exception):
            record_failure(self._folder, describe(self._folder, error), self._ranks.world_size)
        if self._console and self._exchange.is_first_to_answer():
            self._console.say_by_any_rank(f"{error} (stack traces in {self._folder.log_file})")
        end_process(FAILED)

    def _say(self, sentence: str) -> None:
        if self._console:
            self._console.say(sentence)
        elif (os.environ.get("RANK") or "0") == "0":
            print(sentence, file=sys.stderr, flush=True)
