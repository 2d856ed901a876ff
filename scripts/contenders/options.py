"""What the commands that measure contenders ask for, without torch."""

import argparse
import socket

SHAPE = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab_size": 50304}
NUMBERS = {"rounds": 3, "steps": 2, **SHAPE, "accumulation": 2}
"""Options that take a number, with what they are where nothing is said."""


def add_numbers(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take `NUMBERS`, and a file for what is found."""
    for name, default in NUMBERS.items():
        more = "micro-batches per step, of the largest size; " if name == "accumulation" else ""
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{more}default: {default}")
    parser.add_argument("--json", help="a file for the numbers")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
