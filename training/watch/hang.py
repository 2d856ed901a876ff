"""How long a rank may wait for the others: a limit that follows what a micro-batch takes."""

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOOK_EVERY_S = 0.5
NO_ANSWER_S = 60.0
"""So long a rank may give no sign of life while another waits for it; a limit of a step is no shorter."""
MICRO_BATCHES = 20
"""So many times the slowest recent micro-batch a step may take until its next one."""
RECENT = 64
UNLIMITED = ("start", "evaluation", "end")
"""Phases in which one rank may do something for the others for as long as it takes."""
_COMPILERS = (("torch/_dynamo", "convert_frame.py"), ("torch/_inductor", "compile_fx.py"))


class NoAnswer(OSError):
    """The ranks wait for each other without end; the sentence names those that do not answer."""


class Progress:
    """Where the main thread of this rank is, and how long it has been there without getting on.

    The thread that watches counts the time in its own looks: to a process that was suspended (Ctrl-Z, a
    closed laptop) none has passed.

    Attributes:
        name: of the phase: start, loop, step, data, validation, checkpoint, evaluation or end.
        beats: how often the main thread has got on; as often on all ranks.
        waited_s: seconds since it last did.
        clock_s: seconds that this process was looked at.
        longest_s: how long a phase may take whose length is not known, as a compilation.
    """

    def __init__(self) -> None:
        self.name = "start"
        self.beats = 0
        self.waited_s = self.clock_s = 0.0
        self.longest_s = 540.0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._mark = time.perf_counter()
        self._ticked, self._beats_then = time.monotonic(), 0

    def beat(self) -> None:
        """The main thread got on: a micro-batch, a batch of the validation, a phase."""
        now = time.perf_counter()
        if self.name == "step":
            self._recent.append(now - self._mark)
        self._mark = now
        self.beats += 1

    def enter(self, name: str) -> None:
        """The phase `name` begins."""
        self.beat()
        self.name = name

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The phase of what happens inside."""
        before = self.name
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def tick(self) -> None:
        """Time has passed; called by the thread that watches, every LOOK_EVERY_S."""
        now = time.monotonic()
        passed = min(now - self._ticked, 2 * LOOK_EVERY_S)
        self._ticked = now
        self.clock_s += passed
        self.waited_s = self.waited_s + passed if self.beats == self._beats_then else 0.0
        self._beats_then = self.beats

    def limit_s(self) -> float:
        """How long the main thread may be where it is before the ranks count as hung."""
        if self.name in UNLIMITED:
            return float("inf")
        recent = list(self._recent)
        if self.name != "step" or not recent or is_compiling():
            return self.longest_s
        return min(self.longest_s, max(NO_ANSWER_S, MICRO_BATCHES * max(recent)))


def is_compiling() -> bool:
    """Whether the main thread is in torch's compiler, which may take minutes in any step."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if any(file.name == name and file.parent.match(f"*/{folder}") for folder, name in _COMPILERS):
            return True
        frame = frame.f_back
    return False
