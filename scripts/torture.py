"""NormLab under faults: runs killed at random moments, and each fault that a run must survive or explain.

    python scripts/torture.py [--kills 50] [--seed 1] [--only FAULT[,FAULT ...]] [--folder runs/torture]

It prints in how many places the killed runs differ from an uninterrupted one, and a table of what happened at
each fault, and ends with 1 where anything was not as it should be. Given again after a stop, the same command
goes on; docs/torture.md has the table as it was, and the machine.
"""

import argparse
import shutil
import sys
from pathlib import Path

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

from faults.kills import Kills
from faults.runs import Bench, TortureError
from faults.server import Forks


def main(argv: list[str]) -> int:
    """Torture; returns the exit status."""
    asked = read_command(argv)
    folder = Path(asked.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    forks = Forks()
    kills = Kills(Bench(folder, forks), asked.seed, say)
    kills.play(asked.kills)
    print(f"{kills.differences()} differences")
    return 0


def read_command(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torture.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--folder", default="runs/torture")
    return parser.parse_args(argv)


def say(sentence: str) -> None:
    """A line of progress."""
    print(f"torture: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
