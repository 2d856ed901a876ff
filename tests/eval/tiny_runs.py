"""Runs as training leaves them, with random weights, and local evaluation sets for them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from model import GPT, GPTConfig
from training.run.reader import checkpoint_step, file_sha256

SHAPE = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=257)
SETS: dict[str, list[dict[str, Any]]] = {
    "wikitext2/test_document_level.jsonl": [
        {"page": " = Tides = \n \n The tide turns twice a day . " * n} for n in (1, 4, 3)
    ],
    "piqa/validation.jsonl": [
        {"goal": f"dry {n} sails", "sol1": "hang them up", "sol2": "sink them all", "label": n % 2}
        for n in range(5)
    ],
}
TASKS = ("piqa", "wikitext")


class Quiet:
    """A console that keeps what is said, by a job in this process."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def fail(self, sentence: object) -> int:
        self.lines.append(f"error: {sentence}")
        return 2

    def log_to(self, file: Path) -> None:
        self.log_file = file

    def bar(self, title: str, **options: Any) -> tqdm:
        return tqdm(disable=True)


def write_sets(folder: Path) -> Path:
    """The local sets of `TASKS`."""
    for name, items in SETS.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def add_checkpoint(run: Path, step: int, val_loss: float | None = None) -> None:
    """A checkpoint with weights of its own, and its validation's line of metrics.jsonl."""
    torch.manual_seed(step)
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    torch.save({"module": GPT(SHAPE).state_dict()}, folder / "mp_rank_00_model_states.pt")
    write_manifest(folder)
    if val_loss is not None:
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "val", "step": step, "loss": val_loss}) + "\n")


def write_manifest(checkpoint: Path) -> None:
    """The manifest of a checkpoint's files."""
    files = {
        file.name: {"size": file.stat().st_size, "sha256": file_sha256(file)} for file in checkpoint.iterdir()
    }
    manifest = {"step": checkpoint_step(checkpoint), "files": files}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def make_run(run: Path, losses: Mapping[int, float | None], sets: Path, status: str = "finished") -> Path:
    """A run folder with a checkpoint at each step of `losses`; those with a number were validated."""
    run.mkdir(parents=True)
    evaluation = {"tasks": list(TASKS), "data_dir": str(sets)}
    recipe = {"model": asdict(SHAPE), "data": {"tokenizer": "bytes"}, "eval": evaluation}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (run / "summary.json").write_text(json.dumps({"status": status, "variant": "vanilla"}))
    for step, loss in losses.items():
        add_checkpoint(run, step, loss)
    return run


def results_of(run: Path, step: int) -> dict[str, Any]:
    """The scores of a checkpoint by task; none where it was not scored."""
    file = run / "eval" / f"step_{step:08d}" / "results.json"
    return json.loads(file.read_text())["results"] if file.is_file() else {}


def eval_main(words: list[str]) -> int:
    """`python -m eval`, for a fork: its console takes the output over."""
    from eval.__main__ import main

    return main(words)
