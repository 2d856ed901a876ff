"""Weights & Biases: a view of the run. `metrics.jsonl` stays the truth."""

import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from ..config.tracking import TrackingConfig, run_id_of_sweep, wandb_mode
from ..evaluations import COLUMNS, axes_at, latest_values, note_sent, rows_sent, score_rows, unsent
from ..run.reader import read_metrics, read_summary
from ..state import TrainState
from .wandb_run import EXTREMES, artifact_name, finish_run, reference, start_run

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

    It begins with the first `log`: importing wandb and starting its process takes seconds, and nothing is
    there to be logged before the first step is over. One process at a time writes a W&B run, the one that
    holds logs/wandb.lock of the run folder.

    W&B takes no row whose step, as it counts them, is below the last one's. A training step's is its number
    and that of the evaluations logged so far, which are rows between those of steps.

    Attributes:
        id: the W&B run's, for the checkpoint.
        run: the W&B run; None before it has begun, and once it is lost.
        settings: its project, name and the like.

    Args:
        config: project, group, name and tags, where the recipe says them.
        run_dir: the run folder, which gets W&B's own files unless WANDB_DIR names another.
        run_id: continues that W&B run; None starts one.
        facts: what W&B shows as the run's config; what is under "run" there is left out of its summary.
        say: is told whether the run is offline, and why.
        before: the settings that the run began with, which stay where neither recipe nor environment says.
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
        self.id = run_id or run_id_of_sweep() or new_id()
        defaults: dict[str, Any] = {"name": run_dir.name, "tags": [tag[:LONGEST_TAG] for tag in tags]}
        self.settings = config.settings(defaults, before or {})
        self._run_dir, self._facts, self._say = run_dir, facts, say
        self.run: Any = None
        self._lost = False
        self._turn = FileLock(run_dir / "logs" / "wandb.lock", thread_local=False)
        self._beside = ThreadPoolExecutor(max_workers=1)
        self._row = 0  # the training step of the latest row
        self._is_open = False  # W&B keeps the latest row until the next
        self._has_validated = False  # in that row
        self._evaluations = 0  # rows of them in the W&B run
        self._next = 0  # W&B takes no lower step of its own

    @property
    def noted(self) -> dict[str, Any]:
        """What summary.json keeps: the settings, and what another process finds the W&B run by."""
        return {**self.settings, "id": self.id, "mode": wandb_mode()}

    def take_turn(self, wait_s: float = TURN_S) -> bool:
        """Keep others from writing the W&B run; False where one still does after `wait_s` seconds."""
        try:
            self._turn.acquire(timeout=wait_s)
        except Timeout:
            return False
        return True

    def begin(self) -> None:
        """Start the W&B run, unless it has begun; one that W&B refuses, for a tag perhaps, is lost."""
        if self.run is not None or self._lost:
            return
        try:
            if wandb_mode() != "disabled" and not self._turn.is_locked and not self.take_turn():
                raise TimeoutError("another process writes it")
            self._evaluations = rows_sent(self._run_dir, self.id)
            self.run = start_run(self.settings, self._run_dir, self.id, self._facts, self._say)
            self._next = self.run.starting_step
        except Exception as error:
            self._lose(error)

    def go_on(self, noted: Mapping[str, Any], after: int) -> None:
        """Begin where a run ended, by what was noted of it; its rows go up to the step `after`."""
        self.settings = {key: value for key, value in noted.items() if key not in ("id", "mode")}
        self._row = after
        self.begin()

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
        if step != self._row and self._has_validated:
            self.log_evaluations()
        row = {"step": step, **(axes or {})} | {f"{kind}/{name}": value for name, value in values.items()}
        self._send(lambda run: run.log(row, step=step + self._evaluations))
        self._has_validated = kind == "val" or (self._has_validated and step == self._row)
        self._row, self._is_open = step, True

    def log_evaluations(self, others: Mapping[int, Mapping[str, float]] = MappingProxyType({})) -> None:
        """Log what eval/ holds and the W&B run has not: a row for each step, and the table of all scores.

        The rows have the step and the tokens of their checkpoint, and come after the latest row. In them are
        `others` too, by step and name, where the run has them not. Files that cannot be read are said, and
        end nothing.
        """
        if wandb_mode() == "disabled":
            return
        try:
            self._log_unsent(others)
        except Exception as error:
            what = " ".join(str(error).split())
            self._say(f"W&B has not got all evaluations ({type(error).__name__}: {what})")

    def _log_unsent(self, others: Mapping[int, Mapping[str, float]]) -> None:
        if not (found := list(unsent(self._run_dir, self.id, others))):
            return
        self._close_row()
        summary = read_summary(self._run_dir)
        scored = [step for step, values in found if any(name.startswith("eval/") for name in values)]
        last_scored = max(scored, default=None)
        for step, values in found:
            at = max(self._row + self._evaluations + 1, self._next)
            row: dict[str, Any] = {**axes_at(step, summary), **values}
            if step == last_scored:
                row["evaluation"] = _table(score_rows(self._run_dir))
            self._send(partial(_log_whole_row, row, at))
            if self._lost:
                return
            note_sent(self._run_dir, step, self.id, values)
            self._evaluations, self._next = self._evaluations + 1, at + 1

    def log_checkpoint(self, folder: Path, state: TrainState, summary: Mapping[str, Any]) -> None:
        """Log where a checkpoint lies, as a version of the run's artifact; nothing of it is read or sent.

        Online W&B asks its server about the artifact first, for which the loop does not wait.

        Args:
            folder: the newest checkpoint's.
            state: what it was saved with.
            summary: of the run.
        """
        if wandb_mode() == "disabled":
            return
        aliases = ["last", f"step_{state.step}", *(["best"] if state.best_step == state.step else [])]
        metadata = {key: summary[key] for key in CONFIG_FACTS if key in summary}
        metadata |= {"step": state.step, "tokens": state.tokens, "latest_val_loss": state.val_loss}
        self._send(lambda run: self._beside.submit(self._log_artifact, run, folder, metadata, aliases))

    def _log_artifact(
        self, run: Any, folder: Path, metadata: Mapping[str, Any], aliases: Sequence[str]
    ) -> None:
        name = artifact_name(self.noted, "checkpoints")
        try:
            run.log_artifact(reference(name, folder, metadata), aliases=list(aliases))
        except Exception as error:  # of the server perhaps: the run itself goes on
            what = " ".join(str(error).split())
            self._say(f"W&B does not take {name} ({type(error).__name__}: {what})")

    def alert(self, title: str, text: str) -> None:
        """Tell those who watch the run, by the mail or the chat that they have set up for W&B's alerts."""
        self._send(lambda run: run.alert(title=title, text=text, level="ERROR"))

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Write the run's summary and close it; with another `exit_code` than 0 W&B shows it as failed."""
        config = self._facts.get("run", {})
        facts = {key: value for key, value in summary.items() if key not in config and key != "wandb"}
        self._beside.shutdown()
        self._close_row()
        self.log_evaluations()
        self._send(lambda run: run.summary.update(facts | self._found()))
        self._send(lambda run: finish_run(run, exit_code))
        self._turn.release()

    def _found(self) -> dict[str, Any]:
        """All that was ever logged, for the summary: `wandb sync` has one part's replace those before."""
        return summary_of_metrics(self._run_dir) | latest_values(self._run_dir, self.id)

    def _close_row(self) -> None:
        """Have W&B take the latest row: its values would replace later ones, in the summary too."""
        if self._is_open:
            step = self._row
            self._send(lambda run: run.log({"step": step}, step=step + self._evaluations, commit=True))
            self._is_open = False

    def _send(self, action: Callable[[Any], object]) -> None:
        """W&B runs in a process of its own: where that was ended, by a signal to all, the run goes on."""
        self.begin()
        if self._lost:
            return
        try:
            action(self.run)
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.run, self._lost = None, True
        self._turn.release()
        what = " ".join(str(error).split())
        self._say(f"W&B is lost ({type(error).__name__}: {what}): the run folder has it all")


def _log_whole_row(row: Mapping[str, Any], step: int, run: Any) -> None:
    run.log(row, step=step, commit=True)


def _table(scores: Sequence[Sequence[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(COLUMNS), data=[list(score) for score in scores])


def summary_of_metrics(run_dir: Path) -> dict[str, Any]:
    """The last value of each metric, and of those of `EXTREMES` the lowest or highest too.

    They are of all the run's starts; W&B's own are those of the latest start alone.
    """
    found: dict[str, Any] = {}
    for line in read_metrics(run_dir):
        for key in line.keys() - {"kind", "step", "tokens"}:
            name, value = f"{line['kind']}/{key}", line[key]
            if value is None:
                continue
            if name not in EXTREMES:
                found[name] = value
                continue
            of_both = min if EXTREMES[name] == "min" else max
            before = found.get(name, {EXTREMES[name]: value})[EXTREMES[name]]
            found[name] = {EXTREMES[name]: of_both(before, value), "last": value}
    return found


def new_id() -> str:
    """Eight letters and digits, as W&B's own ids are."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
