"""Measure scoring side by side with lm-eval's `hf` backend, on the same requests to the same random weights.

    python scripts/bench_eval.py [--eval_data DIR] [--tasks arc_easy,hellaswag,...] [--items 32] [--rounds 3]

Both score in turn in one process, `rounds` times; the table gives medians, of the ratio too. Time is the
process's CPU time, which other work on the machine changes less than the clock's. Both have the same budget
of padded tokens per batch; the `hf` backend, whose batches have a fixed number of requests, gets the number
under that budget with which it is fastest. Without `--eval_data` the items are made up from the embedded
sample's held-out text, with the lengths of the real ones.

The bound is a ratio of FLOPs: what the `hf` backend computes (every padded token, all logits) over what is
needed at least (each token of a beginning that requests share once, logits where one is scored). It says
nothing of kernels: `same kernels` is the ratio with torch's products of matrices on our side too, which is
what the bound bounds; the rest of `ratio` comes from oneDNN's.
"""

import argparse
import importlib.metadata
import sys
import tempfile
from pathlib import Path

from model.checkout import refuse_other_checkout
from model.errors import UserError, did_you_mean, print_error

refuse_other_checkout(__file__)

TASKS = ("wikitext", "lambada_openai", "arc_easy", "hellaswag", "piqa", "winogrande")
NUMBERS = {"items": 32, "rounds": 3, "threads": 1, "tokens_per_batch": 1024, "n_layer": 12, "n_head": 12,
           "n_embd": 768, "block_size": 1024}  # fmt: skip
"""Options that take a number, with what they are where nothing is said."""
PACKAGES = ("torch", "lm_eval", "transformers")


def machine() -> str:
    """The CPU and the versions of what computes."""
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = named[0].partition(": ")[2] if named else "an unknown CPU"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"{len(named)} cores of {cpu}; {versions}"


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `--help` comes before anything heavy is imported. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", default=",".join(TASKS), help="default: all six")
    parser.add_argument("--eval_data", metavar="DIR", help="local evaluation sets, as of python -m eval")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    options = parser.parse_args(argv)
    options.tasks = options.tasks.split(",")
    for name in options.tasks:
        if name not in TASKS:
            known = ", ".join(TASKS)
            raise UserError(f"--tasks names {name!r}{did_you_mean(name, TASKS)}: known are {known}")
    for name in NUMBERS:
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}: it must be at least 1")
    return options


def main(argv: list[str]) -> int:
    """Measure and print; returns the exit status."""
    try:
        options = parse(argv)
        from contenders.backends import COLUMNS, Bench

        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(options, Path(folder) / "hf")
            print(f"{machine()}\n{bench.facts()}\n", flush=True)
            print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
            for name in options.tasks:
                print(bench.row(name), flush=True)
    except UserError as error:
        return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
