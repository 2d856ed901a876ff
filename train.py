"""Train one GPT-2 variant and score it on the fixed validation set.

On two CPU ranks, with the embedded sample:
    deepspeed --num_accelerators 2 train.py --config recipes/sample.yaml \\
        --deepspeed_config ds_configs/zero1_bf16_cpu.json --run_dir runs/vanilla --model.variant vanilla
The reference experiment, on two GPUs:
    deepspeed --num_gpus 2 train.py --config recipes/gpt2_medium_fineweb.yaml \\
        --deepspeed_config ds_configs/zero1_bf16.json --model.variant rmsnorm
Run again, the same command goes on where it stopped.
"""

import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from console import Console, fail
from data import SAMPLE_DIR, VOCAB_SIZE, LaneLoader, ValidationSet, open_source, split_validation
from data.sample import is_complete
from eval.validation import token_losses, uniform_loss, unigram_loss, write_document_losses
from model import GPT
from recipe import Recipe, resolve
from training.accelerator import Launcher, bf16_arithmetic, join_ranks, world_size_from_environment
from training.checkpoint import TrainState, load_checkpoint, newest_checkpoint, save_checkpoint, step_name
from training.ds_config import precision
from training.engine import build_engine, gradient_norm, set_learning_rate
from training.run_folder import RunFolder, plain
from training.schedule import learning_rate
from training.tracking import Tracker


def main(argv: list[str]) -> int:
    """The main job. Returns the exit status: 0 trained (or stopped and saved), 1 diverged, 2 refused."""
    try:
        recipe, ds_config, run = resolve(argv)
        console = Console(run.path / "logs" / f"rank{run.rank}.log", silent=run.rank > 0)
    except (ValueError, OSError) as error:
        return fail(error)
    if run.summary.get("status") == "finished" and run.summary["step"] >= recipe.train.steps:
        loss = run.summary["val_loss"]
        console.say(
            f"{run.path} is finished: {run.summary['step']} steps, validation loss {loss:.4f} nats a token"
        )
        return 0
    if recipe.data.source == "sample" and not is_complete(SAMPLE_DIR):
        console.say("building the embedded sample, once; it takes about a minute")
    try:
        run.claim()
        source = open_source(recipe.data)
        validation, shards = split_validation(recipe.data, source)
        batches = partial(
            LaneLoader,
            source,
            shards,
            block_size=recipe.model.block_size,
            lanes=recipe.data.lanes,
            seed=recipe.data.seed,
        )
        # What does not fit together is refused here, before anything is built.
        batches(micro_batch=1, rank=run.rank, world_size=world_size_from_environment())
        run.pin_data(source.fingerprint, validation.fingerprint)
    except (ValueError, OSError) as error:
        return console.fail(error)
    run.write_configs(vars(recipe), ds_config, argv)
    try:
        with bf16_arithmetic():
            return train(recipe, ds_config, run, console, batches, validation)
    except Exception as error:
        run.update_summary(status="failed", error=f"{type(error).__name__}: {error}")
        raise


def train(
    recipe: Recipe,
    ds_config: dict[str, Any],
    run: RunFolder,
    console: Console,
    batches: Callable[..., LaneLoader],
    validation: ValidationSet,
) -> int:
    """Build the engine, resume where a checkpoint is, run the loop; returns the exit status."""
    device = join_ranks()
    torch.manual_seed(recipe.train.init_seed)
    gpt = GPT(recipe.model)
    engine = build_engine(gpt, ds_config)
    torch.manual_seed(recipe.train.init_seed + run.rank)  # each rank draws its own dropout

    checkpoint = newest_checkpoint(run.checkpoints, console.say)
    state = load_checkpoint(engine, checkpoint) if checkpoint else TrainState()
    run.keep_metrics_until(state.step)
    loader = batches(
        micro_batch=ds_config["train_micro_batch_size_per_gpu"],
        rank=run.rank,
        world_size=dist.get_world_size(),
        first_sequence=state.step * ds_config["train_batch_size"],
        cursors=state.cursors,
    )

    if run.rank == 0 and "floors" not in run.summary:
        unigram = unigram_loss(batches(micro_batch=16), validation, VOCAB_SIZE)
        run.summary["floors"] = {"uniform": uniform_loss(VOCAB_SIZE), "unigram": unigram}
    run.summary.pop("error", None)
    run.update_summary(status="running", val_loss=None, **facts(recipe, ds_config, gpt, validation))
    if run.rank == 0:
        announce(run.summary, ds_config, run.path, console, checkpoint)
    tracker = None
    if run.rank == 0:
        config = plain(vars(recipe)) | {"deepspeed": ds_config, "run": run.summary}
        tracker = Tracker(recipe.tracking, run.path, state.wandb_id, config, console.say)
        state.wandb_id = tracker.id
    job = Job(recipe, ds_config, run, console, engine, state, validation, device, tracker, Launcher())
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, job.ask_stop)

    steps, tokens_per_step = recipe.train.steps, run.summary["tokens_per_step"]
    bar = console.bar(recipe.variant, total=steps * tokens_per_step, initial=state.tokens, unit="tok")
    before, started = state.wall_time_s, time.perf_counter()
    status = "finished"
    engine.train()
    while state.step < steps:
        step_started = time.perf_counter()
        rate = learning_rate(state.step, ds_config["optimizer"]["params"]["lr"], recipe.schedule)
        set_learning_rate(engine, rate)
        loss, stop = job.train_step(loader)
        seconds = time.perf_counter() - step_started

        skipped = {} if engine.was_step_applied() else {"skipped": True}
        state.step += 1
        state.tokens += tokens_per_step
        state.skipped_steps += len(skipped)
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
        norm = gradient_norm(engine)
        job.log(
            "train", loss=loss, grad_norm=norm, lr=rate, tokens_per_s=tokens_per_step / seconds, **skipped
        )
        bar.set_postfix(step=f"{state.step}/{steps}", loss=f"{loss:.3f}", refresh=False)
        bar.update(tokens_per_step)

        if skipped:
            console.say(f"step {state.step} is skipped: its gradients are not finite (loss {loss:.4g})")
        if state.skipped_in_a_row >= recipe.train.max_skipped_steps:
            status = "diverged"
            break
        last = state.step == steps
        if last or state.step % recipe.train.val_every == 0:
            job.validate()
        state.wall_time_s = before + time.perf_counter() - started
        if last or stop or state.step % recipe.train.checkpoint_every == 0:
            job.save()
        if stop and not last:
            status = "interrupted"
            break
    bar.close()

    run.update_summary(status=status, step=state.step, tokens=state.tokens, skipped_steps=state.skipped_steps)
    if status == "finished":
        run.update_summary(val_loss=state.val_loss)
    if tracker:
        tracker.finish(run.summary)
    in_words = {
        "finished": f"is finished: validation loss {state.val_loss or math.nan:.4f} nats a token",
        "interrupted": f"is stopped and saved at step {state.step}: the same command goes on from there",
        "diverged": f"diverged: the gradients of the last {state.skipped_in_a_row} steps were not finite",
    }
    dist.barrier()  # the ranks end together, so that the next run does not meet one of this
    skips = f"; {state.skipped_steps} step(s) were skipped" if state.skipped_steps else ""
    console.say(f"{run.path} {in_words[status]}{skips}")
    return 1 if status == "diverged" else 0


@dataclass
class Job:
    """A run under way: what a step, a validation and a checkpoint need."""

    recipe: Recipe
    ds_config: dict[str, Any]
    run: RunFolder
    console: Console
    engine: Any
    state: TrainState
    validation: ValidationSet
    device: torch.device
    tracker: Tracker | None
    launcher: Launcher
    stop_asked: bool = False

    def train_step(self, loader: LaneLoader) -> tuple[float, bool]:
        """One optimizer step on the next global batch: its mean loss (nats a token), and whether to stop."""
        accumulation = self.ds_config["gradient_accumulation_steps"]
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for _ in range(accumulation):
            tokens, cursors = next(loader)
            tokens = tokens.to(self.device, non_blocking=True).long()  # (micro_batch, T + 1)
            _, loss = self.engine(tokens[:, :-1], tokens[:, 1:])
            self.engine.backward(loss)
            self.engine.step()  # the optimizer moves at the last of the accumulation
            loss_sum += loss.detach()
            self.state.cursors.update(cursors)
        stop = self.stop_asked or self.launcher.is_gone()
        shared = torch.stack([loss_sum / accumulation, torch.full_like(loss_sum, stop)])
        dist.all_reduce(shared)
        loss_total, stops = shared.tolist()
        return loss_total / dist.get_world_size(), stops > 0

    def validate(self) -> None:
        """Score the whole validation set, all ranks together."""
        state, micro_batch = self.state, self.ds_config["train_micro_batch_size_per_gpu"]
        block_size = self.recipe.model.block_size
        losses = token_losses(self.engine, self.validation, block_size, micro_batch, self.device)
        state.val_loss = float(losses.mean())
        if state.best_val_loss is None or state.val_loss < state.best_val_loss:
            state.best_val_loss, state.best_step = state.val_loss, state.step
        if self.run.rank == 0:
            folder = self.run.path / "eval" / step_name(state.step)
            write_document_losses(folder / "validation.parquet", losses, self.validation)
        self.log("val", loss=state.val_loss)
        self.console.say(f"step {state.step}: validation loss {state.val_loss:.4f} nats a token")

    def save(self) -> None:
        """Write a checkpoint, and the summary that goes with it."""
        run, state = self.run, self.state
        last = save_checkpoint(self.engine, run.checkpoints, state, self.recipe.train.keep_checkpoints)
        best = run.checkpoints / step_name(state.best_step) if state.best_step is not None else last
        run.update_summary(
            step=state.step,
            tokens=state.tokens,
            skipped_steps=state.skipped_steps,
            wall_time_s=round(state.wall_time_s, 3),
            tokens_per_s=round(state.tokens / state.wall_time_s, 1),
            last_checkpoint=str(last.relative_to(run.path)),
            best_checkpoint=str(best.relative_to(run.path)) if best.exists() else None,
        )

    def log(self, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl, and the same to W&B."""
        values = {"tokens": self.state.tokens} | values
        self.run.append_metrics(kind=kind, step=self.state.step, **values)
        if self.tracker:
            self.tracker.log(kind, self.state.step, values)

    def ask_stop(self, signum: int, frame: object) -> None:
        """Signal handler: stop after the step that is under way."""
        self.stop_asked = True


def facts(recipe: Recipe, ds_config: dict[str, Any], gpt: GPT, validation: ValidationSet) -> dict[str, Any]:
    """What summary.json says of a run before its first step."""
    shape = recipe.model
    return {
        "variant": recipe.variant,
        "precision": precision(ds_config),
        "model": f"{shape.n_layer}L {shape.n_head}H {shape.n_embd}d",
        "block_size": shape.block_size,
        "parameters": gpt.num_parameters(),
        "init_seed": recipe.train.init_seed,
        "data_seed": recipe.data.seed,
        "steps": recipe.train.steps,
        "tokens_per_step": ds_config["train_batch_size"] * shape.block_size,
        "world_size": dist.get_world_size(),
        "val_tokens": len(validation.tokens) - 1,
    }


def announce(
    summary: dict[str, Any],
    ds_config: dict[str, Any],
    folder: Path,
    console: Console,
    checkpoint: Path | None,
) -> None:
    """Say every derived number before the first step."""
    micro_batch, accumulation = (
        ds_config[key] for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    stage = ds_config.get("zero_optimization", {}).get("stage", 0)
    ranks, tokens, floors = summary["world_size"], summary["tokens_per_step"], summary["floors"]
    console.say(
        f"{folder}: {summary['variant']}, GPT-2 {summary['model']}, {summary['parameters']:,} parameters, "
        f"{summary['precision']}, ZeRO-{stage}, {ranks} rank(s)"
    )
    console.say(
        f"a step: {micro_batch} sequences x {accumulation} accumulation steps x {ranks} rank(s) x "
        f"{summary['block_size']} tokens = {tokens:,} tokens; {summary['steps']:,} steps = "
        f"{summary['steps'] * tokens:,} tokens"
    )
    console.say(
        f"validation: {summary['val_tokens']:,} tokens, on which guessing every token alike scores "
        f"{floors['uniform']:.2f} nats a token and a unigram model {floors['unigram']:.2f}"
    )
    if checkpoint:
        console.say(f"resumed from {checkpoint}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
