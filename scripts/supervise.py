"""Training that is started again after failures, until it is finished or that is of no use.

    python scripts/supervise.py [--max_restarts 5] [--wait 10] -- deepspeed train.py ... --run_dir DIR

It is started again after a failure, with twice the wait each time that the run came no further, and not after
a refusal (2) or a divergence (3). SIGTERM, SIGINT, SIGUSR1 and SIGHUP stop the run and the supervisor.
docs/endings.md describes all of it.
"""

import argparse
import sys

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

from model.errors import UserError, print_error
from model.redaction import redact_output
from training.watch.supervisor import Plan, Supervisor, run_dir_of, say


def main(argv: list[str]) -> int:
    """Supervise a command; returns the exit status of its last start, 75 where a signal ended it."""
    parser = argparse.ArgumentParser(
        prog="supervise.py",
        usage="python scripts/supervise.py [--max_restarts N] [--wait SECONDS] -- COMMAND ... --run_dir DIR",
        description="Start a training command again after failures. The exit status is that of its last "
        "start: 0 finished, 1 failed too often, 2 refused, 3 diverged, 75 stopped and saved.",
    )
    parser.add_argument(
        "--max_restarts",
        type=int,
        default=5,
        metavar="N",
        help="how many restarts in a row may bring the run no further (default: 5)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="before a restart; doubled for each in a row that brings the run no further (default: 10)",
    )
    words, command = split(argv)
    given = parser.parse_args(words)
    try:
        if not command:
            raise UserError("no command was given: supervise.py -- deepspeed train.py ... --run_dir DIR")
        if given.max_restarts < 0 or not 0 <= given.wait < 86400:
            raise UserError("--max_restarts must be at least 0, and --wait from 0 to 86400 seconds")
        plan = Plan(command, run_dir_of(command), given.max_restarts, given.wait)
    except UserError as error:
        return print_error(error)
    return Supervisor(plan, say).run()


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The options before `--`, and the command after it."""
    place = argv.index("--") if "--" in argv else len(argv)
    return argv[:place], argv[place + 1 :]


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
