"""The W&B run of a run folder, as the thread that talks to W&B has it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluations import (
    COLUMNS,
    axes_at,
    latest_values,
    note_sent,
    rows_sent,
    score_rows,
    sent_file,
    unsent,
)
from ..run.reader import read_metrics, read_summary
from .wandb_run import EXTREMES, finish_run, reference, start_run


class TrackedRun:
    """A W&B run, once it has begun: each method sends, or waits for W&B as long as W&B likes.

    W&B takes no row whose step, as it counts them, is below the last one's. A training step's is its number
    and that of the evaluations logged so far, which are rows between those of steps.

    Attributes:
        id: the W&B run's; another than was given where that one cannot be used.

    Args:
        settings: its project, name and the like.
        run_dir: the run folder.
        run_id: of the W&B run.
        facts: what W&B shows as the run's config; what is under "run" there is left out of its summary.
        say: is told whether the run is offline, and why.
        after: the training step of its latest row.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        run_dir: Path,
        run_id: str,
        facts: dict[str, Any],
        say: Callable[[str], None],
        after: int = 0,
    ) -> None:
        self.id = run_id
        self._settings, self._run_dir, self._facts, self._say = settings, run_dir, facts, say
        self._run: Any = None
        self._row = after  # the training step of the latest row
        self._is_open = False  # W&B keeps the latest row until the next
        self._has_validated = False  # in that row
        self._evaluations = 0  # rows of them in the W&B run
        self._next = 0  # W&B takes no lower step of its own
        self._notes_before: dict[Path, bytes | None] = {}

    def begin(self, deadline: float) -> None:
        """Start the W&B run, by `deadline` as `time.monotonic` counts. Raises what W&B does."""
        self._run = start_run(self._settings, self._run_dir, self.id, self._facts, self._say, deadline)
        self.id = self._run.id
        self._evaluations = rows_sent(self._run_dir, self.id)
        self._next = self._run.starting_step

    def log(self, kind: str, step: int, row: Mapping[str, Any]) -> None:
        """Log values in the row of `step`; after that of a validation come the evaluations made meanwhile."""
        if step != self._row and self._has_validated:
            self.log_evaluations({})
        self._run.log({"step": step, **row}, step=step + self._evaluations)
        self._has_validated = kind == "val" or (self._has_validated and step == self._row)
        self._row, self._is_open = step, True

    def log_evaluations(self, others: Mapping[int, Mapping[str, float]]) -> None:
        """See `Tracker.log_evaluations`."""
        try:
            found = list(self._unsent_rows(others))
        except Exception as error:
            self._say_unsent(error)
            return
        if found:
            self._close_row()
        for step, row, values in found:
            at = max(self._row + self._evaluations + 1, self._next)
            scores = row.pop("evaluation", None)
            if scores is not None:
                row["evaluation"] = _table(COLUMNS, scores)
            self._run.log(row, step=at, commit=True)
            self._evaluations, self._next = self._evaluations + 1, at + 1
            try:
                self._note_sent(step, values)
            except Exception as error:
                self._say_unsent(error)
                return

    def log_artifact(
        self, name: str, folder: Path, metadata: Mapping[str, Any], aliases: Sequence[str]
    ) -> None:
        """Log where a folder lies. Online W&B asks its server first; where that fails it is said."""
        try:
            self._run.log_artifact(reference(name, folder, metadata), aliases=list(aliases))
        except Exception as error:  # of the server perhaps: the run itself goes on
            self._say(f"W&B does not take {name} ({_in_words(error)})")

    def log_table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table in the row of `step`; where W&B cannot write its temporary file, that is said."""
        try:
            self._run.log({name: _table(columns, rows)}, step=step + self._evaluations)
        except Exception as error:  # a full disk perhaps: the lines of the run are worth more
            self._say(f"the table {name} is not in W&B ({_in_words(error)})")

    def alert(self, title: str, text: str) -> None:
        """See `Tracker.alert`."""
        self._run.alert(title=title, text=text, level="ERROR")

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the run's summary and close it."""
        config = self._facts.get("run", {})
        facts = {key: value for key, value in summary.items() if key not in config and key != "wandb"}
        self._close_row()
        self.log_evaluations({})
        # All that was ever logged: `wandb sync` has the summary of one part replace those before.
        found = summary_of_metrics(self._run_dir) | latest_values(self._run_dir, self.id)
        self._run.summary.update(facts | found)
        finish_run(self._run, exit_code)
        self._notes_before = {}

    def forget_sent(self) -> None:
        """Have another start send the evaluations of this one again: W&B may not have got them."""
        for file, before in self._notes_before.items():
            try:
                file.unlink() if before is None else file.write_bytes(before)
            except OSError as error:
                self._say_unsent(error)
        self._notes_before = {}

    def _unsent_rows(self, others: Mapping[int, Mapping[str, float]]) -> Any:
        """Of each step that has values which W&B has not: the step, its row, and those values alone."""
        found = list(unsent(self._run_dir, self.id, others))
        if not found:
            return
        summary = read_summary(self._run_dir)
        scored = [step for step, values in found if any(name.startswith("eval/") for name in values)]
        last_scored = max(scored, default=None)
        for step, values in found:
            row: dict[str, Any] = {**axes_at(step, summary), **values}
            if step == last_scored:
                row["evaluation"] = [list(score) for score in score_rows(self._run_dir)]
            yield step, row, values

    def _note_sent(self, step: int, values: dict[str, float]) -> None:
        file = sent_file(self._run_dir, step)
        self._notes_before.setdefault(file, file.read_bytes() if file.is_file() else None)
        note_sent(self._run_dir, step, self.id, values)

    def _say_unsent(self, error: Exception) -> None:
        self._say(f"W&B has not got all evaluations ({_in_words(error)})")

    def _close_row(self) -> None:
        """Have W&B take the latest row: its values would replace later ones, in the summary too."""
        if self._is_open:
            self._run.log({"step": self._row}, step=self._row + self._evaluations, commit=True)
            self._is_open = False


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


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
