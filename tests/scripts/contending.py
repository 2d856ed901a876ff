"""Contenders of the benchmarks on a tiny model, in processes that tests fork; nothing is compiled there."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 128}


def options(**changes: Any) -> argparse.Namespace:
    given = {"rounds": 1, "steps": 5, "micro_batches": [2], "micro_batch": 2, "sequences": 4, "json": None}
    return argparse.Namespace(**SHAPE | given | {"only": []} | changes)


def prepare() -> None:
    """Let this process import `contenders`, and run what torch.compile is given as it is."""
    if SCRIPTS not in sys.path:
        sys.path.insert(0, SCRIPTS)
    torch.compiler.set_stance("force_eager")


def turns_of(rank: int, folder: Path, sizes: dict[str, list[int]]) -> None:
    """What each contender has after two steps, and after six, at each micro-batch, by rank 0 in a file."""
    prepare()
    from contenders.bench import Bench
    from contenders.lineup import CONTENDERS
    from training.engine.ranks import join_ranks

    ranks, found = join_ranks(), {}
    for name, of_contender in sizes.items():
        for size in of_contender:
            turns = [CONTENDERS[name](Bench(options(steps=steps), size, ranks)) for steps in (1, 5)]
            found[f"{name}, {size}"] = [(turn.loss, turn.grad_norm) for turn in turns]
    if rank == 0:
        (folder / "turns.json").write_text(json.dumps(found))
