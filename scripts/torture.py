"""NormLab under faults: runs killed at random moments, and each fault that a run must survive or explain.

    python scripts/torture.py [--kills 50] [--seed 1] [--only FAULT[,FAULT ...]] [--folder runs/torture]

It prints in how many places the killed runs differ from an uninterrupted one, and a table of what happened at
each fault, and ends with 1 where anything was not as it should be. Given again after a stop, the same command
goes on; a folder that is removed begins again. docs/torture.md has the table as it was, and the machine.
"""

import argparse
import json
import sys
from pathlib import Path

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

from faults import of_checkpoints, of_data, of_folders, of_numbers, of_processes, of_tracking
from faults.kills import Kills
from faults.runs import Bench, TortureError
from faults.server import Forks
from faults.table import Fault, Scene, print_table
from model.errors import FAILED, INTERRUPTED, UserError, nearest_name, print_error
from model.redaction import redact_output

KILLS = "kills"
"""The name of the first part among the faults of `--only`."""
MOUNTED = of_folders.MOUNTED
FAULTS = {
    fault.name: fault
    for fault in (
        *of_processes.FAULTS,
        *of_checkpoints.FAULTS,
        *MOUNTED,
        *of_data.FAULTS,
        *of_tracking.FAULTS,
        *of_numbers.FAULTS,
        *of_folders.FAULTS,
    )
}


def main(argv: list[str]) -> int:
    """Torture; returns the exit status: 0 where all was as it should be, 1 where not, 2 refused."""
    asked = read_command(argv)
    try:
        chosen = chosen_faults(asked.only)
        folder = asked.folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        return print_error(error)
    forks = Forks()
    try:
        bench = Bench(folder, forks)
        differences = killed(bench, asked.kills, asked.seed) if KILLS in chosen else 0
        rows = played(bench, [FAULTS[name] for name in chosen if name != KILLS])
    except KeyboardInterrupt:
        say("stopped: the same command goes on from there")
        return INTERRUPTED
    except TortureError as error:
        say(str(error))
        return FAILED
    finally:
        forks.close()
    if rows:
        print_table(rows)
    if KILLS in chosen:
        print(f"{differences} differences after {asked.kills} kills")
    failed = [row["name"] for row in rows if row["problems"]]
    if failed:
        print(f"{len(failed)} of {len(rows)} faults did not end as expected: {', '.join(failed)}")
    return FAILED if failed or differences else 0


def read_command(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="torture.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="random moments of the first part")
    parser.add_argument("--seed", type=int, default=1, help="draws the moments")
    parser.add_argument("--only", default="", help=f"some of: {', '.join([KILLS, *FAULTS])}")
    parser.add_argument("--folder", type=Path, default=Path("runs", "torture"), help="for all files")
    return parser.parse_args(argv)


def chosen_faults(only: str) -> list[str]:
    """The names in `--only`, or all of them. Raises UserError for one that there is not."""
    names = [KILLS, *FAULTS]
    chosen = [name.strip() for name in only.split(",") if name.strip()] or names
    for name in chosen:
        if name not in names:
            raise UserError(
                f"--only names {name!r}, but the faults are {', '.join(names)}: did you mean "
                f"{nearest_name(name, names)!r}?"
            )
    return chosen


def killed(bench: Bench, number: int, seed: int) -> int:
    """The first part. Returns in how many places the killed runs differ."""
    kills = Kills(bench, seed, say)
    kills.play(number)
    return len(kills.found["problems"])


def played(bench: Bench, faults: list[Fault]) -> list[dict]:
    """The second part: the rows of the table, those of an earlier start included."""
    rows = []
    for fault in faults:
        kept = bench.folder / "rows" / f"{fault.name}.json"
        if kept.is_file():
            rows.append(json.loads(kept.read_text()))
            continue
        if fault in MOUNTED and not of_folders.can_mount():
            say(f"{fault.name}: left out, it needs root to mount a small file system")
            continue
        row = fault.row(fault.play(Scene(bench, fault.name, fault.bound_s)))
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(row))
        rows.append(row)
        say(f"{fault.name}: {'; '.join(row['problems']) or 'as expected'}, {row['seconds']:.1f} s")
    return rows


def say(sentence: str) -> None:
    """A line of progress."""
    print(f"torture: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
