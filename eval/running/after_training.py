"""The recipe's evaluation, by itself when training ends: the run is finished whatever becomes of it."""

import shlex
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from training.config.evaluation import EvalConfig
from training.run.reader import section_of

from ..result_files import check_limit, stored_results
from ..tasks import check_tasks
from ..tracked.late import log_late
from .checkpoints import is_there
from .evaluation import score_model
from .job import Job
from .sequence import log_file
from .together import in_one_line

if TYPE_CHECKING:
    from training.engine.ranks import Ranks
    from training.run.console import Console
    from training.run.folder import RunFolder
    from training.watch.stop import StopRequest

OPTIONS = {
    "tasks": "--tasks",
    "data_dir": "--eval_data",
    "limit": "--limit",
    "include_path": "--include_path",
    "num_fewshot": "--num_fewshot",
}
"""The keys of the `eval` section that decide what is scored, and the options of `python -m eval` for them."""


def check_evaluation(config: EvalConfig) -> None:
    """Refuse before training what its evaluation would refuse after it, as far as it costs nothing to know.

    Raises UserError.
    """
    if not config.after_training:
        return
    try:
        check_tasks(config.tasks, config.data_dir, config.include_path, config.num_fewshot)
    except UserError as error:
        raise UserError(f"{error}, or --eval.after_training=false to train without an evaluation") from error


def is_evaluation_missing(config: EvalConfig, folder: "RunFolder") -> bool:
    """Whether a finished run has a checkpoint that its evaluation has not scored to the end."""
    step = folder.summary["step"]
    if not (config.after_training and config.tasks and is_there(folder.path, step)):
        return False
    try:
        check_limit(folder.path, step, config.limit)
    except UserError:  # there are results over more items than the recipe's
        return False
    stored = stored_results(folder.path, step, config)["results"]
    if stored and folder.summary.get("evaluation") == _facts(config, folder, "finished"):
        return False  # a tag or a pattern has no results of its own
    return not stored.keys() >= set(config.tasks)


def evaluate_finished(config: EvalConfig, folder: "RunFolder", stop: "StopRequest") -> int:
    """What a finished run lacks, once it is started again. Returns the exit status."""
    from training.engine.ranks import join_ranks
    from training.run.console import Console

    console = Console(log_file(folder.path, folder.rank), silent=folder.rank > 0)
    stop.speak_on(console)
    try:
        ranks = join_ranks(str(folder.path), console.say_by_any_rank)
    except (UserError, OSError) as error:
        return console.fail(error)
    with stop.joined(ranks, folder):
        evaluate_run(config, folder, console, ranks, stop)
    return 0


def evaluate_run(
    config: EvalConfig, folder: "RunFolder", console: "Console", ranks: "Ranks", stop: "StopRequest"
) -> None:
    """Evaluate the last checkpoint of a run that is finished, if its recipe wants that. All ranks call it.

    An evaluation that fails is said, with the command that repeats it; summary.json has as `evaluation` how
    it went. A stop ends the process, with the status INTERRUPTED: what is scored is kept. W&B has 30 s at the
    end, in which rank 0 alone waits for it.
    """
    if not (config.after_training and config.tasks):
        return
    from training.engine.build import free_engines

    step, log = folder.summary["step"], log_file(folder.path, folder.rank)
    command = shlex.join(["python", "-m", "eval", str(folder.path)])
    try:
        command = _command(config, folder)
        console.log_to(log)
        _note(config, folder, "running")
        stopped = f"the run is finished, and its evaluation stops: `{command}` goes on with it"
        with stop.ends_at_once(stopped, lambda: _note(config, folder, "interrupted", command=command)):
            free_engines()
            score_model(Job(folder.path, folder.path, folder.path, step, config), console, ranks)
        _note(config, folder, "finished")
        if folder.rank == 0:  # the other ranks leave: W&B may be slow, or hang
            log_late(folder.path, step, console.say, f"`{command}`", stop.asked)
    except Exception as error:
        traceback.print_exc()
        sentence = in_one_line(error)
        console.say(
            f"{folder.path} is finished, but its evaluation failed: {sentence}; `{command}` repeats it "
            f"(traceback in {log})"
        )
        with suppress(OSError):  # a full disk may be why it failed
            _note(config, folder, "failed", error=sentence, command=command)


def _note(config: EvalConfig, folder: "RunFolder", status: str, **more: str) -> None:
    folder.update_summary(evaluation=_facts(config, folder, status) | more)


def _facts(config: EvalConfig, folder: "RunFolder", status: str) -> dict[str, Any]:
    """What summary.json says of the evaluation, but for what failed."""
    asked = {key: getattr(config, key) for key in OPTIONS} | {"tasks": list(config.tasks)}
    return {"status": status, "step": folder.summary["step"], **asked}


def _command(config: EvalConfig, folder: "RunFolder") -> str:
    """What a user types to evaluate the same: what the run's own recipe says need not be said."""
    recipe = section_of(folder.path, "eval")
    words = ["python", "-m", "eval", str(folder.path)]
    for key, option in OPTIONS.items():
        value = getattr(config, key)
        if value is not None and value != getattr(recipe, key):
            words += [option, ",".join(value) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)
