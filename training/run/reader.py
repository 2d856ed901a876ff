"""Reads run folders: what resume, evaluation, scorecard, report and export know of a run comes from here.

It is cheap to import, so that a mistyped command is answered at once.
"""

import fcntl
import hashlib
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.shapes import misshapen
from model.values import as_type

from ..config.recipe_file import read_recipe_file
from ..run_files import EnvironmentFile, ResultsFile, SummaryFile

TOKENIZER = Path("tokenizer", "tokenizer.json")
"""Where a run keeps the file that `data.tokenizer` named, below its folder."""
_NUMBERS = ("tokens", "loss", "bits_per_byte", "grad_norm", "lr", "tokens_per_s")
"""Of a line of metrics.jsonl."""


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


def damaged_folders(parent: Path) -> list[Path]:
    """The checkpoints in `parent` that a start found damaged and renamed: `damaged_step_N`."""
    return sorted(path for path in parent.glob("damaged_step_*") if path.is_dir())


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
    file = run_dir / "recipe.yaml"
    if not (recipe := read_recipe_file(file)):
        raise UserError(f"{file} does not hold a recipe")
    # a key that was given up since is read as it looks
    kinds = {section: typing.get_type_hints(SECTIONS[section]) for section in recipe if section in SECTIONS}
    try:
        return {
            section: {
                key: as_type(f"{section}.{key}", value, kinds.get(section, {}).get(key, Any))
                for key, value in values.items()
            }
            for section, values in recipe.items()
        }
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def section_of(run_dir: Path, section: str, **instead: Any) -> Any:
    """A section of RUN/recipe.yaml as its dataclass, with some keys' values taken from `instead`.

    Raises UserError as `read_recipe` does, and where the file holds a key that there is not.
    """
    from ..config.recipe import SECTIONS

    try:
        return SECTIONS[section](**(read_recipe(run_dir).get(section) or {}) | instead)
    except TypeError as error:  # a key that there is not
        raise UserError(f"{run_dir / 'recipe.yaml'}: section '{section}' cannot be read: {error}") from error


def read_summary(run_dir: Path) -> dict[str, Any]:
    """RUN/summary.json. Raises UserError where the folder or the file is missing, or holds anything else."""
    check_run_folder(run_dir, "summary.json")
    return read_json(run_dir / "summary.json", SummaryFile)


def read_environment(run_dir: Path) -> dict[str, Any]:
    """RUN/environment.json; empty where there is none. Raises UserError as `read_json` does."""
    file = run_dir / "environment.json"
    return read_json(file, EnvironmentFile) if file.exists() else {}


def read_metrics(run_dir: Path, say: Callable[[str], object] | None = None) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl, in order, without those that are no JSON object of a step.

    `say` is told which were left out; a last one that a kill has cut short is no news.
    """
    lines, broken = read_json_lines(run_dir / "metrics.jsonl", _is_of_a_step)
    if say and broken:
        say(f"{run_dir / 'metrics.jsonl'}: {broken} no JSON of a step, and left out")
    return lines


def read_json_lines(
    file: Path, is_line: Callable[[dict[str, Any]], bool]
) -> tuple[list[dict[str, Any]], str | None]:
    """The JSON objects of a file's lines for which `is_line` holds, and which lines hold none, in words.

    A last line without its end is not among those: a kill has cut it short. A file that is missing has none.
    """
    found, broken = [], []
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            is_good = isinstance(value, dict) and is_line(value)
        except (ValueError, RecursionError):
            is_good = False
        if is_good:
            found.append(value)
        elif line.strip() and number < len(lines):
            broken.append(number)
    if not broken:
        return found, None
    named = ", ".join(map(str, broken[:8])) + (f" and {len(broken) - 8} more" if len(broken) > 8 else "")
    return found, f"line{'s' if len(broken) > 1 else ''} {named} {'are' if len(broken) > 1 else 'is'}"


def _is_of_a_step(values: dict[str, Any]) -> bool:
    numbers = all(isinstance(values.get(key), int | float | None) for key in _NUMBERS)
    return type(values.get("step")) is int and isinstance(values.get("kind"), str) and numbers


def evaluation_folder(run_dir: Path, step: int) -> Path:
    """Where the evaluations of a run's model at `step` lie.

    `validation.parquet` holds the losses by document, `slices.parquet` those in slices; `results.json` and
    `per_item.parquet` hold the scores on tasks, `diagnosis.parquet` what each layer does.
    """
    return run_dir / "eval" / checkpoint_name(step)


def last_evaluated_step(run_dir: Path) -> int | None:
    """The last step whose checkpoint went through lm-eval's tasks; None where none did."""
    folders = step_folders(run_dir / "eval").items()
    return max((step for step, folder in folders if (folder / "results.json").exists()), default=None)


def read_results(run_dir: Path, step: int) -> dict[str, Any]:
    """results.json of the checkpoint at `step`, as written; empty where no task has run there.

    Raises UserError where it does not hold the results of an evaluation.
    """
    file = evaluation_folder(run_dir, step) / "results.json"
    if not file.exists():
        return {}
    results = read_json(file, ResultsFile)
    if not {"results", "normlab"} <= results.keys():
        raise UserError(f"{file} holds no results of an evaluation: move it away, and evaluate again")
    return results


def read_json(path: Path, kind: Any = dict) -> dict[str, Any]:
    """A file that holds one JSON object, of a type as `misshapen` takes it. Raises UserError where it holds
    anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        state = "is empty" if path.stat().st_size == 0 else "is not valid JSON"
        raise UserError(f"{path} {state}: move it away, or bring a whole copy back") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: move it away, or bring a whole copy back")
    if problem := misshapen(content, kind):
        raise UserError(f"{path}: {problem}: move it away, or bring a whole copy back")
    return content  # type: ignore[no-any-return]


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Around reading a Parquet file: raises UserError that names it where it is damaged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, OSError) as error:  # what pyarrow raises of a damaged file is any of these
        raise UserError(
            f"{file} cannot be read ({shortened(error)}): move it away, or bring a whole copy back"
        ) from error


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


def shortened(value: object) -> str:
    """A value out of a file that may hold anything, short enough for a sentence."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


@cache
def note_once(sentence: str) -> None:
    """Print `note: SENTENCE` to stderr, on rank 0 and once: a command finds its checkpoint several times."""
    if (os.environ.get("RANK") or "0") == "0":
        print(f"note: {sentence}", file=sys.stderr)
