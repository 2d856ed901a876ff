"""Measure a training step side by side with what people run instead, in turn in one process group.

    python scripts/bench_engine.py [--ranks 2] [--rounds 3] [--micro_batches 4 8 16] [--n_layer 6] ...

Ranks are GPUs where there are some, else CPU processes that share the cores. In each round every contender
is built from the same weights, makes one step that is not counted, then `steps` on the same tokens, and is
torn down. The first round tries every micro-batch, at the same tokens per step, and the others go on with
each contender's fastest. The tables give medians over rounds. Peak memory is what a rank held beyond what it
held before the contender was built: the allocator's on a GPU, the resident set's on a CPU.
"""

import argparse
import os
import sys

from model.checkout import refuse_other_checkout
from model.errors import did_you_mean, print_error

refuse_other_checkout(__file__)

from contenders.options import add_numbers, free_port
from training.engine.libraries import set_allocators


def main(argv: list[str]) -> int:
    """Start the ranks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, help="default: one per GPU, or 2 where there is none")
    parser.add_argument(
        "--micro_batches", type=int, nargs="+", default=[8], metavar="N", help="sequences; default: 8"
    )
    add_numbers(parser)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these beside NormLab, as 'DDP fp32'")
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
    set_allocators()

    # What one step of a rank has, in sequences.
    options.sequences = options.accumulation * max(options.micro_batches)
    for size in options.micro_batches:
        if size < 1 or options.sequences % size:
            return print_error(
                f"--micro_batches has {size}, which does not divide a rank's {options.sequences} sequences "
                f"per step (--accumulation {options.accumulation} times the largest): give one that does"
            )

    import torch

    from contenders.lineup import CONTENDERS
    from contenders.turns import run

    for name in options.only or ():
        if name not in CONTENDERS:
            known = ", ".join(map(repr, CONTENDERS))
            return print_error(f"--only names {name!r}{did_you_mean(name, CONTENDERS)}: known are {known}")
    options.only = list(CONTENDERS) if options.only is None else options.only
    options.ranks = options.ranks or torch.cuda.device_count() or 2
    torch.multiprocessing.spawn(run, (options.ranks, options, free_port()), nprocs=options.ranks)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
