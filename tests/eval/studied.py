"""Studies on a tiny recipe: outcomes simulated, or runs made up by a trainer that takes no time."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data import Corpus, DataConfig, ValidationSet, open_data
from eval.judging.commands import Command, Ended
from eval.studies.command import read_command
from eval.studies.findings.sequential import decider
from eval.studies.job import run_study
from eval.studies.outcomes import Outcome, Outcomes
from eval.studies.plan import Cell, Plan, make_plan
from eval.studies.queue import next_cells
from eval.studies.study import read_study
from model import design_fingerprint
from tests.eval.tiny_runs import write_manifest
from training.config.commands import resolve_command
from training.config.recipe import Recipe
from training.run.folder import RunFolder

from .judged import make_judged

RECIPE = """
model: {{variant: vanilla, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32}}
data: {{source: {source}, tokenizer: bytes, validation_tokens: 2000, lanes: 4}}
train: {{steps: 4, val_every: 4, checkpoint_every: 4, compile: false}}
schedule: {{warmup: 2}}
"""
ENGINE = {
    "train_batch_size": 4,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.1, "torch_adam": True}},
}
NORM = """
import torch

CONFIG_OVERRIDES = {"learning_rate": 4e-3}


class LayerNorm(torch.nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(ndim))

    def forward(self, x):
        return torch.nn.functional.rms_norm(x.float(), x.shape[-1:], eps=1e-6).type_as(x) * self.weight
"""
TWO_RATES = {"rates": ["1x", "2x"], "selection_seeds": [101, 102]}
THREE_RATES = {"rates": ["0.5x", "1x", "2x"], "selection_seeds": [101, 102, 103]}
THREE_SIZES = {
    "small": {"model.n_embd": 16},
    "medium": {"model.n_embd": 32, "train.steps": 8},
    "large": {"model.n_embd": 64, "train.steps": 16},
}


def make_files(folder: Path) -> Path:
    """A folder with a corpus, a recipe, an engine and a candidate with rates of its own."""
    return make_judged(folder, RECIPE, ENGINE, NORM)


def write_study(folder: Path, name: str = "study", **keys: Any) -> Path:
    """The file of a study of rmsnorm on three seeds; keys of None are left out."""
    content = {
        "recipe": str(folder / "recipe.yaml"),
        "deepspeed_config": str(folder / "engine.json"),
        "variants": ["rmsnorm"],
        "seeds": [1, 2, 3],
    } | keys
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return file


def plan_of(folder: Path, **keys: Any) -> Plan:
    return make_plan(read_study(write_study(folder, **keys)))


Loss = Callable[[Cell], float]
"""Of a run; NaN for one that diverges."""


def simulate(plan: Plan, loss: Loss, comparisons: int | None = None) -> Outcomes:
    """The outcomes of a whole study whose runs end at these losses."""
    decided = decider(dict.fromkeys(plan.sizes, comparisons or len(plan.candidates)))
    outcomes: Outcomes = {}
    while cells := next_cells(plan, outcomes, decided):
        for cell in cells:
            value = loss(cell)
            diverged = Outcome("diverged", reason="diverged")
            outcomes[cell] = diverged if np.isnan(value) else Outcome("finished", value)
    return outcomes


@cache
def opened(config: DataConfig) -> tuple[Corpus, ValidationSet]:
    """The data, once for all runs that share it."""
    return open_data(config)


@dataclass
class Trainer:
    """Stands for train.py, and keeps what was started.

    Attributes:
        loss: of a run, by its recipe and its peak learning rate.
        ends: how a run ends, by variant and seed; "finished" where it is not here
        trained: variant, seed and peak learning rate of each run that was started, in order
        evaluated: the folders of runs that were evaluated
    """

    loss: Callable[[Recipe, float], float] = lambda recipe, peak: 2.5 + 0.001 * recipe.train.init_seed
    ends: dict[tuple[str, int], str] = field(default_factory=dict)
    trained: list[tuple[str, int, float]] = field(default_factory=list)
    evaluated: list[str] = field(default_factory=list)
    before: Callable[[], object] = lambda: None
    lock: Any = field(default_factory=threading.Lock)

    def __call__(self, command: Command, words: Sequence[str], ranks: int = 1) -> Ended:
        if command == "eval":
            self.evaluated.append(Path(words[0]).name)
            return Ended(0, "")
        assert command == "train"
        *arguments, _, run_dir = words
        with self.lock:  # dataclasses and fingerprints are made by threads at once
            _, recipe, deepspeed, _ = resolve_command([*arguments], ranks)
            self.trained.append((recipe.variant, recipe.train.init_seed, deepspeed.peak_lr))
        self.before()
        status = self.ends.get((recipe.variant, recipe.train.init_seed), "finished")
        folder = RunFolder(Path(run_dir), 0)
        if status == "refused":
            checks = [{"name": "causality.model", "status": "fail", "detail": "sees the future"}]
            (folder.path / "preflight.json").parent.mkdir(parents=True, exist_ok=True)
            (folder.path / "preflight.json").write_text(json.dumps({"passed": False, "checks": checks}))
            return Ended(2, "error: refused\n")
        if status == "failed":
            return Ended(1, "RuntimeError: burnt\n")
        with self.lock:
            folder.claim(wait_s=0)
            folder._lock.release()
            folder.write_configs(vars(recipe), deepspeed.raw, [*words])
            corpus, validation = opened(recipe.data)
        loss = self.loss(recipe, deepspeed.peak_lr)
        steps = recipe.train.steps
        folder.append_metrics(kind="val", step=steps, tokens=steps * 128, loss=loss)
        width = recipe.model.n_embd
        folder.update_summary(
            **recipe.facts(deepspeed),
            status=status,
            step=steps if status == "finished" else 1,
            tokens=128 * steps,
            world_size=ranks,
            val_loss=loss,
            data_fingerprint=corpus.fingerprint,
            val_fingerprint=validation.fingerprint,
            design_fingerprint=design_fingerprint(recipe.model),
            parameters=1000 * width,
            flops_per_token=6000 * width,
            throughput={"tokens_per_s": 1000.0, "step_s": {"p50": 0.1}, "peak_memory_gib": 0.5},
        )
        checkpoint = folder.path / "checkpoints" / f"step_{steps:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.pt").write_bytes(b"weights")
        write_manifest(checkpoint)
        return Ended(0 if status == "finished" else 1, "")


def run(folder: Path, trainer: Trainer, *options: str, **keys: Any) -> int:
    request = read_command([str(write_study(folder, **keys)), "--runs", str(folder / "runs"), *options])
    return run_study(request, trainer, lambda sentence: None)


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "studies" / "study" / "results.json").read_text())


def registration_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "studies" / "study" / "registration.json").read_text())


def noise(recipe: Recipe) -> float:
    """Of a design and a seed: some thousandths."""
    which = f"{recipe.train.init_seed} {recipe.variant} {recipe.model.n_embd}"
    return 0.002 * float(np.random.default_rng([*which.encode()]).standard_normal())


def gain(recipe: Recipe, peak: float) -> float:
    """rmsnorm is 0.1 better at the recipe's rate; seeds differ by a few thousandths."""
    return 2.5 + noise(recipe) - 0.1 * (recipe.model.norm == "rmsnorm") + 0.05 * (peak > 1e-3)
