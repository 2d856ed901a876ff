"""The scorecard: which variant has the lower validation loss, by how much, and is that more than noise.

    python -m eval.scorecard runs/vanilla_s1 runs/vanilla_s2 runs/rmsnorm_s1 runs/rmsnorm_s2

Runs are grouped by variant; several numeric modes or model sizes get a row each. Differences are taken
between runs with the same seeds and setting only. With `--published` the benchmark's published results stand
beside them, and nothing is subtracted from those.
"""

import argparse
import sys
from collections.abc import Sequence

from model.errors import UserError, print_error
from model.redaction import redact_output

from .evidence.results import read_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m eval.scorecard", description="Compare finished runs.")
    parser.add_argument("run_dirs", nargs="*", metavar="RUN_DIR", help="folder of a run")
    parser.add_argument("--baseline", metavar="NAME", help="variant to compare with (default: vanilla)")
    parser.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown")
    parser.add_argument(
        "--published", action="store_true", help="print the benchmark's published results too, or alone"
    )
    options = parser.parse_args(arguments)
    if not (options.run_dirs or options.published):
        parser.error("the following arguments are required: RUN_DIR, or --published")
    try:
        records = read_runs(options.run_dirs)
        # Imported here: what is wrong with the folders is said before pandas is there.
        from .evidence import published, tables
        from .evidence.comparison import build_scorecard

        card = build_scorecard(records, options.baseline) if records else None
        text = getattr(published if options.published else tables, f"to_{options.format}")(card)
    except (UserError, OSError) as error:
        return print_error(error)
    print(text, end="")
    return 0


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
