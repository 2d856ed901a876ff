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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import model  # noqa: F401

# isort: split
import torch
import torch.distributed as dist

from data import (
    BAD_REASONS,
    IGNORED_TARGET,
    SAMPLE_DIR,
    Corpus,
    LaneLoader,
    ValidationSet,
    document_ids,
    inputs_and_targets,
    open_data,
)
from data.sample.build import is_complete
from model import GPT
from model.designs import design_files, design_fingerprint
from training.config.ds_effects import ineffective_keys
from training.config.recipe import Recipe, resolve
from training.engine.build import build_engine, gradient_norm, log_communication, set_learning_rate
from training.engine.checkpoint import (
    TrainState,
    load_checkpoint,
    newest_checkpoint,
    read_state,
    save_checkpoint,
    step_name,
)
from training.engine.compilation import wrap_blocks
from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.libraries import load_libraries
from training.engine.ranks import Launcher, from_rank_0, join_ranks, world_size_from_environment
from training.feed import Feed, StepResult
from training.plan.accounting import flops_per_token
from training.run.console import Console, fail
from training.run.folder import RunFolder, plain
from training.run.preflight import refusal
from training.run.profiling import StartUp, StepProfiler
from training.run.throughput import Throughput
from training.run.tracking import Tracker
from training.schedule import learning_rate
from training.validate import (
    bits_per_byte,
    token_losses,
    uniform_loss,
    unigram_loss,
    write_document_losses,
)


def main(argv: list[str]) -> int:
    """The main job. Returns the exit status: 0 trained (or stopped and saved), 1 diverged or out of data, 2
    refused."""
    start_up = StartUp()
    start_up.mark("imports")
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
        corpus, validation = open_data(recipe.data)
        # What does not fit together is refused here, before anything is built.
        LaneLoader(
            corpus,
            recipe.data,
            block_size=recipe.model.block_size,
            micro_batch=1,
            rank=run.rank,
            world_size=world_size_from_environment(),
        )
        for note in (*ineffective_keys(ds_config), *corpus.source.notes):
            console.say(note)
        run.pin("data", data_fingerprint=corpus.fingerprint, val_fingerprint=validation.fingerprint)
        run.pin("code", design_fingerprint=design_fingerprint(recipe.model))
    except (ValueError, OSError) as error:
        return console.fail(error)
    start_up.mark("data")
    load_libraries(recipe.train.compile)
    start_up.mark("libraries")
    refused = refusal(recipe.model, run, recipe.train.preflight, console.say)
    start_up.mark("pre-flight")
    device = join_ranks()
    if refused := from_rank_0(refused or run.not_shared(dist.get_world_size())):
        return console.fail(refused)
    run.write_configs(vars(recipe), ds_config, argv)
    run.keep_designs(design_files(recipe.model))
    try:
        with bf16_arithmetic():
            return train(recipe, ds_config, run, console, corpus, validation, device, start_up)
    except Exception as error:
        run.update_summary(status="failed", error=f"{type(error).__name__}: {error}")
        raise


def train(
    recipe: Recipe,
    ds_config: dict[str, Any],
    run: RunFolder,
    console: Console,
    corpus: Corpus,
    validation: ValidationSet,
    device: torch.device,
    start_up: StartUp,
) -> int:
    """Build the engine, resume where a checkpoint is, run the loop; returns the exit status."""
    batches = partial(LaneLoader, corpus, config=recipe.data, block_size=recipe.model.block_size)
    checkpoint = newest_checkpoint(run.checkpoints, console.say)
    state = TrainState(data_fingerprint=corpus.fingerprint)
    if checkpoint:
        any_ranks = bool(ds_config.get("checkpoint", {}).get("load_universal"))
        state = read_state(checkpoint, corpus.fingerprint, any_ranks)
    loader = batches(
        micro_batch=ds_config["train_micro_batch_size_per_gpu"],
        rank=run.rank,
        world_size=dist.get_world_size(),
        first_sequence=state.step * ds_config["train_batch_size"],
        cursors=state.cursors,
    )
    loader.start()  # forked while this process is small: every page that it writes later would be kept twice
    torch.manual_seed(recipe.train.init_seed)
    gpt = GPT(recipe.model)
    parameters, flops = gpt.num_parameters(), flops_per_token(gpt)  # ZeRO-3 leaves a rank its part of them
    wrap_blocks(gpt, recipe.train.compile, ds_config, console.say)
    engine = build_engine(gpt, ds_config)
    torch.manual_seed(recipe.train.init_seed + run.rank)  # each rank draws its own dropout

    if checkpoint:
        load_checkpoint(engine, checkpoint, state)
    run.keep_metrics_until(state.step)
    feed = Feed(loader, ds_config["gradient_accumulation_steps"], state.bad_documents, tuple(BAD_REASONS))

    if run.rank == 0 and "floors" not in run.summary:
        vocab_size, in_process = corpus.tokenizer.vocab_size, replace(recipe.data, workers=0)
        sample = first_epoch(batches(config=in_process, micro_batch=16))
        unigram = unigram_loss(sample, validation, vocab_size)
        run.summary["floors"] = {"uniform": uniform_loss(vocab_size), "unigram": unigram}
    run.summary.pop("error", None)
    run.update_summary(
        status="running",
        val_loss=None,
        val_bits_per_byte=None,
        parameters=parameters,
        world_size=dist.get_world_size(),
        val_tokens=len(validation.tokens) - 1,
        val_bytes=int(validation.bytes.sum()),
        val_text_fingerprint=validation.text_fingerprint,
        source_fingerprint=corpus.source.fingerprint,
        **recipe.facts(ds_config),
    )
    if run.rank == 0:
        console.announce(run.path, run.summary, ds_config)
        if checkpoint:
            console.say(f"resumed from {checkpoint}")
    tracker = None
    if run.rank == 0:
        config = plain(vars(recipe)) | {"deepspeed": ds_config, "run": run.summary}
        tracker = Tracker(recipe.tracking, run.path, state.wandb_id, config, console.say)
        state.wandb_id = tracker.id
    throughput = Throughput(flops, device, dist.get_world_size())
    profiler = StepProfiler(recipe.train.profile_steps, run.path / "profile", run.rank, console.say)
    job = Job(
        recipe,
        ds_config,
        run,
        console,
        engine,
        state,
        feed,
        corpus,
        validation,
        device,
        tracker,
        throughput,
        Launcher(),
    )
    start_up.mark("engine")
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, job.ask_stop)

    steps, tokens_per_step = recipe.train.steps, run.summary["tokens_per_step"]
    bar = console.bar(recipe.variant, total=steps * tokens_per_step, initial=state.tokens, unit="tok")
    before, started = state.wall_time_s, time.perf_counter()
    diverged = False
    engine.train()
    feed.fetch()
    stop = feed.of_all_ranks(torch.zeros(2, dtype=torch.float64, device=device), job.wants_stop()).stop
    first_step = state.step + 1
    while state.step < steps and not stop and not diverged:
        step_started = time.perf_counter()
        rate = learning_rate(state.step, ds_config["optimizer"]["params"]["lr"], recipe.schedule)
        set_learning_rate(engine, rate)
        with profiler.step():
            loss, tokens, wait, stop, bad_documents = job.train_step()
        seconds = time.perf_counter() - step_started

        skipped = {} if engine.was_step_applied() else {"skipped": True}
        state.step += 1
        state.tokens += tokens
        state.skipped_steps += len(skipped)
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
        diverged = state.skipped_in_a_row >= recipe.train.max_skipped_steps
        for reason in bad_documents.keys() - state.bad_documents.keys():
            console.say(f"a document {BAD_REASONS[reason]}: it is left out, and metrics.jsonl counts them")
        state.bad_documents = bad_documents
        if state.step == first_step:
            start_up.mark("first step")
            run.update_summary(start_up_s=start_up.seconds())
            if recipe.train.profile_steps:
                console.say(start_up.sentence())
        job.log(
            "train",
            loss=loss,
            grad_norm=gradient_norm(engine),
            lr=rate,
            data_wait=wait / seconds,
            **throughput.step(tokens, seconds),
            **skipped,
            **({"bad_documents": bad_documents} if bad_documents else {}),
        )
        bar.set_postfix(step=f"{state.step}/{steps}", loss=f"{loss:.3f}", refresh=False)
        bar.update(tokens)
        if skipped:
            console.say(f"step {state.step} is skipped: its gradients are not finite (loss {loss:.4g})")
        if remedy := feed.remedy(wait, seconds, recipe.data.workers):
            console.say(remedy)

        last = state.step == steps
        if not diverged and (last or state.step % recipe.train.val_every == 0):
            with throughput.phase("validation"):
                job.validate()
        state.wall_time_s = before + time.perf_counter() - started
        if not diverged and (last or stop or state.step % recipe.train.checkpoint_every == 0):
            with throughput.phase("checkpoint"):
                job.save()
    bar.close()
    profiler.finish()
    console.say(throughput.sentence())

    data_error = feed.error_of_any_rank()
    status = "diverged" if diverged else "finished" if state.step == steps else "interrupted"
    run.update_summary(status=status, step=state.step, tokens=state.tokens, skipped_steps=state.skipped_steps)
    run.update_summary(throughput=throughput.summary())
    if status == "finished":
        run.update_summary(val_loss=state.val_loss, val_bits_per_byte=state.val_bits_per_byte)
    if data_error:
        run.update_summary(error=data_error)
        console.fail(data_error)
    if tracker:
        tracker.finish(run.summary)
    log_communication(ds_config)
    in_words = {
        "finished": f"is finished: validation loss {state.val_loss or math.nan:.4f} nats a token, "
        f"{state.val_bits_per_byte or math.nan:.4f} bits a byte",
        "interrupted": f"is stopped and saved at step {state.step}: the same command goes on from there"
        if state.step
        else "is stopped before its first step: the same command begins again",
        "diverged": f"diverged: the gradients of the last {state.skipped_in_a_row} steps were not finite",
    }
    dist.barrier()  # the ranks end together, so that the next run does not meet one of this
    skips = f"; {state.skipped_steps} step(s) were skipped" if state.skipped_steps else ""
    console.say(f"{run.path} {in_words[status]}{skips}")
    return 1 if diverged or data_error else 0


def first_epoch(batches: Iterator[Any]) -> Iterator[Any]:
    """What comes before a lane begins again, or the data cannot be read on: the loop will say so there."""
    with suppress(ValueError, OSError):
        for tokens, cursors in batches:
            yield tokens, cursors
            if any(cursor.epoch for cursor in cursors.values()):
                return


@dataclass
class Job:
    """A run under way: what a step, a validation and a checkpoint need."""

    recipe: Recipe
    ds_config: dict[str, Any]
    run: RunFolder
    console: Console
    engine: Any
    state: TrainState
    feed: Feed
    corpus: Corpus
    validation: ValidationSet
    device: torch.device
    tracker: Tracker | None
    throughput: Throughput
    launcher: Launcher
    stop_asked: bool = False

    def train_step(self) -> StepResult:
        """One optimizer step on the global batch that was fetched; meanwhile the next one is."""
        eot, phase = self.corpus.tokenizer.eot, self.throughput.phase
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss in nats, targets
        for tokens, cursors in self.feed.take():
            tokens = tokens.to(self.device, non_blocking=True).long()  # (micro_batch, T + 1)
            inputs, targets = inputs_and_targets(tokens, eot)
            documents = document_ids(inputs, eot) if self.recipe.data.document_mask else None
            with phase("forward"):
                _, loss = self.engine(inputs, targets, documents=documents)
            # every target of the global batch has the same weight, wherever ignored ones lie
            live = (targets != IGNORED_TARGET).sum()
            loss = loss * (live / targets.numel())
            with phase("backward"):
                self.engine.backward(loss)
            with phase("optimizer"):
                self.engine.step()  # the optimizer moves at the last of the accumulation
            sums += torch.stack([loss.detach().double() * targets.numel(), live])
            self.state.cursors.update(cursors)
        if self.state.step + 1 < self.recipe.train.steps:
            with phase("data"):
                self.feed.fetch()
        return self.feed.of_all_ranks(sums, self.wants_stop())

    def wants_stop(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.stop_asked or self.launcher.is_gone()

    def validate(self) -> None:
        """Score the whole validation set, all ranks together."""
        state, micro_batch = self.state, self.ds_config["train_micro_batch_size_per_gpu"]
        block_size = self.recipe.model.block_size
        mask = self.recipe.data.document_mask
        losses = token_losses(self.engine, self.validation, block_size, micro_batch, self.device, mask)
        state.val_loss = float(losses.mean())
        state.val_bits_per_byte = bits_per_byte(losses, self.validation)
        if state.best_val_loss is None or state.val_loss < state.best_val_loss:
            state.best_val_loss, state.best_step = state.val_loss, state.step
        if self.run.rank == 0:
            folder = self.run.path / "eval" / step_name(state.step)
            write_document_losses(folder / "validation.parquet", losses, self.validation)
        self.log("val", loss=state.val_loss, bits_per_byte=state.val_bits_per_byte)
        self.console.say(
            f"step {state.step}: validation loss {state.val_loss:.4f} nats a token, "
            f"{state.val_bits_per_byte:.4f} bits a byte"
        )

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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
