"""Weights & Biases: a view of the run. `metrics.jsonl` stays the truth."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from ..config.tracking import VARIABLES, TrackingConfig, run_id_of_sweep, wandb_mode
from ..run.reader import read_summary
from ..state import TrainState
from .thread import END_S, STOPPED_END_S, WandbThread
from .tracked_run import TrackedRun
from .wandb_run import artifact_name, new_id

CONFIG_FACTS = (
    "variant", "precision", "model", "block_size", "parameters", "flops_per_token", "world_size", "init_seed",
    "data_seed", "steps", "tokens_per_step", "tokenizer", "packing", "data_lanes", "val_tokens", "val_bytes",
    "data_revision", "data_validation_revision", "init_from", "candidate_overrides", "tokenizer_fingerprint",
    "design_fingerprint", "data_fingerprint", "source_fingerprint", "val_fingerprint", "val_text_fingerprint",
    "init_fingerprint",
)  # fmt: skip
"""What of summary.json is the run's config, under `run`; the rest is what the run has come to."""
LONGEST_TAG = 64
"""W&B refuses a run that has a longer one."""
TURN_S = 120.0
"""How long a start waits for another process that writes the W&B run: an evaluation sends in seconds."""


class Tracker:
    """Rank 0's W&B run: online where a key and the network allow it, else offline, said in one line.

    No method waits for W&B, but `wait`: a thread of its own imports wandb, begins the run when there is
    something to be logged, and sends. What is given is copied. Where W&B fails or hangs it is lost, which is
    said, and the run goes on without it. One process at a time writes a W&B run, the one that holds
    logs/wandb.lock of the run folder.

    Attributes:
        settings: the W&B run's project, name and the like.

    Args:
        config: project, group, name and tags, where the recipe says them.
        run_dir: the run folder, which gets W&B's own files unless WANDB_DIR names another.
        run_id: continues that W&B run; None starts one.
        facts: what W&B shows as the run's config; what is under "run" there is left out of its summary.
        say: is told whether the run is offline, and why.
        before: what summary.json noted of the W&B run; its settings stay where neither recipe nor environment
            says, and where it took another id than `run_id`, so does that.
        tags: words to find the run by, where neither says any.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        run_id: str | None,
        facts: dict[str, Any],
        say: Callable[[str], None],
        before: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        before = before or {}
        defaults: dict[str, Any] = {"name": run_dir.name, "tags": [tag[:LONGEST_TAG] for tag in tags]}
        self.settings = config.settings(defaults, before)
        self._instead_of = before.get("instead_of")
        if run_id and run_id == self._instead_of:
            run_id = before["id"]
        self._first_id = run_id or run_id_of_sweep() or new_id()
        self._run_dir, self._facts, self._say = run_dir, deepcopy(facts), say
        self._turn = FileLock(run_dir / "logs" / "wandb.lock", thread_local=False)
        self._thread = WandbThread(say, self._give_up, self._end_unfinished)
        self._run: TrackedRun | None = None
        self._after = 0

    @property
    def id(self) -> str:
        """The W&B run's, for the checkpoint: another than at first where W&B could not use that."""
        return self._run.id if self._run else self._first_id

    @property
    def noted(self) -> dict[str, Any]:
        """What summary.json keeps: the settings, what another process finds the W&B run by, what it lacks."""
        instead_of = self._first_id if self.id != self._first_id else self._instead_of
        return {
            **self.settings,
            "id": self.id,
            "mode": wandb_mode(),
            **({"instead_of": instead_of} if instead_of else {}),
            **({"dropped_rows": self._thread.dropped} if self._thread.dropped else {}),
            **({"lost": self._thread.lost} if self._thread.lost else {}),
        }

    def take_turn(self, wait_s: float = TURN_S) -> bool:
        """Keep others from writing the W&B run; False where one still does after `wait_s` seconds."""
        try:
            self._turn.acquire(timeout=wait_s)
        except Timeout:
            return False
        return True

    def go_on(self, noted: Mapping[str, Any], after: int) -> None:
        """Begin where a run ended, by what was noted of it; its rows go up to the step `after`."""
        self.settings = {key: value for key, value in noted.items() if key in VARIABLES}
        self._after = after

    def log(
        self, kind: str, step: int, values: Mapping[str, Any], axes: Mapping[str, float] | None = None
    ) -> None:
        """Log `kind/name` for each value, in the row of `step`.

        After a validation's row come the evaluations that other processes have left in eval/ meanwhile.

        Args:
            kind: of the values, such as train or val.
            step: optimizer steps taken; those that a run makes again replace what W&B has of them.
            values: by name.
            axes: what else the values can be drawn against, by names of `wandb_run.AXES`; they get no kind.
        """
        row = {**(axes or {}), **{f"{kind}/{name}": deepcopy(value) for name, value in values.items()}}
        self._put(lambda run: run.log(kind, step, row))

    def log_evaluations(self, others: Mapping[int, Mapping[str, float]] = MappingProxyType({})) -> None:
        """Log what eval/ holds and the W&B run has not: a row for each step, and the table of all scores.

        The rows have the step and the tokens of their checkpoint, and come after the latest row. In them are
        `others` too, by step and name, where the run has them not. Files that cannot be read are said, and
        end nothing.
        """
        rows = {step: dict(values) for step, values in others.items()}
        self._put(lambda run: run.log_evaluations(rows))

    def log_checkpoint(self, folder: Path, state: TrainState, summary: Mapping[str, Any]) -> None:
        """Log where a checkpoint lies, as a version of the run's artifact; nothing of it is read or sent.

        Args:
            folder: the newest checkpoint's.
            state: what it was saved with.
            summary: of the run.
        """
        aliases = ["last", f"step_{state.step}", *(["best"] if state.best_step == state.step else [])]
        metadata = {key: deepcopy(summary[key]) for key in CONFIG_FACTS if key in summary}
        metadata |= {"step": state.step, "tokens": state.tokens, "latest_val_loss": state.val_loss}
        self._put(
            lambda run: run.log_artifact(artifact_name(self.noted, "checkpoints"), folder, metadata, aliases)
        )

    def log_table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table in the row of `step`, which is the latest."""
        self._put(lambda run: run.log_table(name, step, columns, rows))

    def alert(self, title: str, text: str) -> None:
        """Tell those who watch the run, by the mail or the chat that they have set up for W&B's alerts."""
        self._put(lambda run: run.alert(title, text))

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0, is_stopped: bool = False) -> None:
        """Write the run's summary and close it; with another `exit_code` than 0 W&B shows it as failed.

        Returns at once. The process waits for W&B before it ends, 30 s at most, and where a signal asked for
        the end of the run (`is_stopped`) 10 s.
        """
        facts = deepcopy(dict(summary))
        self._thread.close(lambda: self._finish(facts, exit_code), STOPPED_END_S if is_stopped else END_S)

    def wait(self, is_over: Callable[[], bool] = lambda: False, until: float = math.inf) -> None:
        """After `finish`: until W&B has it all or is lost; see `WandbThread.wait`."""
        self._thread.wait(is_over, until)

    def _put(self, action: Callable[[TrackedRun], object]) -> None:
        if wandb_mode() != "disabled":
            self._thread.put(lambda: action(self._begun()))

    def _begun(self) -> TrackedRun:
        """On the thread: the W&B run, which is begun first. Raises what W&B does."""
        if self._run is None:
            import wandb  # noqa: F401 (its time is that of the disk, and no part of the start's)

            if not self._turn.is_locked and not self.take_turn():
                raise TimeoutError("another process writes it")
            if self._thread.lost:  # meanwhile: nobody would give the turn back
                self._turn.release()
                raise InterruptedError(self._thread.lost)
            run = TrackedRun(
                self.settings, self._run_dir, self._first_id, self._facts, self._say_of_run, self._after
            )
            run.begin(self._thread.start_now())
            self._run = run
            self._thread.has_begun()
        return self._run

    def _finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        self._begun().finish(summary, exit_code)
        self._turn.release()

    def _say_of_run(self, sentence: str) -> None:
        if not self._thread.lost:  # what a start that came too late says is no longer so
            self._say(sentence)

    def _give_up(self, reason: str) -> None:
        """W&B is lost: another process may write it."""
        if self._run:
            self._run.forget_sent()
        self._turn.release()
        self._say(f"W&B is lost ({reason}): the run folder has it all")

    def _end_unfinished(self) -> None:
        """The process ends with an exception: W&B shows the run as failed."""
        summary = read_summary(self._run_dir) if (self._run_dir / "summary.json").is_file() else {}
        self.finish(summary, exit_code=1)
