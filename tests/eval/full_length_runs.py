"""Eighteen run folders of full length, made up: six designs of GPT-2 Medium's size on three paired seeds.

    python -m tests.eval.full_length_runs OUT_DIR

They are what train.py and the evaluation jobs leave after the reference experiment's 12,031 steps, without
weights: losses fall by a power law from 10.8 to about 3.05 nats per token, runs of one seed share the noise
of their batches, and designs differ by up to 0.03 nats. One run has a spike that it recovers from, another
diverges. Everything is drawn from fixed seeds, so that each writing gives the same files.
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.config.commands import resolve_command
from training.config.deepspeed import DeepSpeedConfig
from training.config.recipe import Recipe
from training.config.recipe_file import to_yaml
from training.run.folder import recipe_as_dict
from training.schedule import ScheduleConfig, learning_rate

from .full_length_evidence import BYTES_PER_TOKEN, Validation, write_document_losses, write_task_scores
from .full_length_layers import write_diagnosis, write_diagnostics, write_slices

STEPS = 12_031
TOKENS_PER_STEP = 576 * 1024
VAL_EVERY = 500
SEEDS = (1, 2, 3)
WORLD_SIZE = 2
PEAK_FLOPS = 989e12
"""Of one H100 in bf16, per second."""
PEAK_RATE = 6e-4
FLOORS = {"uniform": 10.825, "unigram": 7.702}
SKIPPED = 10
"""Steps in a row without finite gradients that end a run."""


@dataclass(frozen=True)
class MadeUpDesign:
    """What is made up of a design.

    Attributes:
        variant: of the catalogue.
        difference: of its losses at the end from vanilla's, nats per token.
        step_s: seconds of a step.
        flops_per_token: forward and backward.
        parameters: of the model.
        peak_memory_gib: of the larger rank.
    """

    variant: str
    difference: float
    step_s: float
    flops_per_token: int = 2_422_210_560
    parameters: int = 353_772_544
    peak_memory_gib: float = 58.3


DESIGNS = (
    MadeUpDesign("vanilla", 0.0, 1.79),
    MadeUpDesign("rmsnorm", 0.0, 1.74),
    MadeUpDesign("rmsnorm_parallel", 0.012, 1.55),
    MadeUpDesign("rmsnorm_post", 0.030, 1.74),
    MadeUpDesign("peri_ln", -0.008, 1.91, parameters=353_821_696, peak_memory_gib=64.9),
    MadeUpDesign("hyper_connections", -0.021, 2.33, 2_431_647_744, 354_165_760, 73.1),
)
DIVERGED = ("rmsnorm_post", 3, 7_420)
"""Design, seed and last step of the run whose gradients were not finite any more."""
SPIKED = ("hyper_connections", 2, 3_100)
"""Design, seed and step of the spike."""


def rng_of(*place: int) -> np.random.Generator:
    """Another generator for each purpose, design and seed."""
    return np.random.default_rng(place)


def learning_curve(steps: np.ndarray) -> np.ndarray:
    """Vanilla's loss after `steps` without noise, nats per token."""
    return 2.6 + 8.22 * (1 + steps / 30) ** -0.484


def losses_of(design: MadeUpDesign, seed: int) -> np.ndarray:
    """The training loss of each step (STEPS,), nats per token, as if the run did not diverge."""
    steps = np.arange(1, STEPS + 1)
    number = DESIGNS.index(design)
    batches = 0.03 * rng_of(1, seed).standard_normal(STEPS)
    own = 0.004 * rng_of(2, number, seed).standard_normal(STEPS)
    loss = learning_curve(steps - 1) + expected_difference(design, seed, steps) + batches + own
    if (design.variant, seed) == SPIKED[:2]:
        since = steps - SPIKED[2]
        loss += np.where(since >= 0, 2.1 * np.exp(-np.maximum(since, 0) / 25), 0)
    if (design.variant, seed) == DIVERGED[:2]:
        loss += np.clip((steps - DIVERGED[2] + 60) / 12, 0, 4.5)
    return loss


def expected_difference(design: MadeUpDesign, seed: int, steps: np.ndarray) -> np.ndarray:
    """From vanilla's curve: the seed's own, and the design's, which grows over some thousand steps."""
    of_seed = 0.004 * rng_of(3, seed).standard_normal()
    of_run = 0.0015 * rng_of(4, DESIGNS.index(design), seed).standard_normal()
    return of_seed + of_run + design.difference * (1 - np.exp(-steps / 2000))


def write_runs(out: Path) -> list[Path]:
    """Write all runs below `out`; gives their folders, vanilla's first."""
    validation = Validation.draw(rng_of(5))
    return [write_run(out, design, seed, validation) for design in DESIGNS for seed in SEEDS]


def write_run(out: Path, design: MadeUpDesign, seed: int, validation: Validation) -> Path:
    """Write one run; gives its folder."""
    folder = out / f"{design.variant}_s{seed}"
    number = DESIGNS.index(design)
    losses = losses_of(design, seed)
    diverged = (design.variant, seed) == DIVERGED[:2]
    last = DIVERGED[2] if diverged else STEPS
    at = [step for step in [*range(VAL_EVERY, last, VAL_EVERY), STEPS] if step <= last]
    means = dict(zip(at, validation_losses(design, seed, np.array(at)), strict=True))
    recipe, engine = write_configs(folder, design.variant, seed)
    seconds = step_seconds(design, seed)[:last]
    lines = metrics(design, seed, recipe.schedule, losses, means, seconds)
    (folder / "metrics.jsonl").write_text("".join(lines))
    for step, mean in means.items():
        evaluation = folder / "eval" / f"step_{step:08d}"
        write_document_losses(evaluation, validation, mean, rng_of(6, number, seed, step))
    measured = [*(2**power for power in range(14) if 2**power < last), *([] if diverged else [STEPS])]
    own = rng_of(7, number, seed)
    write_diagnostics(folder, {step: losses[step - 1] for step in measured}, TOKENS_PER_STEP, number, own)
    if not diverged:
        final = folder / "eval" / f"step_{STEPS:08d}"
        stamp = {
            "variant": design.variant,
            "precision": "bf16",
            "step": STEPS,
            "tokens": STEPS * TOKENS_PER_STEP,
        }
        write_task_scores(final, stamp, -2 * design.difference, rng_of(8), rng_of(9, number, seed))
        write_slices(final, validation, rng_of(10, number, seed))
        write_diagnosis(final, means[STEPS], number, rng_of(11, number, seed))
    summary = recipe.facts(engine) | summarise(design, means, seconds, last)
    write_json(folder / "summary.json", summary)
    return folder


def validation_losses(design: MadeUpDesign, seed: int, steps: np.ndarray) -> np.ndarray:
    """The mean over the validation set after each of `steps`, nats per token."""
    own = 0.0006 * rng_of(12, DESIGNS.index(design), seed).standard_normal(len(steps))
    return learning_curve(steps) + expected_difference(design, seed, steps) + own


def step_seconds(design: MadeUpDesign, seed: int) -> np.ndarray:
    """Of each step (STEPS,); the first one compiles, and a few wait for others on the machine."""
    rng = rng_of(13, DESIGNS.index(design), seed)
    seconds = design.step_s * (1 + 0.004 * np.abs(rng.standard_normal(STEPS)))
    seconds[0] += 41.0
    seconds[rng.integers(1, STEPS, 30)] *= 1.6
    return seconds


def metrics(
    design: MadeUpDesign,
    seed: int,
    schedule: ScheduleConfig,
    losses: np.ndarray,
    means: dict[int, float],
    seconds: np.ndarray,
) -> Iterator[str]:
    """The lines of metrics.jsonl; what ends before STEPS ends with skipped steps."""
    rng = rng_of(14, DESIGNS.index(design), seed)
    steps = np.arange(STEPS)
    norms = (0.25 + 2.5 * np.exp(-steps / 300)) * np.exp(0.12 * rng.standard_normal(STEPS))
    norms *= np.exp(np.clip(losses - learning_curve(steps), 0, 4))
    waits = 0.0004 * rng.random(STEPS)
    finite = STEPS if len(seconds) == STEPS else len(seconds) - SKIPPED
    for step, step_s in enumerate(seconds, 1):
        tokens = step * TOKENS_PER_STEP
        skipped = step > finite
        rate = TOKENS_PER_STEP / step_s
        line = {
            "kind": "train",
            "step": step,
            "tokens": tokens,
            "loss": None if skipped else losses[step - 1],
            "grad_norm": None if skipped else norms[step - 1],
            "lr": learning_rate(step - 1, PEAK_RATE, schedule),
            "data_wait": waits[step - 1],
            "tokens_per_s": rate,
            "step_s": step_s,
            "mfu": rate * design.flops_per_token / (WORLD_SIZE * PEAK_FLOPS),
            **({"diagnostics_s": 1.31} if step & (step - 1) == 0 or step == STEPS else {}),
            "forward_s": round(0.31 * step_s, 5),
            "backward_s": round(0.62 * step_s, 5),
            "optimizer_s": round(0.04 * step_s, 5),
            "data_s": 0.00012,
            **({"skipped": True} if skipped else {}),
        }
        yield json.dumps(line) + "\n"
        if step in means:
            at = {"kind": "val", "step": step, "tokens": tokens, "loss": means[step]}
            yield json.dumps(at | {"bits_per_byte": bits_per_byte(means[step])}) + "\n"


def bits_per_byte(nats_per_token: float) -> float:
    return float(nats_per_token / math.log(2) / BYTES_PER_TOKEN)


def write_configs(folder: Path, variant: str, seed: int) -> tuple[Recipe, DeepSpeedConfig]:
    """Write recipe.yaml, ds_config.json and environment.json; gives recipe and engine."""
    words = [
        "--config", "recipes/gpt2_medium_fineweb.yaml", "--deepspeed_config", "ds_configs/zero1_bf16.json",
        "--model.variant", variant, "--train.init_seed", str(seed), "--data.seed", str(seed),
        "--train.steps", str(STEPS), "--data.validation_tokens", "2_097_152",
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    files = [str(root / word) if word.endswith((".yaml", ".json")) else word for word in words]
    _, recipe, engine, _ = resolve_command(files, WORLD_SIZE)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(to_yaml(recipe_as_dict(vars(recipe))))
    write_json(folder / "ds_config.json", engine.raw)
    environment = {
        "command": ["--local_rank=0", *words],
        "world_size": WORLD_SIZE,
        "python": "3.12.3",
        "packages": {"torch": "2.13.0+cu130", "deepspeed": "0.19.8", "numpy": "2.4.6"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": False,
        "platform": "Linux-6.8.0-x86_64-with-glibc2.39",
        "cpus": 52,
        "gpus": ["NVIDIA H100 80GB HBM3"] * WORLD_SIZE,
    }
    write_json(folder / "environment.json", environment)
    return recipe, engine


def summarise(
    design: MadeUpDesign, means: dict[int, float], seconds: np.ndarray, last: int
) -> dict[str, Any]:
    """What summary.json says beside the recipe's facts."""
    val_loss, finished = means[max(means)], last == STEPS
    median = float(np.median(seconds))
    wall_time = float(seconds.sum() + 95 * len(means) + 1.31 * math.log2(last))
    best = min(means, key=lambda step: means[step])
    shares = {"forward": 0.29, "backward": 0.58, "optimizer": 0.04, "validation": 0.06, "other": 0.03}
    return {
        "status": "finished" if finished else "diverged",
        "tokenizer_fingerprint": "gpt2 50257",
        "data_fingerprint": "content:5a1f", "source_fingerprint": "content:5a1f",
        "val_fingerprint": "9c41", "val_text_fingerprint": "77e2",
        "val_loss": val_loss, "val_bits_per_byte": bits_per_byte(val_loss),
        "val_tokens": 2_090_417, "val_bytes": round(2_090_417 * BYTES_PER_TOKEN),
        "floors": FLOORS, "preflight": "passed with 0 warnings", "mixes_tokens": False,
        "parameters": design.parameters, "flops_per_token": design.flops_per_token,
        "world_size": WORLD_SIZE, "step": last, "tokens": last * TOKENS_PER_STEP,
        "skipped_steps": 0 if finished else SKIPPED,
        "wall_time_s": round(wall_time, 3),
        "tokens_per_s": round(last * TOKENS_PER_STEP / wall_time, 1),
        "last_checkpoint": f"checkpoints/step_{max(means):08d}",
        "best_checkpoint": f"checkpoints/step_{best:08d}",
        "total_flops": float(last * TOKENS_PER_STEP * design.flops_per_token),
        "gpu_hours": WORLD_SIZE * wall_time / 3600,
        "throughput": {
            "peak_memory_gib": design.peak_memory_gib,
            "tokens_per_s": round(TOKENS_PER_STEP / median, 1),
            "step_s": {f"p{p}": round(float(np.percentile(seconds, p)), 4) for p in (50, 90, 99)},
            "mfu": TOKENS_PER_STEP * design.flops_per_token / median / WORLD_SIZE / PEAK_FLOPS,
            "time_share": shares,
        },
    }  # fmt: skip


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    for run in write_runs(Path(sys.argv[1])):
        print(run)
