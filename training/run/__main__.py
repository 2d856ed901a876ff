"""Where a run stands and why it ended: `python -m training.run RUN_DIR [--checksums] [--json]`."""

import argparse
import json
import sys
from pathlib import Path

from model.errors import UserError, print_error
from model.redaction import redact_output

from ..watch.standing import as_json, describe, standing


def main(argv: list[str]) -> int:
    """Returns the run's exit status: 0 finished or under way, 1 failed or dead, 3 diverged, 75 stopped and
    saved; 2 where there is no run."""
    parser = argparse.ArgumentParser(
        prog="python -m training.run",
        description="Where a run stands, why it ended, and what to type next. The exit status is the "
        "run's: 0 finished or under way, 1 failed or dead, 3 diverged, 75 stopped and saved; 2 where there "
        "is no run.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="the run folder")
    parser.add_argument("--checksums", action="store_true", help="read the last checkpoint to its end")
    parser.add_argument("--json", action="store_true", help="for programs")
    request = parser.parse_args(argv)
    try:
        run = standing(request.run_dir, request.checksums)
    except (UserError, OSError) as error:
        return print_error(error)
    print(json.dumps(as_json(run), indent=2) if request.json else "\n".join(describe(run)))
    return run.exit_status


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
