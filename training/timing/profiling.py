"""--profile: where the time goes from the command to the first step, and inside chosen steps."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

OPERATORS = 10
"""Lines of the table."""


class StartUp:
    """The parts of a start, in seconds, from the command on: `deepspeed`'s, or this process's own.

    It needs no torch, so that loading torch can be one of the parts.
    """

    def __init__(self) -> None:
        process = psutil.Process()
        launcher = [p for p in process.parents() if any("deepspeed" in word for word in p.cmdline())]
        self.began = _started(launcher[-1] if launcher else process)
        self._marks: list[tuple[str, float]] = []
        if launcher:
            self._marks.append(("launcher", _started(process) - self.began))

    def mark(self, part: str) -> None:
        """The part of the start called `part` ends now, and the next one begins."""
        self._marks.append((part, time.clock_gettime(time.CLOCK_BOOTTIME) - self.began))

    def seconds(self) -> dict[str, float]:
        """Seconds by part, and under `whole` their sum."""
        ends = [0.0, *(until for _, until in self._marks)]
        parts = {
            part: round(until - before, 2) for (part, until), before in zip(self._marks, ends, strict=False)
        }
        return parts | {"whole": round(ends[-1], 2)}

    def sentence(self) -> str:
        """The same in a line."""
        *parts, (_, whole) = self.seconds().items()
        listed = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts)
        return f"from the command to the end of the first step: {whole:.1f} s ({listed})"


def _started(process: psutil.Process) -> float:
    """When a process began, in seconds since the machine did.

    psutil has added the time of the boot, which the kernel gives in whole seconds: a start would seem to take
    up to a second more.
    """
    return process.create_time() - psutil.boot_time()


class StepProfiler:
    """Profiles a range of steps; without one it does nothing.

    Writes `trace_rank0.json` (chrome://tracing, Perfetto) and on GPUs `memory_rank0.pickle`
    (pytorch.org/memory_viz) for each rank.

    Args:
        steps: the range's ends are the smallest and the largest of these, and all steps between them are
            profiled. Steps are numbered from 1, beginning again when a run is resumed.
        folder: where the files go.
        rank: this rank.
        say: is told the most expensive operators and the files' names, on rank 0.
    """

    def __init__(self, steps: tuple[int, ...], folder: Path, rank: int, say: Callable[[str], None]) -> None:
        self._first, self._last = (min(steps), max(steps)) if steps else (0, 0)
        self._folder, self._rank, self._say = folder, rank, say
        self._step = 0
        self._profile: Any = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """The next step is what happens inside. The files are written after the last of the range."""
        self._step += 1
        if self._step == self._first:
            self._start()
        yield
        if self._step == self._last:
            self.finish()

    @property
    def is_running(self) -> bool:
        """Whether the present step is profiled."""
        return self._profile is not None

    def finish(self) -> None:
        """Write the files now, if steps were profiled that are not in a file yet: a run may end early."""
        if self._profile is None:
            return
        import torch

        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"trace_rank{self._rank}.json"
        self._profile.export_chrome_trace(str(trace))
        files = [str(trace)]
        if torch.cuda.is_available():
            memory = self._folder / f"memory_rank{self._rank}.pickle"
            torch.cuda.memory._dump_snapshot(str(memory))
            torch.cuda.memory._record_memory_history(enabled=None)
            files.append(str(memory))
        key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        steps = self._step - self._first + 1
        self._say(operator_table(self._profile.key_averages(), key, steps))
        self._say(f"profile of {steps} step(s), rank {self._rank}: {', '.join(files)}")
        self._profile = None

    def _start(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=100_000)
        self._profile = profile(activities=activities, record_shapes=True)
        self._profile.start()


def operator_table(averages: Any, key: str, steps: int) -> str:
    """The `OPERATORS` most expensive operators, one per line.

    Args:
        averages: torch's profile, by operator.
        key: which of its times to go by: an operator's own, without what it calls.
        steps: how many were profiled; times and calls are per step.
    """
    spent = sorted(averages, key=lambda event: -getattr(event, key))
    whole = sum(getattr(event, key) for event in spent) or 1
    lines = [f"{'operator':<56} {'ms per step':>11} {'share':>6} {'calls':>6}"]
    for event in spent[:OPERATORS]:
        mine = getattr(event, key)
        name = event.key if len(event.key) <= 56 else f"{event.key[:53]}..."
        lines.append(
            f"{name:<56} {mine / 1000 / steps:>11.2f} {mine / whole:>6.1%} {event.count / steps:>6.0f}"
        )
    return os.linesep.join(lines)
