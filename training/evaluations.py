"""What W&B gets of a run's evaluations, by step, and what of it was sent: eval/step_*/wandb.json."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from model.files import write_json

from .run.reader import evaluation_folder, read_json, read_results, reading, step_folders

COLUMNS = ("step", "task", "metric", "value", "standard error", "items")
"""Of the table of all scores."""


class Score(NamedTuple):
    """A task's score at a step; `metric` has its filter where that is not lm-eval's `none`."""

    step: int
    task: str
    metric: str
    value: float
    standard_error: float | None
    items: int | None


def scores(run_dir: Path, step: int) -> list[Score]:
    """The scores of the checkpoint at `step`, those of groups too; what is no finite number is left out."""
    results = read_results(run_dir, step)
    found = []
    for task, values in results.get("results", {}).items():
        items = results.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in values.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_finite(value):
                continue
            error = values.get(f"{metric}_stderr,{filter_name}")
            name = key.removesuffix(",none")
            found.append(Score(step, task, name, value, error if _is_finite(error) else None, items))
    return found


def slices(run_dir: Path, step: int) -> dict[str, float]:
    """The validation loss in slices, nats per token, by `slices/KIND/LOW`; empty where none were made."""
    file = evaluation_folder(run_dir, step) / "slices.parquet"
    if not file.is_file():
        return {}
    import pyarrow.parquet as pq  # here: most runs have no slices

    with reading(file):
        table = pq.read_table(file)
    sums = table.group_by(["kind", "low"]).aggregate([("loss", "sum"), ("tokens", "sum")])
    return {
        f"slices/{row['kind']}/{row['low']}": row["loss_sum"] / row["tokens_sum"] for row in sums.to_pylist()
    }


def axes_at(step: int, summary: Mapping[str, Any]) -> dict[str, float]:
    """What the evaluation of a checkpoint is drawn against: step, tokens and FLOPs of the model up to it."""
    tokens = step * summary["tokens_per_step"]  # every step trains on as many
    return {"step": step, "tokens": tokens, "total_flops": float(tokens) * summary["flops_per_token"]}


def values_to_log(run_dir: Path, step: int) -> dict[str, float]:
    """All of an evaluation, by the names that it has in W&B."""
    of_tasks = {f"eval/{score.task}/{score.metric}": score.value for score in scores(run_dir, step)}
    return of_tasks | slices(run_dir, step)


def latest_values(run_dir: Path, run_id: str) -> dict[str, float]:
    """Of each value, of evaluations or sent before, the one of the last step that has it."""
    latest: dict[str, float] = {}
    for step in step_folders(run_dir / "eval"):
        latest |= _sent(run_dir, step, run_id)["values"] | values_to_log(run_dir, step)
    return latest


def score_rows(run_dir: Path) -> list[Score]:
    """The scores of all steps, a row of the table each."""
    return [score for step in step_folders(run_dir / "eval") for score in scores(run_dir, step)]


def unsent(
    run_dir: Path, run_id: str, others: Mapping[int, Mapping[str, float]]
) -> Iterator[tuple[int, dict[str, float]]]:
    """Each step that has values which the W&B run has not, or has otherwise, and those values.

    They are those of evaluations, and `others` by step and name.
    """
    for step in sorted({*step_folders(run_dir / "eval"), *others}):
        sent = _sent(run_dir, step, run_id)["values"]
        values = {**values_to_log(run_dir, step), **others.get(step, {})}
        new = {key: value for key, value in values.items() if sent.get(key) != value}
        if new:
            yield step, new


def note_sent(run_dir: Path, step: int, run_id: str, values: dict[str, float]) -> None:
    """Remember that a row with these values of `step` is in the W&B run."""
    before = _sent(run_dir, step, run_id)
    after = {"run": run_id, "rows": before["rows"] + 1, "values": before["values"] | values}
    write_json(sent_file(run_dir, step), after)


def sent_file(run_dir: Path, step: int) -> Path:
    """Where `note_sent` notes what the W&B run has of a step."""
    return evaluation_folder(run_dir, step) / "wandb.json"


def rows_sent(run_dir: Path, run_id: str) -> int:
    """How many rows of the W&B run are evaluations'."""
    return sum(_sent(run_dir, step, run_id)["rows"] for step in step_folders(run_dir / "eval"))


def _sent(run_dir: Path, step: int, run_id: str) -> dict[str, Any]:
    """What wandb.json says; nothing was sent where it is of another W&B run, as in a copied folder."""
    file = sent_file(run_dir, step)
    sent = read_json(file) if file.is_file() else {}
    return sent if sent.get("run") == run_id else {"rows": 0, "values": {}}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
