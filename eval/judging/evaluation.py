"""A finished run scored on its recipe's tasks, by a command of its own."""

from collections.abc import Callable
from pathlib import Path

from model.errors import UserError
from training.checkpoints.found import find_checkpoint
from training.config.evaluation import EvalConfig

from ..result_files import stored_results
from .commands import Start


def evaluate_run(folder: Path, config: EvalConfig, start: Start, say: Callable[[str], object]) -> str | None:
    """Score a run where it has no results yet; a sentence where that failed: its loss still counts.

    Args:
        folder: of the run.
        config: the recipe's tasks, and how they are asked.
        start: runs a command.
        say: is told that it is evaluated.
    """
    if not config.tasks:
        return None
    try:
        _, step = find_checkpoint(folder)
    except UserError as error:  # removed since
        return f"{folder} was not evaluated: {error}"
    stored = stored_results(folder, step, config)
    if set(config.tasks) <= stored["results"].keys():
        return None
    say(f"evaluating {folder}")
    words = [str(folder), "--tasks", ",".join(config.tasks)]
    words += ["--limit", str(config.limit)] if config.limit is not None else []
    words += ["--eval_data", config.data_dir] if config.data_dir is not None else []
    words += ["--include_path", config.include_path] if config.include_path is not None else []
    words += ["--num_fewshot", str(config.num_fewshot)] if config.num_fewshot is not None else []
    ended = start("eval", words)
    return f"{folder} was not evaluated: {ended.reason()}" if ended.status else None
