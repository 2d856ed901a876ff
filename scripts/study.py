"""A study: designs, sizes, rates and seeds, registered before the first run, trained from a queue and judged.

    python scripts/study.py recipes/studies/sample.yaml [--runs runs] [--plan | --status] [--sequential]
        [--retry]

Given again, the same command goes on where it stopped; given several times at once, on this machine or on
others that share the folder of runs, they divide the runs among them. docs/studies.md describes the file, the
verdicts and the exit statuses.
"""

import sys

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

from eval.studies.command import read_command
from model.errors import UserError, print_error
from model.redaction import redact_output


def main(argv: list[str]) -> int:
    """Plan, run or describe a study; returns the exit status."""
    try:
        request = read_command(argv)
    except (UserError, OSError) as error:
        return print_error(error)
    # Imported here: what is refused above is refused before the data's libraries are imported.
    from eval.judging.commands import Commands, Interrupted
    from eval.studies.job import print_plan, print_status, run_study

    try:
        if request.mode == "plan":
            return print_plan(request)
        if request.mode == "status":
            return print_status(request)
        return run_study(request, Commands(), say)
    except Interrupted:
        say("stopped: the same command goes on from there")
        return 75
    except (UserError, OSError) as error:
        return print_error(error)


def say(sentence: str) -> None:
    """A line of progress."""
    print(f"study: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
