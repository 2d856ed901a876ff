"""Checkpoints are written beside the loop, which waits only for a copy of its state in host memory."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.errors import FAILED

from ..config.recipe import TrainConfig
from ..engine.unusual import frozen
from ..run.reader import checkpoint_name
from ..state import TrainState
from .flight import Flight, write_problem
from .host_copy import CopyingEngine, HostCopies
from .retention import clear_leftovers, prune


@dataclass
class Times:
    """What the checkpoints of this start took, one number for each.

    Attributes:
        copy_s: seconds of the copy to host memory.
        stall_s: seconds that the loop waited beyond it: for the checkpoint before, the other ranks, the look
            at the disk.
        writing_s: seconds of writing beside the loop.
        gigabytes: on the disk.
    """

    copy_s: list[float]
    stall_s: list[float]
    writing_s: list[float]
    gigabytes: list[float]


class Checkpoints:
    """Writes the checkpoints of a run, one at a time, and keeps those that are to stay.

    All ranks have one, and make the same calls at the same steps.

    Attributes:
        failure: why no more checkpoints are written, in one sentence, once all ranks know of it.
        cause: what went wrong on this rank; None where it was another one's.

    Args:
        engine: DeepSpeed's; from here on it writes through this object.
        run_dir: whose `checkpoints` they are.
        train: when they are written and which stay.
        ask: has all ranks stop, for a reason and with an exit status; any thread may call it.
        report: is told of each complete checkpoint, at the end of a later step: the state that it holds,
            where it lies, and what `summary` says.
    """

    def __init__(
        self,
        engine: Any,
        run_dir: Path,
        train: TrainConfig,
        ask: Callable[[str, int], None],
        report: Callable[[TrainState, Path, dict[str, Any]], None],
    ) -> None:
        self.failure: str | None = None
        self.cause: Exception | None = None
        self._engine, self._folder, self._train = engine, run_dir / "checkpoints", train
        self._ask, self._report = ask, report
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._copies = HostCopies()
        self._files = engine.checkpoint_engine = CopyingEngine(self._copies)
        engine._copy_recovery_script = lambda folder: None  # a script for what model.safetensors holds
        self._flight: Flight | None = None
        self._times = Times([], [], [], [])
        self._saved_at = time.monotonic()
        if self._rank == 0:
            clear_leftovers(self._folder)

    def are_due(self, state: TrainState, *, last: bool, stop: bool) -> bool:
        """Whether one is to be written after this step. All ranks call it after each step.

        Not while steps are skipped: what the run goes on from is before the first of them. After the last
        step there is one in any case; a skipped step has not moved the weights.

        Args:
            state: after the step.
            last: whether it was the run's last.
            stop: whether the run stops here.
        """
        self._report_complete()
        minutes_are_over = self._minutes_are_over()
        if last or state.skipped_in_a_row:
            return last
        return stop or minutes_are_over or state.step % self._train.checkpoint_every == 0

    def save(self, state: TrainState) -> None:
        """Copy all that must survive, and have it written. All ranks call it.

        The checkpoint before is waited for. Where there is no room, nothing is written, and the run is asked
        to end; so it is when writing fails later.
        """
        began = time.perf_counter()
        if self.wait():
            return
        final = self._folder / checkpoint_name(state.step)
        partial = final.with_name(f".{final.name}.partial")
        if self._fails(self._prepare(partial, final)):
            return
        with frozen(self._engine.module):
            self._engine.save_checkpoint(str(self._folder), tag=partial.name, save_latest=False)
        own_lanes = {
            lane: cursor for lane, cursor in state.cursors.items() if lane % self._world_size == self._rank
        }
        gathered: list[Any] = [None] * self._world_size
        free = shutil.disk_usage(self._folder).free
        dist.all_gather_object(gathered, (own_lanes, _rng_state(), self._copies.bytes, free))
        lanes, rng, sizes, free_sizes = zip(*gathered, strict=True)
        needed, free = sum(sizes) + 4 * _parameters(self._engine.module), min(free_sizes)
        if needed > free:
            if self._rank == free_sizes.index(free):
                self.cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._fail(
                f"{final} needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free; what was "
                "saved before stands: free some space, and the same command goes on from there"
            )
            return
        cursors = {lane: cursor for of_rank in lanes for lane, cursor in of_rank.items()}
        self._flight = Flight(
            self._files.files,
            partial,
            final,
            replace(state, cursors=cursors, rng=list(rng)),
            rank=self._rank,
            world_size=self._world_size,
            written=self._copies.give_back,
            failed=lambda sentence: self._ask(sentence, FAILED),
            completed=lambda written: prune(self._folder, self._train, written),
        )
        self._files.files = {}
        self._saved_at = time.monotonic()
        self._times.copy_s.append(self._files.seconds)
        self._times.stall_s.append(time.perf_counter() - began - self._files.seconds)

    def wait(self) -> str | None:
        """Until no checkpoint is being written any more. All ranks call it. Returns `failure`.

        Raises what a thread of this rank has raised, where that is not the disk's fault.
        """
        flight = self._flight
        if flight is None:
            return self.failure
        problems: list[str | None] = [None] * self._world_size
        dist.all_gather_object(problems, flight.wait_for_own_files())
        problem = next(filter(None, problems), None)
        if problem:
            flight.give_up()
        flight.join()
        self.cause = flight.error
        if flight.error is not None and not isinstance(flight.error, OSError):
            raise flight.error
        outcome: list[Any] = [(problem or flight.problem(), flight.is_complete)]
        dist.broadcast_object_list(outcome)
        problem, flight.is_complete = outcome[0]
        self._report_complete()
        self._flight = None
        if problem:
            self._fail(problem)
        return self.failure

    def summary(self) -> dict[str, Any]:
        """What the checkpoints of this start took, for summary.json."""
        times = self._times
        facts: dict[str, Any] = {"written": len(times.writing_s)}
        for name in ("copy_s", "stall_s", "writing_s"):
            values = getattr(times, name)
            if values:
                facts[name] = {
                    "mean": round(sum(values) / len(values), 4),
                    "max": round(max(values), 4),
                }
        if times.gigabytes:
            facts["gigabytes"] = round(times.gigabytes[-1], 4)
        return facts

    def _minutes_are_over(self) -> bool:
        """Whether `checkpoint_minutes` are, by rank 0's clock: another rank may see it a step later."""
        if self._train.checkpoint_minutes is None:
            return False
        are_over = [time.monotonic() - self._saved_at >= 60 * self._train.checkpoint_minutes]
        dist.broadcast_object_list(are_over)
        return are_over[0]

    def _report_complete(self) -> None:
        flight = self._flight
        if flight is None or not flight.is_complete or flight.is_reported:
            return
        flight.is_reported = True
        self._times.writing_s.append(flight.seconds)
        self._times.gigabytes.append(flight.bytes / 1e9)
        self._report(flight.state, flight.final, self.summary())

    def _prepare(self, partial: Path, final: Path) -> str | None:
        if self._rank > 0:
            return None
        clear_leftovers(self._folder)
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            self.cause = error
            return write_problem(final, error)
        return None

    def _fails(self, problem: str | None) -> bool:
        """Whether rank 0 has a problem; then all ranks fail with it."""
        said = [problem]
        dist.broadcast_object_list(said)
        if said[0]:
            self._fail(said[0])
        return said[0] is not None

    def _fail(self, problem: str) -> None:
        """Write no more, on all ranks."""
        self.failure = problem
        self._files.files = {}
        self._copies.give_back()
        if self._rank == 0:
            clear_leftovers(self._folder)
        self._ask(problem, FAILED)


def _parameters(module: torch.nn.Module) -> int:
    """How many numbers a model's weights are; ZeRO-3 leaves none of them in the parameters themselves."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


def _rng_state() -> dict[str, str]:
    rng = {"cpu": torch.get_rng_state().numpy().tobytes().hex()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return rng
