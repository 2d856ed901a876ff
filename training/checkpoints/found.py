"""The checkpoints of a run folder, and what is wrong with them: resume and every reader ask here.

It is cheap to import, so that a mistyped command is answered at once.
"""

import json
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path, PurePosixPath

from model.errors import UserError

from ..run.reader import (
    checkpoint_step,
    damaged_folders,
    file_sha256,
    note_once,
    read_metrics,
    read_recipe,
    read_summary,
    shortened,
    step_folders,
)

_SHA256 = re.compile("[0-9a-f]{64}")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files against its manifest; None if nothing is.

    Every file has to be there with its size and its sha256. A large checkpoint takes seconds to read; while
    its files are not written again, this process reads it once.
    """
    try:
        manifest = _read_manifest(checkpoint)
    except ValueError as error:
        return str(error)
    for name, (size, _) in manifest.items():
        if not _has_size(checkpoint / name, size):
            return f"{name} is missing or has another size"
    try:
        return next((f"{name} {said}" for name in manifest if (said := _changed(checkpoint, name))), None)
    except OSError as error:  # what a disk that fails says has no name in it
        return f"a file of it cannot be read: {error.strerror or error}"


def complete_checkpoints(run_dir: Path) -> dict[int, Path]:
    """The checkpoints whose files are all there with their sizes, by step, the lowest first.

    The manifest that names them is written last. Whoever reads a checkpoint asks `damage` first.
    """
    return {
        step: folder for step, folder in step_folders(run_dir / "checkpoints").items() if _is_complete(folder)
    }


def whole_checkpoints(run_dir: Path) -> dict[int, Path]:
    """The checkpoints without damage, by step, the lowest first; a damaged one is named on stderr.

    Raises UserError where there are checkpoints and all of them are damaged.
    """
    found = step_folders(run_dir / "checkpoints")
    problems = {step: said for step, folder in found.items() if (said := damage(folder))}
    if found and len(problems) == len(found):
        raise UserError(f"{run_dir} has no checkpoint that is whole: {_listed(problems)}")
    for step, said in problems.items():
        note_once(f"{found[step]} is damaged ({said}) and left out")
    return {step: folder for step, folder in found.items() if step not in problems}


def find_checkpoint(run_dir: Path, step: int | None = None) -> tuple[Path, int]:
    """The folder and the step of the last checkpoint without damage, or of the one at `step`.

    A later one that is damaged is named on stderr. Raises UserError where there is none; for a step that has
    none, it names those that have.
    """
    found = step_folders(run_dir / "checkpoints")
    if step is not None:
        if step not in found:
            there = ", ".join(map(str, complete_checkpoints(run_dir))) or "none"
            raise UserError(
                f"{run_dir} has no complete checkpoint of step {step}; the steps there are {there}"
            )
        if problem := damage(found[step]):
            others = [other for other in complete_checkpoints(run_dir) if other != step]
            instead = f"--step takes one of {', '.join(map(str, others))}" if others else "no other is there"
            raise UserError(f"{found[step]} is damaged ({problem}): {instead}")
        return found[step], step
    problems: dict[int, str] = {}
    for last, folder in reversed(found.items()):
        if not (problem := damage(folder)):
            for damaged, said in problems.items():
                note_once(f"{found[damaged]} is damaged ({said}): the one of step {last} is taken")
            return folder, last
        problems[last] = problem
    if problems:
        raise UserError(f"{run_dir} has no checkpoint that is whole: {_listed(problems)}")
    if renamed := damaged_folders(run_dir / "checkpoints"):
        names = ", ".join(folder.name for folder in renamed)
        raise UserError(f"{run_dir} has no checkpoint that is whole: training found {names} damaged")
    raise UserError(f"{run_dir} has no complete checkpoint yet")


def best_validation(run_dir: Path, steps: Collection[int]) -> tuple[int, float] | None:
    """Which of these steps has the lowest validation loss in the run's metrics, and that loss, in nats per
    token; None where none of them has one."""
    losses = {
        line["step"]: line["loss"]
        for line in read_metrics(run_dir)
        if line["kind"] == "val" and line.get("loss") is not None and line["step"] in steps
    }
    return min(losses.items(), key=lambda of_step: of_step[1], default=None)


def lost_checkpoints(run_dir: Path) -> str | None:
    """Why a run that has begun can neither go on nor begin again without a word; None where it can.

    Sizes are compared, no checksums: every rank may ask. A run that was killed before its first checkpoint
    was due, or while it was written, has lost none.
    """
    parent = run_dir / "checkpoints"
    is_writing = any(parent.glob(".step_*.partial"))  # asked first: it becomes a checkpoint in one moment
    if complete_checkpoints(run_dir):
        return None
    if step_folders(parent) or damaged_folders(parent):
        return none_is_whole(parent)
    summary = read_summary(run_dir) if (run_dir / "summary.json").is_file() else {}
    if last := summary.get("last_checkpoint"):
        return f"{run_dir / str(last)} was written, and no checkpoint is there now: {_remedy(run_dir)}"
    has_recipe = (run_dir / "recipe.yaml").is_file()
    every = (read_recipe(run_dir).get("train") or {}).get("checkpoint_every") if has_recipe else None
    if is_writing or not every:
        return None
    lines = [line for line in read_metrics(run_dir) if line["kind"] == "train"]
    last_step = max((line["step"] for line in lines), default=0)
    due = [line["step"] for line in lines if line["step"] % every == 0 and not line.get("skipped")]
    if not due or last_step <= due[0]:
        return None
    return (
        f"{run_dir / 'metrics.jsonl'} has {last_step} steps and a checkpoint was due at step {due[0]}, but "
        f"there is none: {_remedy(run_dir)}"
    )


def none_is_whole(parent: Path) -> str:
    """What is wrong with each of the checkpoints in a folder, all of them damaged, and what to type."""
    named = [f"{folder.name}: {damage(folder)}" for folder in reversed(step_folders(parent).values())]
    named += [f"{folder.name}: found damaged before" for folder in damaged_folders(parent)]
    return f"no checkpoint in {parent} is whole ({'; '.join(named)}): {_remedy(parent.parent)}"


def _remedy(run_dir: Path) -> str:
    return (
        "bring a whole one back, or give --restart, which begins again and keeps all that is there in "
        f"{run_dir / 'before_restart_1'} or the next free number"
    )


def _read_manifest(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of each of a checkpoint's files. Raises ValueError that says what is wrong with it."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_bytes())
        step, files = manifest["step"], manifest["files"]
        found = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("its manifest.json cannot be read") from None
    if type(step) is not int or step != checkpoint_step(checkpoint):
        raise ValueError(f"its manifest.json is of step {shortened(step)}")
    if not found:
        raise ValueError("its manifest.json names no file")
    for name, (size, sha256) in found.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            raise ValueError(f"its manifest.json names {shortened(name)}, which is no file inside it")
        if type(size) is not int or size < 0 or not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise ValueError(f"its manifest.json has no size and sha256 of {shortened(name)}")
    return found


def _changed(checkpoint: Path, name: str) -> str | None:
    """What is another in a file of a checkpoint than its manifest says."""
    status = (checkpoint / name).stat()
    sha256 = _sha256_of(checkpoint / name, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return None if sha256 == _read_manifest(checkpoint)[name][1] else "has another checksum"


@cache
def _sha256_of(file: Path, *written: int) -> str:
    return file_sha256(file)


def _listed(problems: Mapping[int, str]) -> str:
    return "; ".join(f"step {step} is damaged ({said})" for step, said in problems.items())


def _has_size(file: Path, size: int) -> bool:
    try:  # training may remove it at any time
        return file.is_file() and file.stat().st_size == size
    except OSError:
        return False


def _is_complete(checkpoint: Path) -> bool:
    try:
        manifest = _read_manifest(checkpoint)
    except ValueError:
        return False
    return all(_has_size(checkpoint / name, size) for name, (size, _) in manifest.items())
