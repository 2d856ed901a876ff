"""Tasks on models: `python -m eval RUN_DIR|FOLDER... [--eval_data DIR] [--tasks a,b] [--limit N]`.

On several GPUs or CPU ranks: `deepspeed --num_gpus N --module eval RUN_DIR...`, or
`torchrun --nproc_per_node N -m eval RUN_DIR...`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import UserError, print_error
from model.redaction import redact_output
from training.config.evaluation import KNOWN_TASKS
from training.engine.environment import check_local_rank, rank_from_environment, world_size_from_environment

from .running.checkpoints import step_or_word
from .running.job import Job, check, check_requests
from .running.sequence import evaluate_each, log_file
from .running.watch import watched

if TYPE_CHECKING:
    from training.engine.ranks import Ranks
    from training.run.console import Console

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(argv: list[str]) -> int:
    """Run the jobs; returns the exit status: 0 when done, 2 where something about the command is wrong or a
    model could not be scored, 130 after Ctrl-C."""
    options = parse(argv)
    try:
        if options.step is not None:
            options.step = step_or_word(options.step)
        check_local_rank(options.local_rank)
        rank, world_size = rank_from_environment(), world_size_from_environment()
        requests = check_requests(options)
        known = None if options.watch else check(options)
    except (UserError, OSError) as error:
        return print_error(error)
    from training.run.console import Console

    console = Console(log_file(requests[0].out, rank), silent=rank > 0)
    try:
        ranks = _join(requests[0].out, console) if world_size > 1 else None
        jobs: Iterator[Job] = watched(requests, console.say) if known is None else iter(known)
        return evaluate_each(jobs, console, ranks, alone=known is not None and len(known) == 1)
    except (UserError, OSError) as error:
        return console.fail(error)
    except KeyboardInterrupt:
        console.say("stopped: what is scored is kept, and the same command goes on from there")
        return INTERRUPTED


def _join(run: Path, console: "Console") -> "Ranks":
    from training.engine.ranks import join_ranks

    return join_ranks(f"evaluation of {run}", console.say_by_any_rank)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `--help` comes before anything heavy is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Score runs' checkpoints on lm-eval tasks, with their fp32 weights. Results go to "
        "RUN_DIR/eval/step_*/results.json; a task there, of the same data and limit, is not scored again. "
        "A folder with a model in Hugging Face's form (GPT-2, an export) is scored on the tasks and the "
        "validation set of the run that --validation_like names. Several ranks share the work: deepspeed "
        "--num_gpus N --module eval RUN_DIR, or torchrun --nproc_per_node N -m eval RUN_DIR.",
        epilog="Tasks: " + ", ".join(KNOWN_TASKS) + ". The sample_ tasks and "
        "published_validation need neither hub nor --eval_data. Beside them every task, group and pattern "
        "that lm-eval knows (`lm-eval ls tasks` lists them).",
    )
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="RUN_DIR", help="folders that train.py wrote"
    )
    parser.add_argument(
        "--step", metavar="all|best|last|N", help="which checkpoints of each run (default: the last one)"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="score new checkpoints of runs under way too, until these end",
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
    parser.add_argument("--local_rank", metavar="N", help="set by the launcher")
    return parser.parse_args(argv)


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
