"""What the commands on a run's checkpoints share: their options, and how they end."""

import argparse
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from model.errors import UserError, print_error

if TYPE_CHECKING:
    from training.run.console import Console

Checked = TypeVar("Checked")


def checkpoint_parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A command line with the run folder and the step of its checkpoint."""
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that train.py wrote")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint's step (default: the last one)")
    return parser


def run_job(log_file: Path, check: Callable[[], Checked], work: Callable[[Checked, "Console"], None]) -> int:
    """Run a command that computes, once its options are checked; returns its exit status, 0 or 2.

    Args:
        log_file: gets what libraries print, and the traceback of what ends the work; made after the check.
        check: raises UserError or OSError for what is wrong with the command; it imports nothing heavy.
        work: gets what `check` returned and the console to talk on.
    """
    try:
        checked = check()
    except (UserError, OSError) as error:
        return print_error(error)
    from training.run.console import Console

    console = Console(log_file)
    try:
        work(checked, console)
    except (UserError, OSError) as error:
        traceback.print_exc()
        return console.fail(error)
    return 0
