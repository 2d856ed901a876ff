"""Runs with a batch that breaks the model: a design that gives NaN for one marked sequence, at one layer."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.jobs import train_main

BLOCK = """
import json
import sys
import torch
import torch.nn as nn

class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")

class Mark(nn.Module):
    def forward(self, x):
        frame = sys._getframe()
        while "idx" not in frame.f_locals:
            frame = frame.f_back
        for mark in json.loads('MARKS'):
            if (frame.f_locals["idx"][:, :9] == torch.tensor(mark)).all(-1).any() and self.training:
                return Broken.apply(x) if "WHAT" == "gradient" else x * float("WHAT")
        return x

class Block(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.mlp = MLP(config)
        if layer_idx == 1:
            self.mark = Mark()
    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return self.mark(x) if hasattr(self, "mark") else x
"""
SEQUENCES = 8
"""Per global batch."""


def block(folder: Path, marks: list[list[int]], what: str = "nan") -> str:
    """The design: layer 1 multiplies the stream by `what` in a batch that holds a marked sequence; with
    "gradient" it breaks the gradient alone."""
    file = folder / f"marked_{what}_{len(marks)}.py"
    file.write_text(BLOCK.replace("MARKS", json.dumps(marks)).replace("WHAT", what))
    return f"{file}:Block"


def mark(folder: Path, batch: int, sequence: int = 0) -> list[int]:
    """The first tokens of a sequence of a global batch, as `main_without` has seen it."""
    seen = json.loads((folder / "sequences.json").read_text())
    return seen[batch * SEQUENCES + sequence]


def main_without(words: list[str]) -> int:
    """train.py over data that lack the batches of LEFT_OUT; notes its sequences beside RUN_DIR."""
    from training.divergence import rollback

    folder = Path(words[words.index("--run_dir") + 1]).parent
    left_out = [int(number) for number in filter(None, os.environ["LEFT_OUT"].split(","))]
    plain = rollback.LaneLoader
    seen: list[list[int]] = []

    class Without(plain):  # type: ignore[misc, valid-type]
        def __next__(self) -> Any:
            moved: dict[int, Any] = {}
            while True:
                batch = len(seen) // SEQUENCES
                tokens, cursors = super().__next__()
                moved |= cursors
                seen.extend(tokens[:, :9].tolist())
                if batch not in left_out:
                    (folder / "sequences.json").write_text(json.dumps(seen))
                    return tokens, dict(moved)

    rollback.LaneLoader = Without  # type: ignore[misc]
    return train_main(words)


def main_killed_while_going_back(words: list[str]) -> int:
    """train.py whose process ends, without a word, once the rollback is written and nothing is loaded yet."""
    from training.divergence import rollback

    def killed(*arguments: Any) -> Iterator[None]:
        os._exit(9)

    rollback.load_checkpoint = killed  # type: ignore[assignment]
    return train_main(words)


def main_that_cannot_look(words: list[str]) -> int:
    """train.py, whose ranks of FAILING have no room where a gradient that is not finite is looked for."""
    import torch

    from training.divergence import locate, together

    look = locate._in_backward

    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    def failing(engine: Any, parts: Any) -> Any:
        if os.environ["RANK"] in os.environ["FAILING"]:
            engine.module.transformer["h"][1].register_forward_pre_hook(fail)
        return look(engine, parts)

    locate._in_backward, together.ALL_FAIL_WITHIN_S = failing, 2.0
    return train_main(words)
