"""Tasks on a model: `python -m eval RUN_DIR|FOLDER [--eval_data DIR] [--tasks a,b] [--limit N]`."""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import UserError
from training.config.evaluation import KNOWN_TASKS, EvalConfig
from training.run.reader import (
    find_checkpoint,
    is_model_folder,
    read_recipe,
    read_tokenizer,
    tokenizer_note,
)

from .command import checkpoint_parser, run_job
from .given import STEP, check_given, load_given, score_validation
from .harness.tasks import expand, group_results, takes_fewshot
from .result_files import check_limit, format_table, results_file, stored_results, write_results
from .tasks import check_tasks, load_tasks

if TYPE_CHECKING:
    from data import Tokenizer
    from model import GPT
    from training.run.console import Console


@dataclass(frozen=True)
class Job:
    """What is scored, and where the results go.

    Attributes:
        source: a run folder, or a model in Hugging Face's form.
        like: the run whose data, tokenizer and tasks are used: the source itself where it is a run.
        out: the folder that gets eval/step_*: the source unless --out names another.
        step: of the checkpoint.
        config: which tasks, on which items.
        slices: whether the validation loss is scored in slices too.
    """

    source: Path
    like: Path
    out: Path
    step: int
    config: EvalConfig
    slices: bool = False

    @property
    def is_given(self) -> bool:
        """Whether the weights are no run's."""
        return self.source != self.like


def main(argv: list[str]) -> int:
    """Run the job; returns the exit status: 0 when done, 2 where something about the command is wrong."""
    options = parse(argv)
    log_file = (options.out or options.run_dir) / "logs" / "eval.log"
    return run_job(log_file, partial(check, options), evaluate_model)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `--help` comes before anything heavy is imported."""
    parser = checkpoint_parser(
        "python -m eval",
        "Score a run's checkpoint on lm-eval tasks, with its fp32 weights. Results go to "
        "RUN_DIR/eval/step_*/results.json; a task there, of the same data and limit, is not scored again. "
        "A folder with a model in Hugging Face's form (GPT-2, an export) is scored on the tasks and the "
        "validation set of the run that --validation_like names.",
        "Tasks: " + ", ".join(KNOWN_TASKS) + ". The sample_ tasks and "
        "published_validation need neither hub nor --eval_data. Beside them every task, group and pattern "
        "that lm-eval knows (`lm-eval ls tasks` lists them).",
    )
    parser.add_argument(
        "--eval_data",
        metavar="DIR",
        help="folder of local evaluation sets instead of the hub (layout: eval/tasks.py)",
    )
    parser.add_argument(
        "--tasks", metavar="A,B", help="tasks, groups or patterns to run (default: the recipe's eval.tasks)"
    )
    parser.add_argument("--include_path", metavar="DIR", help="folder of your own YAML tasks")
    parser.add_argument(
        "--num_fewshot",
        type=int,
        metavar="N",
        help="solved examples before each item (default: each task's own number)",
    )
    parser.add_argument(
        "--apply_chat_template",
        nargs="?",
        const=True,
        metavar="NAME",
        help="refused: a pretrained model has no chat template",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="score only the first N items of each task")
    parser.add_argument(
        "--validation_like",
        type=Path,
        metavar="RUN_DIR",
        help="of a model without a run: the run whose validation set, tokenizer and tasks it is scored on",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="of a model without a run: where its results go (default: into its folder)",
    )
    parser.add_argument(
        "--slices",
        action="store_true",
        help="validation loss by position in the block, token frequency and document length, into "
        "slices.parquet; no tasks then but those of --tasks",
    )
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> Job:
    """The job, from the recipe's eval section with the command line over it.

    Raises UserError for whatever can be said before a model is loaded.
    """
    if options.apply_chat_template:
        raise UserError(
            "--apply_chat_template needs a model that was trained on chats, and a pretrained one has no chat "
            "template: leave it out"
        )
    source, like, out = options.run_dir, options.validation_like, options.out or options.run_dir
    if is_model_folder(source):
        check_given(source, like, out, options.step)
    elif like or options.out:
        given = "--validation_like" if like else "--out"
        read_recipe(source)
        raise UserError(f"{given} is for a model without a run, and {source} is a run: leave it out")
    else:
        like = source
    section = read_recipe(like).get("eval") or {}
    if options.tasks is not None:
        section["tasks"] = options.tasks.split(",")
    elif options.slices:
        section["tasks"] = ()
    if options.eval_data is not None:
        section["data_dir"] = options.eval_data
    for key in ("limit", "include_path", "num_fewshot"):
        if getattr(options, key) is not None:
            section[key] = getattr(options, key)
    if "tasks" in section:
        section["tasks"] = tuple(section["tasks"])
    config = EvalConfig(**section)
    step = STEP if like != source else find_checkpoint(source, options.step)[1]
    check_tasks(config.tasks, config.data_dir, config.include_path)
    check_limit(out, step, config.limit)
    return Job(source, like, out, step, config, options.slices)


def evaluate_model(job: Job, console: "Console") -> None:
    """Score the model on the tasks that have no results yet, and say the results of all."""
    config, loaded = job.config, None
    if note := tokenizer_note(job.like):
        console.say(note)
    if job.is_given:
        loaded = load(job)
        score_validation(*loaded, job.source, job.like, job.out, console)
    if job.slices:
        from .slices.losses import write_slices

        loaded = loaded or load(job)
        write_slices(loaded[0], job.step, job.like, job.out, console)
        if not config.tasks:
            return
    names = expand(config.tasks, config.include_path)
    stored = stored_results(job.out, job.step, config)
    if missing := tuple(name for name in names if name not in stored["results"]):
        console.say(f"reading {', '.join(missing)} from {config.data_dir or 'the hub or the sample'}")
        score(job, missing, loaded, console)
        stored = stored_results(job.out, job.step, config)
    console.say(format_table(stored, names))
    console.say(f"results in {results_file(job.out, job.step)}")


def load(job: Job) -> "tuple[GPT, Tokenizer]":
    """The model, where it is to run, and its tokenizer."""
    import torch

    from training.engine.weights import load_model

    if job.is_given:
        gpt, tokenizer = load_given(job.source, job.like)
    else:
        gpt, tokenizer = load_model(job.source, job.step)[0], read_tokenizer(job.source)
    return gpt.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def score(
    job: Job, names: tuple[str, ...], loaded: "tuple[GPT, Tokenizer] | None", console: "Console"
) -> None:
    """Score the model on these tasks; each one's results are on disk before the next begins.

    What is wrong with a task's items or requests is said before any is scored.
    """
    from lm_eval.api.group import Group

    from .checks.requests import check_requests
    from .jobs import run_tasks
    from .scoring.shared_contexts import why_not_shared

    config = job.config
    tasks = load_tasks(
        names,
        config.data_dir,
        job.like,
        include_path=config.include_path,
        num_fewshot=config.num_fewshot,
    )
    stored = stored_results(job.out, job.step, config)["results"]
    tasks = {name: task for name, task in tasks.items() if name not in stored}  # of a group
    if fixed := [name for name, task in tasks.items() if not takes_fewshot(task, config.num_fewshot)]:
        console.say(f"eval.num_fewshot does nothing for {', '.join(fixed)}: they show no examples")
    gpt, tokenizer = loaded or load(job)
    check_requests(tasks, tokenizer, gpt.config.block_size, config.limit)
    what = job.source if job.is_given else f"step {job.step} of {job.source}"
    console.say(f"scoring {what} on {next(gpt.parameters()).device}")
    if reason := why_not_shared(gpt):
        console.say(f"contexts are computed again for each of an item's choices: {reason}")
    for name, task in tasks.items():
        if isinstance(task, Group):
            results = group_results(task, stored_results(job.out, job.step, config))
        else:
            results = run_tasks(gpt, tokenizer, {name: task}, limit=config.limit, bar=console.bar)
        write_results(job.out, job.step, results, config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
