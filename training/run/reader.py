"""Reads run folders: what resume, evaluation, scorecard, report and export know of a run comes from here.

It is cheap to import, so that a mistyped command is answered at once.
"""

import fcntl
import hashlib
import json
import os
import re
import typing
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from model.values import as_type

from ..config.recipe_file import read_recipe_file

if TYPE_CHECKING:
    from data import Tokenizer

TOKENIZER = Path("tokenizer", "tokenizer.json")
"""Where a run keeps the file that `data.tokenizer` named, below its folder."""


def checkpoint_name(step: int) -> str:
    """The name of what a run keeps of `step`: a checkpoint's folder, and that of its evaluation."""
    return f"step_{step:08d}"


def checkpoint_step(folder: Path) -> int | None:
    """The step that a folder is named after; None for any other name."""
    match = re.fullmatch(r"step_(\d{8,})", folder.name)
    return int(match[1]) if match else None


def step_folders(parent: Path) -> dict[int, Path]:
    """The folders of `parent` that are named after a step, by step, the lowest first."""
    steps = {step: path for path in parent.glob("step_*") if (step := checkpoint_step(path)) is not None}
    return dict(sorted(steps.items()))


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files against its manifest; None if nothing is.

    Every file has to be there with its size and its sha256. A large checkpoint takes seconds to read.
    """
    manifest = _read_manifest(checkpoint)
    if manifest is None:
        return "its manifest.json cannot be read"
    for name, (size, sha256) in manifest.items():
        if not _has_size(checkpoint / name, size):
            return f"{name} is missing or has another size"
        if file_sha256(checkpoint / name) != sha256:
            return f"{name} has another checksum"
    return None


def complete_checkpoints(run_dir: Path) -> dict[int, Path]:
    """The checkpoints whose files are all there with their sizes, by step, the lowest first.

    The manifest that names them is written last. Whoever reads a checkpoint asks `damage` first.
    """
    return {
        step: folder for step, folder in step_folders(run_dir / "checkpoints").items() if _is_complete(folder)
    }


def find_checkpoint(run_dir: Path, step: int | None = None) -> tuple[Path, int]:
    """The folder and the step of the last complete checkpoint, or of the one at `step`.

    Raises UserError where there is none; for a step that has none, it names those that have.
    """
    complete = complete_checkpoints(run_dir)
    if not complete:
        raise UserError(f"{run_dir} has no complete checkpoint yet")
    if step is not None and step not in complete:
        there = ", ".join(map(str, complete))
        raise UserError(f"{run_dir} has no complete checkpoint of step {step}; the steps there are {there}")
    step = max(complete) if step is None else step
    return complete[step], step


def run_and_step(folder: Path) -> tuple[Path, int | None]:
    """The run and the step of RUN/checkpoints/step_N; the folder itself and None for any other."""
    step = checkpoint_step(folder)
    if step is None or folder.parent.name != "checkpoints":
        return folder, None
    return folder.parent.parent, step


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model in Hugging Face's form, and is no run."""
    return (folder / "config.json").is_file() and not (folder / "recipe.yaml").is_file()


def file_sha256(file: Path) -> str:
    """The checksum of a file, as a manifest holds it."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_recipe(run_dir: Path) -> dict[str, dict[str, Any]]:
    """RUN/recipe.yaml by section, keys by the names that they have now, values of their keys' types.

    Raises UserError where the folder or the file is missing or holds no recipe.
    """
    from ..config.recipe import SECTIONS  # it costs more than the rest of this module

    check_run_folder(run_dir, "recipe.yaml")
    if not (recipe := read_recipe_file(run_dir / "recipe.yaml")):
        raise UserError(f"{run_dir / 'recipe.yaml'} does not hold a recipe")
    # a key that was given up since is read as it looks
    kinds = {section: typing.get_type_hints(SECTIONS[section]) for section in recipe if section in SECTIONS}
    return {
        section: {
            key: as_type(f"{section}.{key}", value, kinds.get(section, {}).get(key, Any))
            for key, value in values.items()
        }
        for section, values in recipe.items()
    }


def read_tokenizer(run_dir: Path) -> "Tokenizer":
    """The tokenizer that a run was trained with: of a tokenizer.json the copy that the run keeps.

    Raises UserError where it is another than the run's, and as `open_tokenizer` does.
    """
    from data import open_tokenizer  # it costs more than the rest of this module

    section = read_recipe(run_dir).get("data") or {}
    name = section.get("tokenizer", "gpt2")  # runs from before there was a choice
    is_kept = name.endswith(".json") and (run_dir / TOKENIZER).is_file()
    tokenizer = open_tokenizer(name, run_dir / TOKENIZER) if is_kept else open_tokenizer(name)
    summary = read_summary(run_dir) if (run_dir / "summary.json").is_file() else {}
    if (before := summary.get("tokenizer_fingerprint")) not in (None, tokenizer.fingerprint):
        raise UserError(
            f"{tokenizer.file or name} is not the tokenizer that {run_dir} was trained with (its fingerprint "
            f"was {before[:12]}, is {tokenizer.fingerprint[:12]}): bring the first one back"
        )
    return tokenizer


def tokenizer_note(run_dir: Path) -> str | None:
    """What must be known of the tokenizer of a run from before it was kept; None where there is no doubt."""
    name = (read_recipe(run_dir).get("data") or {}).get("tokenizer", "gpt2")
    if not name.endswith(".json") or (run_dir / TOKENIZER).is_file():
        return None
    return (
        f"{run_dir} keeps no copy of its tokenizer: {name} is read as it lies there now, so make sure that "
        "it is still the one that the run was trained with"
    )


def read_summary(run_dir: Path) -> dict[str, Any]:
    """RUN/summary.json. Raises UserError where the folder or the file is missing or no JSON object."""
    check_run_folder(run_dir, "summary.json")
    return read_json(run_dir / "summary.json")


def read_metrics(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl, in order; a last one that a kill has cut short is left out.

    Raises UserError at any other line that is not JSON.
    """
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                return
            raise UserError(f"{path} line {number} is not JSON") from None
        yield values


def evaluation_folder(run_dir: Path, step: int) -> Path:
    """Where the evaluations of a run's model at `step` lie.

    `validation.parquet` holds the losses by document, `slices.parquet` those in slices; `results.json` and
    `per_item.parquet` hold the scores on tasks, `diagnosis.parquet` what each layer does.
    """
    return run_dir / "eval" / checkpoint_name(step)


def last_evaluated_step(run_dir: Path) -> int | None:
    """The last step whose checkpoint went through lm-eval's tasks; None where none did."""
    folders = step_folders(run_dir / "eval").items()
    return max((step for step, folder in folders if (folder / "results.json").is_file()), default=None)


def read_results(run_dir: Path, step: int) -> dict[str, Any]:
    """results.json of the checkpoint at `step`, as written; empty where no task has run there."""
    file = evaluation_folder(run_dir, step) / "results.json"
    return read_json(file) if file.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises UserError where it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is not valid JSON") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content


def is_being_trained(run_dir: Path) -> bool:
    """Whether a process trains here now: its rank 0 holds a lock that ends with it, however it ends."""
    return is_locked(run_dir / "logs" / "rank0.lock")


def is_locked(file: Path) -> bool:
    """Whether a process holds this lock file. To look takes no right to write."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def last_step(run_dir: Path) -> int | None:
    """The last step in the run's metrics, by their last lines; None where no step is there."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):  # a kill has cut it short
            return int(json.loads(line)["step"])
    return None


def check_run_folder(run_dir: Path, file_name: str) -> None:
    """Raise UserError unless there is a run folder that holds this file."""
    if not run_dir.is_dir():
        raise UserError(f"there is no run folder {run_dir}")
    if not (run_dir / file_name).is_file():
        raise UserError(f"{run_dir} is not a run folder: it holds no {file_name}")


def _read_manifest(checkpoint: Path) -> dict[str, tuple[int, str]] | None:
    """Size and sha256 of each of a checkpoint's files; None where the manifest is missing or cut short."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        return {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _has_size(file: Path, size: int) -> bool:
    try:  # training may remove it at any time
        return file.stat().st_size == size
    except OSError:
        return False


def _is_complete(checkpoint: Path) -> bool:
    manifest = _read_manifest(checkpoint)
    return manifest is not None and all(_has_size(checkpoint / name, manifest[name][0]) for name in manifest)
