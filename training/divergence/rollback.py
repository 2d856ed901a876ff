"""Going back to a checkpoint from before a divergence, in a way that a kill at any moment does not change.

`rollbacks.json` in the run folder is written before anything else changes. A start that finds it does what
was left undone: checkpoints from after the point to which the run went back go, and its batches are passed
over.
"""

import math
import shutil
from collections.abc import Callable
from typing import Any

from data import Corpus, LaneLoader
from model.errors import DIVERGED, UserError
from model.files import write_json

from ..checkpoints.found import damage
from ..checkpoints.loading import load_checkpoint
from ..checkpoints.newest import read_state
from ..checkpoints.writing import Checkpoints
from ..config.deepspeed import DeepSpeedConfig
from ..config.recipe import Recipe
from ..engine.ranks import Ranks
from ..feed import Feed
from ..run.console import Console
from ..run.folder import RunFolder
from ..run.reader import read_json, step_folders
from ..run_files import RollbacksFile, StateFile
from ..state import TrainState
from ..step import StepResult
from ..watch.signals import end_process
from .batches import PassOver, batch_of_step, passed_before
from .locate import all_finite, locate, unknown
from .losses import SPIKE
from .policy import Verdict, judge, note_loss
from .together import together

FILE = "rollbacks.json"
"""Its name in a run folder."""


class Divergence:
    """Watches a run for divergence and takes it back. Every rank has one and makes the same calls.

    Args:
        recipe: its `train` has the policy.
        ds: how the run is trained.
        folder: of the run; checkpoints from after a rollback that was begun are removed at once.
        corpus: what it trains on.
        ranks: who trains.
        console: is told what happens.
    """

    def __init__(
        self,
        recipe: Recipe,
        ds: DeepSpeedConfig,
        folder: RunFolder,
        corpus: Corpus,
        ranks: Ranks,
        console: Console,
    ) -> None:
        self._recipe, self._ds, self._folder, self._corpus = recipe, ds, folder, corpus
        self._ranks, self._say, self._say_of_rank = ranks, console.say, console.say_by_any_rank
        self._floor = math.log(corpus.tokenizer.vocab_size)
        self._file = folder.path / FILE
        stored, problem = self._stored() if folder.rank == 0 else ([], None)
        if problem := ranks.broadcast(problem):  # all ranks train, or none does
            raise UserError(problem)
        self._rollbacks: list[dict[str, Any]] = ranks.broadcast(stored)
        self._remove_later_checkpoints()

    def _stored(self) -> tuple[list[dict[str, Any]], str | None]:
        """The rollbacks that were made, or why they cannot be read."""
        try:
            return read_json(self._file, RollbacksFile)["rollbacks"] if self._file.exists() else [], None
        except (UserError, OSError) as error:
            return [], str(error)

    def start_feed(self, state: TrainState, interrupted: Callable[[], bool]) -> Feed:
        """This rank's batches from where the run is, without those that are passed over.

        It forks the processes that read the data. Who waits for them is let go once `interrupted` says so.
        """
        state.rollbacks = max(state.rollbacks, len(self._rollbacks))
        ds, ranks = self._ds, self._ranks
        batch = state.step + len(state.passed_batches)
        loader = LaneLoader(
            self._corpus,
            self._recipe.data,
            block_size=self._recipe.model.block_size,
            micro_batch=ds.micro_batch,
            rank=ranks.rank,
            world_size=ranks.world_size,
            first_sequence=batch * ds.train_batch_size,
            cursors=state.cursors,
            interrupted=interrupted,
            say=self._say_of_rank,
        )
        loader.start()
        return Feed(
            PassOver(loader, ds.accumulation, batch, self._passed(state)),
            ds.accumulation,
            state.bad_documents,
        )

    def after_step(self, state: TrainState, result: StepResult) -> Verdict | None:
        """Have the state, which has counted the step, note its loss; returns what follows, if anything."""
        state.passed_batches = passed_before(state.step, self._passed(state))
        spikes = state.spikes
        note_loss(state, result.loss)
        train, searches_scale = self._recipe.train, self._ds.model_dtype == "fp16"
        verdict, explosion = judge(state, result, train, self._floor, searches_scale)
        count = state.spikes
        if (
            count > spikes and count & (count - 1) == 0
        ):  # the first, second, fourth and so on; all are counted
            self._say(
                f"step {state.step}: the loss {result.loss:.2f} is a spike, {SPIKE:g} nats per token or more "
                f"above the steps before (number {count} of this run)"
            )
        if explosion and not verdict:
            self._say(f"step {state.step}: {explosion.sentence}")
        return verdict

    def go_back(
        self, engine: Any, verdict: Verdict | None, state: TrainState, checkpoints: Checkpoints
    ) -> TrainState | None:
        """Load the newest good checkpoint from before the divergence, whose batches are passed over now.

        Returns where the run is then; None where the verdict asks for none or there is no such checkpoint,
        and nothing has changed.
        """
        if verdict is None or not verdict.rolls_back:
            return None
        checkpoints.wait()
        first, passed = verdict.first, self._passed(state)
        entry: dict[str, Any] = {}
        while (found := self._newest_before(first)) is not None:
            batches = [batch_of_step(step, passed) for step in range(first, verdict.step + 1)]
            kept = [known for known in self._rollbacks if known is not entry]
            entry = {"step": verdict.step, "first": first, "reason": verdict.sentence, "passed": batches}
            self._rollbacks = [*kept, entry]
            if self._folder.rank == 0:
                for step, evaluated in step_folders(self._folder.path / "eval").items():
                    if step >= first:  # of weights that are no more
                        shutil.rmtree(evaluated)
                write_json(self._file, {"rollbacks": self._rollbacks})
            self._remove_later_checkpoints()
            before = read_state(found, self._corpus.fingerprints, any_ranks=self._ds.load_universal)
            load_checkpoint(engine, found, before)
            if not self._ranks.any(not all_finite(engine)):
                self._say(
                    f"step {verdict.step}: {verdict.sentence}: back to step {before.step}, and "
                    f"{len(batches)} batch(es) are passed over (rollback {len(self._rollbacks)} of "
                    f"{self._recipe.train.max_rollbacks})"
                )
                before.wandb_id = state.wandb_id
                return before
            first = before.step  # the batch of its step has broken it, without a sign
        return None

    def explain(self, engine: Any, feed: Feed, verdict: Verdict, state: TrainState) -> Verdict:
        """The verdict on a run that has diverged, with the layer where it is known. The engine is used up.

        Where a rank fails at that and others wait for it, the run ends here: as diverged, without the layer.
        """

        def leave(why: str) -> None:
            try:
                last = unknown(verdict, why)
                facts = last.facts(state.losses) | state.divergence_facts()
                self._folder.update_summary(status="diverged", step=state.step, **facts)
                self._say(f"{self._folder.path} diverged at step {state.step}: {last.sentence}")
            finally:
                end_process(DIVERGED if self._folder.rank == 0 else 0)

        mask, eot = self._recipe.data.document_mask, self._corpus.tokenizer.eot
        with together(leave) as fail:
            return locate(engine, feed.taken, self._ranks.device, eot, mask, verdict, fail)

    def _passed(self, state: TrainState) -> set[int]:
        return {batch for entry in self._rollbacks for batch in entry["passed"]} | set(state.passed_batches)

    def _newest_before(self, step: int) -> Any:
        """The newest whole checkpoint of fewer steps than `step`; None where there is none."""
        found = None
        if self._folder.rank == 0:
            earlier = [path for at, path in step_folders(self._folder.checkpoints).items() if at < step]
            found = next((path for path in reversed(earlier) if not damage(path)), None)
        return self._ranks.broadcast(found)

    def _remove_later_checkpoints(self) -> None:
        """Those that the run has gone back behind since they were written."""
        if self._folder.rank == 0:
            for step, path in step_folders(self._folder.checkpoints).items():
                try:
                    known = read_json(path / "trainer_state.json", StateFile).get("rollbacks", 0)
                except (OSError, UserError):
                    continue  # it is damaged, which whoever looks for the newest one says
                if any(entry["first"] <= step for entry in self._rollbacks[known:]):
                    gone = path.with_name(f".{path.name}.partial")  # at no time half of it under its name
                    shutil.rmtree(gone, ignore_errors=True)
                    path.rename(gone)
                    shutil.rmtree(gone)
        self._ranks.broadcast(None)
