"""The report page about a set of runs, one HTML file.

python -m eval.report runs/vanilla_s1 runs/rmsnorm_s1 --out report.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.errors import UserError, print_error

from .evidence.results import read_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m eval.report", description="Write a page about runs.")
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="folder of a run")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="where the page goes", type=Path)
    parser.add_argument("--baseline", metavar="NAME", help="variant to compare with (default: vanilla)")
    options = parser.parse_args(arguments)
    try:
        records = read_runs(options.run_dirs)
        # Imported here: what is wrong with the folders is said before pandas is there.
        from .evidence.page import write_page

        write_page(records, options.out, options.baseline)
    except (UserError, OSError) as error:
        return print_error(error)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
