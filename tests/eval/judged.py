"""A judgment whose commands are made up: they leave what train.py and its relatives leave, in no time."""

import json
import pydoc_data.topics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import open_data
from eval.judging.commands import Command, Ended, Interrupted
from eval.judging.judgment import judge
from eval.judging.request import read_judge
from model import design_fingerprint
from tests.eval.tiny_runs import write_manifest
from training.config.commands import resolve_command
from training.run.folder import RunFolder

RECIPE = """
model: {{variant: vanilla, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32}}
data: {{source: {source}, tokenizer: bytes, validation_tokens: 2000, lanes: 4}}
train: {{steps: 4, val_every: 4, checkpoint_every: 4, compile: false}}
schedule: {{warmup: 2}}
eval: {{tasks: [published_validation], limit: 1}}
"""
ENGINE = {
    "train_batch_size": 4,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.1, "torch_adam": True}},
}
NORM = """
import torch


class LayerNorm(torch.nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(ndim))

    def forward(self, x):
        return torch.nn.functional.rms_norm(x.float(), x.shape[-1:], eps=1e-6).type_as(x) * self.weight
"""
LOSSES = {
    ("mine+pre", 1): 2.50, ("mine+pre", 2): 2.42, ("mine+pre", 3): 2.47,
    ("vanilla", 1): 2.60, ("vanilla", 2): 2.51, ("vanilla", 3): 2.58,
    ("layernorm_no_bias", 1): 2.61, ("layernorm_no_bias", 2): 2.51,
}  # fmt: skip


def make_judged(
    folder: Path, recipe: str = RECIPE, engine: dict[str, Any] = ENGINE, candidate: str = NORM
) -> Path:
    """A folder with a corpus, a recipe, an engine and a candidate."""
    (folder / "corpus").mkdir()
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    pq.write_table(pa.table({"text": texts}), folder / "corpus" / "topics.parquet", row_group_size=4)
    (folder / "recipe.yaml").write_text(recipe.format(source=folder / "corpus"))
    (folder / "engine.json").write_text(json.dumps(engine))
    (folder / "mine.py").write_text(candidate)
    return folder


def words(folder: Path, *more: str) -> list[str]:
    """Those of scripts/judge.py."""
    files = ["--recipe", str(folder / "recipe.yaml"), "--deepspeed_config", str(folder / "engine.json")]
    return [str(folder / "mine.py"), *files, "--runs", str(folder / "runs"), *more]


@dataclass
class MadeUp:
    """Stands for the commands, and keeps what was started.

    Attributes:
        trained: variant and seed of each run that was trained, in order
        status: how a run ends, by variant and seed; "finished" where it is not here
        commands: the names of all commands, in order
    """

    status: dict[tuple[str, int], str] = field(default_factory=dict)
    preflight: dict[str, Any] = field(default_factory=lambda: {"passed": True, "checks": []})
    evaluation: Ended = field(default_factory=lambda: Ended(0, ""))
    trained: list[tuple[str, int]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def __call__(self, command: Command, words: Sequence[str], ranks: int = 1) -> Ended:
        self.commands.append(command)
        if command == "preflight":
            Path(words[-1]).write_text(json.dumps(self.preflight))
            return Ended(0 if self.preflight["passed"] else 1, "")
        return self._train(list(words), ranks) if command == "train" else self.evaluation

    def _train(self, words: list[str], ranks: int) -> Ended:
        *arguments, _, run_dir = words
        _, recipe, deepspeed, _ = resolve_command(arguments, ranks)
        which = recipe.variant, recipe.train.init_seed
        self.trained.append(which)
        self.folders.append(Path(run_dir))
        status = self.status.get(which, "finished")
        if status == "mistake":
            return Ended(2, "step 1\nerror: it cannot be\n")
        folder = RunFolder(Path(run_dir), 0)
        folder.claim(wait_s=0)
        folder._lock.release()
        folder.write_configs(vars(recipe), deepspeed.raw, words)
        corpus, validation = open_data(recipe.data)
        step = recipe.train.steps if status == "finished" else 2
        folder.append_metrics(kind="train", step=step, tokens=step * 128, loss=3.0)
        facts: dict[str, Any] = {
            "status": status, "step": step, "tokens": 128 * step, "world_size": ranks,
            "val_loss": LOSSES[which], "val_bits_per_byte": 1.5 * LOSSES[which],
            "data_fingerprint": corpus.fingerprint, "val_fingerprint": validation.fingerprint,
            "design_fingerprint": design_fingerprint(recipe.model),
            "source_fingerprint": corpus.source.fingerprint, "parameters": 1000 + 24 * which[1],
            "flops_per_token": 500, "throughput": {"tokens_per_s": 100.0 * which[1]},
            **({"error": "RuntimeError: burnt"} if status == "failed" else {}),
        }  # fmt: skip
        folder.update_summary(**recipe.facts(deepspeed), **facts)
        file = Path(run_dir, "checkpoints", f"step_{step:08d}", "manifest.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_name("model.pt").write_bytes(b"weights")
        write_manifest(file.parent)
        if status == "interrupted":
            raise Interrupted
        return Ended({"finished": 0, "diverged": 3}.get(status, 1), "")


def judged(folder: Path, start: Any, *more: str) -> dict[str, Any]:
    """The verdict on the folder's candidate."""
    return judge(read_judge(words(folder, *more)), start, print)


def ledger_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / "runs" / "ledger.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
