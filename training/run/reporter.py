"""What is said and written of a run under way: terminal, metrics.jsonl, summary.json and W&B."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from data import BAD_REASONS, Corpus, ValidationSet
from model import GPT, flops_per_token

from ..checkpoints.found import complete_checkpoints
from ..config.deepspeed import DeepSpeedConfig
from ..config.recipe import Recipe
from ..diagnostics.recorder import Diagnostics, fixed_batch
from ..diagnostics.table import keep_until
from ..divergence.losses import ended_above_floor
from ..divergence.policy import Verdict
from ..engine.build import log_communication
from ..engine.ranks import Ranks
from ..samples import Sample, write_samples
from ..state import TrainState
from ..step import StepResult
from ..timing.profiling import StartUp, StepProfiler
from ..timing.throughput import DataWait, Throughput
from ..tracking.tracker import CONFIG_FACTS, Tracker
from ..validation import loss_floors, write_document_losses
from .console import Console
from .derived import derived_numbers
from .folder import RunFolder, recipe_as_dict
from .outcome import outcome
from .reader import checkpoint_name


class Reporter:
    """Tells the terminal, the run folder and W&B what the loop does; it decides nothing.

    Every rank has one and makes the same calls. Only rank 0 says and writes something.

    Attributes:
        phase: times what happens inside `with phase("validation"):`; see `Throughput.phase`.
        profiled_step: profiles what happens inside, where the recipe wants that of this step.

    Args:
        recipe: the run as resolved.
        ds: its DeepSpeed config.
        folder: its files.
        console: its terminal.
        ranks: who trains.
        gpt: what is trained, whole.
    """

    def __init__(
        self,
        recipe: Recipe,
        ds: DeepSpeedConfig,
        folder: RunFolder,
        console: Console,
        ranks: Ranks,
        gpt: GPT,
    ) -> None:
        self.recipe, self.ds, self.folder, self.console = recipe, ds, folder, console
        self._ranks = ranks
        self._parameters, self._flops_per_token = gpt.num_parameters(), flops_per_token(gpt)
        self._profiler = StepProfiler(
            recipe.train.profile_steps, folder.path / "profile", ranks.rank, console.say
        )
        self._tracker: Tracker | None = None
        self._data_wait = DataWait(recipe.data.workers)
        self._diagnostics = Diagnostics(
            recipe.train.steps if recipe.train.diagnostics else 0, folder.path, ranks, gpt, console.say
        )
        self.profiled_step = self._profiler.step

    def begin(
        self,
        state: TrainState,
        checkpoint: Path | None,
        corpus: Corpus,
        validation: ValidationSet,
        start_up: StartUp,
    ) -> None:
        """Say and write what is known before the first step.

        Args:
            state: where the run begins; gets the id of its W&B run.
            checkpoint: what it resumes from.
            corpus: what it trains on.
            validation: what it is scored on.
            start_up: the clock of the start.
        """
        folder, console, recipe = self.folder, self.console, self.recipe
        # Steps after the checkpoint are made again: their lines go, so that no step has two.
        folder.keep_metrics_until(state.step, console.say, state.validation_due)
        if folder.rank == 0 and "floors" not in folder.summary:
            floors = loss_floors(corpus, validation, recipe.data, recipe.model.block_size)
            folder.summary["floors"] = floors
        settled = dict(
            parameters=self._parameters,
            flops_per_token=self._flops_per_token,
            world_size=self._ranks.world_size,
            val_tokens=len(validation.tokens) - 1,
            val_bytes=int(validation.bytes.sum()),
            val_text_fingerprint=validation.text_fingerprint,
            source_fingerprint=corpus.source.fingerprint,
            **recipe.facts(self.ds),
        )
        for key in ("divergence", "last_losses", "ended_above_floor"):
            folder.summary.pop(key, None)
        there = self._checkpoints(state)
        folder.update_summary(status="running", val_loss=None, val_bits_per_byte=None, **there, **settled)
        if folder.rank == 0:
            for sentence in derived_numbers(folder.path, folder.summary, recipe, self.ds):
                console.say(sentence)
            if checkpoint:
                console.say(f"resumed from {checkpoint}")
            settled |= {key: folder.summary[key] for key in CONFIG_FACTS if key in folder.summary}
            config = recipe_as_dict(vars(recipe)) | {"deepspeed": dict(self.ds.raw), "run": settled}
            before = folder.summary.get("wandb")
            tags = recipe.tags(self.ds)
            self._tracker = Tracker(
                recipe.tracking, folder.path, state.wandb_id, config, console.say, before, tags
            )
            state.wandb_id = self._tracker.id
            folder.update_summary(wandb=self._tracker.noted)
        tokens = recipe.train.steps * folder.summary["tokens_per_step"]
        self._bar = console.bar(recipe.variant, total=tokens, initial=state.tokens, unit="tok")
        self._throughput = Throughput(self._flops_per_token, self._ranks.device, self._ranks.world_size)
        self.phase = self._throughput.phase
        eot = corpus.tokenizer.eot if recipe.data.document_mask else None
        batch = fixed_batch(validation, recipe.model.block_size)
        self._diagnostics.begin(state.step, batch, eot, self.phase)
        start_up.mark("engine")
        self._start_up: StartUp | None = start_up
        self._bad_reasons_said = state.bad_documents.keys()
        self._wall_time_before, self._began = state.wall_time_s, time.perf_counter()

    def diagnosed_step(self, engine: Any, step: int) -> AbstractContextManager[None]:
        """Measures what the step inside does, unless it is profiled; see `Diagnostics.around`."""
        return nullcontext() if self._profiler.is_running else self._diagnostics.around(engine, step)

    def step(self, state: TrainState, result: StepResult, lr: float) -> None:
        """A step is over, and `state` counts it."""
        say, steps = self.console.say, self.recipe.train.steps
        for reason in result.bad_documents.keys() - self._bad_reasons_said:
            say(f"a document {BAD_REASONS[reason]}: it is left out, and metrics.jsonl counts them")
        self._bad_reasons_said = result.bad_documents.keys()
        if self._start_up:  # the first step of this start is over; W&B begins with its metrics
            self._start_up.mark("first step")
            self.folder.update_summary(start_up_s=self._start_up.seconds())
            if self.recipe.train.profile_steps:
                say(self._start_up.sentence())
            self._start_up = None
        self._write_metrics(
            "train",
            state,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=lr,
            data_wait=result.data_wait / result.seconds,
            **self._throughput.step(result.tokens, result.seconds),
            **({} if result.applied else {"skipped": True}),
            **({"spike": True} if state.last_spike == state.step else {}),
            **({"bad_documents": result.bad_documents} if result.bad_documents else {}),
        )
        self._bar.set_postfix(step=f"{state.step}/{steps}", loss=f"{result.loss:.3f}", refresh=False)
        self._bar.update(result.tokens)
        if not result.applied:
            say(f"step {state.step} is skipped: its gradients are not finite (loss {result.loss:.4g})")
        if advice := self._data_wait.advice(result.data_wait, result.seconds):
            say(advice)
        self._diagnostics.write(self._tracker, state.step, self._used(state))
        if self._tracker and self._tracker.id != state.wandb_id:  # W&B could not use that one
            state.wandb_id = self._tracker.id
            self.folder.update_summary(wandb=self._tracker.noted)

    def rolled_back(self, state: TrainState) -> None:
        """The run is where `state` is again: what was written of later steps goes."""
        self.folder.keep_metrics_until(state.step, self.console.say, state.validation_due)
        if self.folder.rank == 0:
            keep_until(self.folder.path, state.step)
            write_samples(self.folder.path / "samples.jsonl", state.step + 1, ())
        there = self._checkpoints(state)
        self.folder.update_summary(step=state.step, rollbacks=state.rollbacks, **there)
        self._bar.n = state.tokens
        self._bar.refresh()

    def validation(
        self,
        state: TrainState,
        losses: np.ndarray,
        validation: ValidationSet,
        samples: Sequence[Sample] = (),
    ) -> None:
        """A validation is over: `losses` (N,) are those of its targets, and `state` has their mean."""
        if self.folder.rank == 0:
            folder = self.folder.path / "eval" / checkpoint_name(state.step)
            write_document_losses(folder / "validation.parquet", losses, validation)
        self._write_metrics("val", state, loss=state.val_loss, bits_per_byte=state.val_bits_per_byte)
        self.console.say(
            f"step {state.step}: validation loss {state.val_loss:.4f} nats per token, "
            f"{state.val_bits_per_byte:.4f} bits per byte"
        )
        for prompt, text in samples:
            self.console.say(f"step {state.step}: {prompt!r} goes on {text!r}")
        if samples and self.folder.rank == 0:
            write_samples(self.folder.path / "samples.jsonl", state.step, samples)
        if samples and self._tracker:
            texts = {prompt or "(empty)": text for prompt, text in samples}
            self._tracker.log("sample", state.step, texts, self._used(state))

    def checkpoint(self, state: TrainState, last: Path, facts: Mapping[str, Any]) -> None:
        """The checkpoint `last` of an earlier `state` is written; `facts` are those of all checkpoints."""
        folder = self.folder
        folder.update_summary(
            step=state.step,
            tokens=state.tokens,
            skipped_steps=state.skipped_steps,
            wall_time_s=round(state.wall_time_s, 3),
            tokens_per_s=round(state.tokens / state.wall_time_s, 1),
            checkpoints=facts,
            **self._checkpoints(state),
        )
        if self._tracker:
            self._tracker.log_checkpoint(last, state, folder.summary)

    def end(self, state: TrainState, diverged: Verdict | None, failure: str | None) -> int:
        """The loop is over, on all ranks.

        Args:
            state: where it stopped.
            diverged: why it cannot go on.
            failure: why a rank could not go on, such as the end of its data or a disk that is full.

        Returns the exit status: 0 finished, 1 failed, 3 diverged, 75 stopped and saved. W&B is not waited for
        here: the process of rank 0 does so before it ends, for 30 s at most.
        """
        self._bar.close()
        self._profiler.finish()
        self.console.say(self._throughput.sentence())
        self.folder.update_summary(**self._checkpoints(state))  # the last validation may be late
        status, exit_status, sentence = outcome(self.recipe, state, diverged, failure, self.folder.summary)
        facts: dict[str, Any] = {"status": status, "step": state.step, **self._used(state)}
        facts |= {"skipped_steps": state.skipped_steps, "throughput": self._throughput.summary()}
        facts |= state.divergence_facts() | (diverged.facts(state.losses) if diverged else {})
        if status == "finished":
            facts |= {"val_loss": state.val_loss, "val_bits_per_byte": state.val_bits_per_byte}
            facts["ended_above_floor"] = ended_above_floor(state.val_loss, self.folder.summary.get("floors"))
        if failure:
            facts["error"] = failure
            self.console.fail(failure)
        self.folder.update_summary(**facts)
        if self._tracker and diverged:
            self._tracker.alert(f"{self.folder.path.name} diverged", f"step {state.step}: {sentence}")
        if self._tracker:
            self._tracker.finish(self.folder.summary, exit_status, is_stopped=status == "interrupted")
            self.folder.update_summary(wandb=self._tracker.noted)
        log_communication(self.ds)
        dist.barrier()  # the ranks end together, so that the next run does not meet one of this
        skips = f"; {state.skipped_steps} step(s) were skipped" if state.skipped_steps else ""
        self.console.say(f"{self.folder.path} {sentence}{skips}")
        return exit_status

    def wall_time_s(self) -> float:
        """Seconds in the loop, those of earlier starts included."""
        return self._wall_time_before + time.perf_counter() - self._began

    def _checkpoints(self, state: TrainState) -> dict[str, str | None]:
        """Where the last checkpoint lies, and that of the best validation so far, which before one is the
        last; None where it is not there."""
        if self.folder.rank > 0:
            return {}
        there = [step for step in complete_checkpoints(self.folder.path) if step <= state.step]
        last = max(there, default=None)
        best = last if state.best_step is None else state.best_step
        steps = {"last_checkpoint": last, "best_checkpoint": best if best in there else None}
        return {
            key: None if step is None else f"checkpoints/{checkpoint_name(step)}"
            for key, step in steps.items()
        }

    def _write_metrics(self, kind: str, state: TrainState, **values: Any) -> None:
        """One line of metrics.jsonl, and the same to W&B."""
        self.folder.append_metrics(kind=kind, step=state.step, tokens=state.tokens, **values)
        if self._tracker:
            self._tracker.log(kind, state.step, values, self._used(state))

    def _used(self, state: TrainState) -> dict[str, float]:
        """What the run has cost so far: tokens, FLOPs of the model, and hours times ranks."""
        hours = "gpu_hours" if self._ranks.device.type == "cuda" else "cpu_rank_hours"
        return {
            "tokens": state.tokens,
            "total_flops": float(state.tokens) * self._flops_per_token,
            hours: self.wall_time_s() * self._ranks.world_size / 3600,
        }
