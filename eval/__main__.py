"""Tasks on a checkpoint of a run: `python -m eval RUN_DIR [--eval_data DIR] [--tasks a,b] [--limit N]`."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from training.config.evaluation import KNOWN_TASKS, EvalConfig
from training.run.reader import find_checkpoint, read_recipe, read_tokenizer

from .command import checkpoint_parser, run_job
from .result_files import check_limit, format_table, results_file, stored_results, write_results
from .tasks import check_tasks, load_tasks

if TYPE_CHECKING:
    from training.run.console import Console


def main(argv: list[str]) -> int:
    """Run the job; returns the exit status: 0 when done, 2 where something about the command is wrong."""
    options = parse(argv)
    log_file = options.run_dir / "logs" / "eval.log"
    return run_job(log_file, partial(check, options), partial(evaluate_checkpoint, options.run_dir))


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `--help` comes before anything heavy is imported."""
    parser = checkpoint_parser(
        "python -m eval",
        "Score a run's checkpoint on lm-eval tasks, with its fp32 weights. Results go to "
        "RUN_DIR/eval/step_*/results.json; a task there, of the same data and limit, is not scored again.",
        "Tasks: " + ", ".join(KNOWN_TASKS) + ". The sample_ tasks and "
        "published_validation need neither hub nor --eval_data.",
    )
    parser.add_argument(
        "--eval_data",
        metavar="DIR",
        help="folder of local evaluation sets instead of the hub (layout: eval/tasks.py)",
    )
    parser.add_argument("--tasks", metavar="A,B", help="tasks to run (default: the recipe's eval.tasks)")
    parser.add_argument("--limit", type=int, metavar="N", help="score only the first N items of each task")
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> tuple[int, EvalConfig]:
    """The step to score and how, from the recipe's eval section with the command line over it.

    Raises UserError for whatever can be said before a model is loaded.
    """
    section = read_recipe(options.run_dir).get("eval") or {}
    if options.tasks is not None:
        section["tasks"] = options.tasks.split(",")
    if options.eval_data is not None:
        section["data_dir"] = options.eval_data
    if options.limit is not None:
        section["limit"] = options.limit
    if "tasks" in section:
        section["tasks"] = tuple(section["tasks"])
    config = EvalConfig(**section)
    _, step = find_checkpoint(options.run_dir, options.step)
    check_tasks(config.tasks, config.data_dir)
    check_limit(options.run_dir, step, config.limit)
    return step, config


def evaluate_checkpoint(run_dir: Path, checked: tuple[int, EvalConfig], console: "Console") -> None:
    """Score the checkpoint on the tasks that have no results yet, and say the results of all."""
    step, config = checked
    stored = stored_results(run_dir, step, config.limit, config.data_dir)
    if missing := tuple(name for name in config.tasks if name not in stored["results"]):
        score(run_dir, step, missing, config, console)
        stored = stored_results(run_dir, step, config.limit, config.data_dir)
    console.say(format_table(stored, config.tasks))
    console.say(f"results in {results_file(run_dir, step)}")


def score(run_dir: Path, step: int, names: tuple[str, ...], config: EvalConfig, console: "Console") -> None:
    """Score the checkpoint on these tasks; each one's results are on disk before the next begins."""
    import torch

    from training.engine.weights import load_model

    from .jobs import run_tasks

    console.say(f"reading {', '.join(names)} from {config.data_dir or 'the hub or the sample'}")
    tasks = load_tasks(names, config.data_dir, run_dir)
    tokenizer = read_tokenizer(run_dir)
    gpt, step = load_model(run_dir, step)
    gpt.to("cuda" if torch.cuda.is_available() else "cpu")
    console.say(f"scoring step {step} of {run_dir} on {next(gpt.parameters()).device}")
    for name, task in tasks.items():
        results = run_tasks(gpt, tokenizer, {name: task}, limit=config.limit, bar=console.bar)
        write_results(run_dir, step, results, eval_data=config.data_dir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
