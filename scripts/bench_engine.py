"""Measure a training step side by side with what people run instead, in turn in one process group.

    python scripts/bench_engine.py [--ranks 2] [--rounds 3] [--steps 2] [--n_layer 6] [--n_embd 384] ...

Ranks are GPUs where there are some, else CPU processes that share the cores. In each round every contender
is built from the same seed, makes one step that is not counted, then `steps` on the same tokens, and is
torn down. The tables give medians over rounds. Peak memory is what a rank held beyond what it held before
the contender was built: the allocator's on a GPU, the resident set's on a CPU.
"""

import argparse
import os
import socket
import sys

from model.checkout import refuse_other_checkout
from model.errors import did_you_mean, print_error

refuse_other_checkout(__file__)

NUMBERS = {"rounds": 3, "steps": 2, "n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256,
           "micro_batch": 8, "accumulation": 2}  # fmt: skip
"""Options that take a number, with what they are where nothing is said."""


def main(argv: list[str]) -> int:
    """Start the ranks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, help="default: one per GPU, or 2 where there is none")
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these beside NormLab's two, as 'DDP fp32'")
    parser.add_argument("--json", help="a file for the numbers")
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

    import torch
    from bench_contenders import CONTENDERS
    from bench_turns import run

    for name in options.only or ():
        if name not in CONTENDERS:
            known = ", ".join(map(repr, CONTENDERS))
            return print_error(f"--only names {name!r}{did_you_mean(name, CONTENDERS)}: known are {known}")
    options.ranks = options.ranks or torch.cuda.device_count() or 2
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(run, (options, port), nprocs=options.ranks)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
