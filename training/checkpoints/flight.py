"""One checkpoint on its way to the disk: what a rank's thread does while the loop goes on."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial as with_arguments
from pathlib import Path
from typing import Any

import torch

from model.files import write_json

from ..engine.weights import SAFETENSORS, joined_weights
from ..run.reader import file_sha256
from ..state import TrainState
from .files import HashedFile, Written, sync_folder, write_hashed, write_safetensors
from .retention import put_in_place

LOOK_EVERY_S = 0.05
"""How often rank 0 looks for the other ranks' notes."""
_WHAT_TO_DO = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota or free some space",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "make the folder writable",
}


class Flight:
    """One checkpoint on its way to the disk, as one rank sees it.

    A thread writes this rank's files and leaves a note of their sizes and checksums in the partial folder.
    That of rank 0 waits for the notes of all ranks, adds weights, state and manifest, and gives the folder
    its name. It uses no collective.

    Attributes:
        state: of the run when it was copied, with the cursors and generators of all ranks.
        final: where the checkpoint will lie.
        error: why it cannot be written, once that is known.
        is_complete: whether it lies there, as far as this rank knows.
        is_reported: whether the run has been told so.
        seconds: from its beginning until it lay there, as rank 0 knows.
        bytes: on the disk, as rank 0 knows.

    Args:
        files: what this rank writes, by path below `partial`.
        partial: where it is written.
        final: as the attribute.
        state: as the attribute.
        rank: this one's.
        world_size: how many ranks write.
        written: is called once this rank's files are on the disk, when their copies are not needed any more.
        failed: is told in a sentence that the checkpoint cannot be written.
        completed: is called by rank 0's thread once the checkpoint is complete.
    """

    def __init__(
        self,
        files: dict[Path, Any],
        partial: Path,
        final: Path,
        state: TrainState,
        *,
        rank: int,
        world_size: int,
        written: Callable[[], None],
        failed: Callable[[str], None],
        completed: Callable[[TrainState], None],
    ) -> None:
        self._files, self._partial, self.final, self.state = files, partial, final, state
        self._rank, self._world_size = rank, world_size
        self._written, self._failed, self._completed = written, failed, completed
        self.error: Exception | None = None
        self.is_complete = self.is_reported = False
        self.seconds, self.bytes, self._began = 0.0, 0, time.perf_counter()
        self._own_files_are_over, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait_for_own_files(self) -> str | None:
        """Until this rank's files are on the disk or cannot be; the reason, if there is one."""
        self._own_files_are_over.wait()
        return self.problem()

    def give_up(self) -> None:
        """Wait for no other rank's files any more: one of them cannot write its own."""
        self._given_up.set()

    def join(self) -> None:
        """Until the thread has ended."""
        self._thread.join()

    def problem(self) -> str | None:
        """Why the checkpoint cannot be written, in a sentence."""
        return write_problem(self.final, self.error) if self.error else None

    def _run(self) -> None:
        try:
            self._write_own_files()
            if self._rank == 0:
                self._complete()
        except Exception as error:  # whatever it is, the loop has to hear of it
            self.error = disk_error(error) or error
            for file in self._files:
                file.unlink(missing_ok=True)  # a full disk has room again for what the run says of its end
            self._failed(write_problem(self.final, self.error))
        finally:
            self._own_files_are_over.set()

    def _write_own_files(self) -> None:
        files: dict[str, Written] = {}
        for path in self._files:
            files[self._name(path)] = write_hashed(path, with_arguments(_save, self._files[path]))
            self._files[path] = None
            sync_folder(path.parent)
        self._written()
        write_json(_note(self._partial, self._rank), files)
        self._own_files_are_over.set()

    def _complete(self) -> None:
        """What rank 0 does once all ranks' files are on the disk."""
        files: dict[str, Written] = {}
        for rank in range(self._world_size):
            note = _note(self._partial, rank)
            while not note.is_file():
                if self._given_up.wait(LOOK_EVERY_S):
                    return
            files |= json.loads(note.read_text())
            note.unlink()
        files[SAFETENSORS] = write_safetensors(self._partial / SAFETENSORS, joined_weights(self._partial))
        write_json(
            self._partial / "trainer_state.json", asdict(self.state) | {"world_size": self._world_size}
        )
        for path in self._partial.rglob("*"):  # also what DeepSpeed writes past its checkpoint engine
            if path.is_dir():
                sync_folder(path)
            elif self._name(path) not in files:
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
                files[self._name(path)] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
        manifest = {"step": self.state.step, "files": dict(sorted(files.items()))}
        write_json(self._partial / "manifest.json", manifest)
        sync_folder(self._partial)
        self.bytes = sum(file["size"] for file in files.values())
        put_in_place(self._partial, self.final)
        self.seconds = time.perf_counter() - self._began
        self.is_complete = True
        self._completed(self.state)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._partial).as_posix()


def disk_error(error: BaseException) -> OSError | None:
    """The error of the file system that an error comes from: torch says only that writing failed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause


def write_problem(final: Path, error: Exception) -> str:
    """Why a checkpoint could not be written, and what to do."""
    what, advice = f"{type(error).__name__}: {error}", ""
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        advice = (
            f": {_WHAT_TO_DO.get(error.errno or 0, 'mend that')}, and the same command goes on from there"
        )
    return f"{final} could not be written ({what}); what was saved before stands{advice}"


def _save(state: Any, file: HashedFile) -> None:
    torch.save(state, file)  # type: ignore[arg-type]


def _note(partial: Path, rank: int) -> Path:
    return partial / f".written_by_rank{rank}.json"
