"""Tasks on a checkpoint of a run: `python -m eval RUN_DIR [--eval_data DIR] [--tasks a,b] [--limit N]`."""

import argparse
import sys
import traceback
from pathlib import Path

from training.config.evaluation import KNOWN_TASKS, EvalConfig
from training.run.console import Console, fail
from training.run.reader import find_checkpoint, load_model, read_recipe, read_tokenizer

from .tasks import check_tasks, load_tasks


def main(argv: list[str]) -> int:
    """Run the job; returns the exit status: 0 when done, 2 where something about the command is wrong."""
    options = parse(argv)
    try:
        config = resolve(options)
        step = int(find_checkpoint(options.run_dir, options.step).name.removeprefix("step_"))
        check_tasks(config.tasks, config.data_dir)
    except (ValueError, FileNotFoundError) as error:
        return fail(error)
    console = Console(options.run_dir / "logs" / "eval.log")
    try:
        evaluate_checkpoint(options.run_dir, step, config, console)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        traceback.print_exc()
        return console.fail(error)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `--help` comes before anything heavy is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Score a run's checkpoint on lm-eval tasks, with its fp32 weights. Results go to "
        "RUN_DIR/eval/step_*/results.json; a task there, of the same data and limit, is not scored again.",
        epilog="Tasks: " + ", ".join(KNOWN_TASKS) + ". The sample_ tasks need neither hub nor --eval_data.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that train.py wrote")
    parser.add_argument(
        "--eval_data",
        metavar="DIR",
        help="folder of local evaluation sets instead of the hub (layout: eval/tasks.py)",
    )
    parser.add_argument("--tasks", metavar="A,B", help="tasks to run (default: the recipe's eval.tasks)")
    parser.add_argument("--limit", type=int, metavar="N", help="score only the first N items of each task")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint's step (default: the last one)")
    return parser.parse_args(argv)


def resolve(options: argparse.Namespace) -> EvalConfig:
    """The recipe's eval section with the command line over it. Raises ValueError and FileNotFoundError."""
    section = read_recipe(options.run_dir).get("eval") or {}
    if options.tasks is not None:
        section["tasks"] = options.tasks.split(",")
    if options.eval_data is not None:
        section["data_dir"] = options.eval_data
    if options.limit is not None:
        section["limit"] = options.limit
    if "tasks" in section:
        section["tasks"] = tuple(section["tasks"])
    return EvalConfig(**section)


def evaluate_checkpoint(run_dir: Path, step: int, config: EvalConfig, console: Console) -> None:
    """Score the checkpoint on the tasks that have no results yet, and say the results of all."""
    import torch

    from .jobs import check_limit, format_table, results_file, run_tasks, stored_results, write_results

    check_limit(run_dir, step, config.limit)
    stored = stored_results(run_dir, step, config.limit, config.data_dir)
    if missing := tuple(name for name in config.tasks if name not in stored["results"]):
        console.say(f"reading {', '.join(missing)} from {config.data_dir or 'the hub or the sample'}")
        tasks = load_tasks(missing, config.data_dir)
        tokenizer = read_tokenizer(run_dir)
        gpt, step = load_model(run_dir, step)
        gpt.to("cuda" if torch.cuda.is_available() else "cpu")
        console.say(f"scoring step {step} of {run_dir} on {next(gpt.parameters()).device}")
        for name, task in tasks.items():  # each task's results are on disk before the next begins
            results = run_tasks(gpt, tokenizer, {name: task}, limit=config.limit, bar=console.bar)
            write_results(run_dir, step, results, eval_data=config.data_dir)
        stored = stored_results(run_dir, step, config.limit, config.data_dir)
    console.say(format_table(stored, config.tasks))
    console.say(f"results in {results_file(run_dir, step)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
