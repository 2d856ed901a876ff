"""The scorecard: which variant has the lower validation loss, by how much, and is that more than noise.

    python -m eval.scorecard runs/vanilla_s1 runs/vanilla_s2 runs/rmsnorm_s1 runs/rmsnorm_s2

Runs are grouped by variant; several numeric modes or model sizes get a row each. Differences are taken
between runs with the same seeds and setting only.
"""

import argparse
import sys
from collections.abc import Sequence

from model.errors import UserError, print_error

from .evidence.results import read_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m eval.scorecard", description="Compare finished runs.")
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="folder of a run")
    parser.add_argument("--baseline", metavar="NAME", help="variant to compare with (default: vanilla)")
    parser.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown")
    options = parser.parse_args(arguments)
    try:
        records = read_runs(options.run_dirs)
        # Imported here: what is wrong with the folders is said before pandas is there.
        from .evidence.comparison import build_scorecard
        from .evidence.tables import to_csv, to_json, to_markdown

        card = build_scorecard(records, options.baseline)
        text = {"markdown": to_markdown, "csv": to_csv, "json": to_json}[options.format](card)
    except (UserError, OSError) as error:
        return print_error(error)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
