"""What a run folder says: its summary, its metrics, its task scores and its validation losses by document."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import DESIGN_KEYS, GPTConfig, variant_name
from model.errors import UserError
from training.run.reader import (
    evaluation_folder,
    last_evaluated_step,
    read_metrics,
    read_recipe,
    read_results,
    read_summary,
    reading,
)
from training.watch.standing import status_now

from ..result_files import score_name
from .settings import GROUPS, in_words, settings_of

if TYPE_CHECKING:
    import pandas as pd

GIVEN_WEIGHTS = "given weights"
"""The status of a model that was evaluated and not trained here; `python -m eval FOLDER` writes it."""
REQUIRED_KEYS = ("status", "variant")


@dataclass(frozen=True)
class RunRecord:
    """What one run has left, or an evaluation of weights that were not trained here.

    The summary is read at once, everything larger when it is first asked for.
    """

    folder: Path
    summary: dict[str, Any]

    @cached_property
    def settings(self) -> dict[str, str]:
        """How it was trained, beside its design, by group of settings in words; empty without configs."""
        found = settings_of(self.folder)
        return {group.name: in_words(group, found[group.name]) for group in GROUPS} if found else {}

    @property
    def val_loss(self) -> float:
        """Final validation loss in nats per token; NaN where the run has none."""
        return self._finite("val_loss")

    @property
    def val_bits_per_byte(self) -> float:
        """The same loss in bits per byte of text; NaN where the run has none."""
        return self._finite("val_bits_per_byte")

    def _finite(self, key: str) -> float:
        value = self.summary.get(key)
        return value if value is not None and math.isfinite(value) else math.nan

    @property
    def tokenizer(self) -> str:
        """`data.tokenizer`; runs from before there was a choice have GPT-2's."""
        return self.summary.get("tokenizer", "gpt2")

    @cached_property
    def _metrics(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The lines of metrics.jsonl, and a sentence on those that were left out."""
        said: list[str] = []
        return read_metrics(self.folder, said.append), said

    @property
    def broken_metrics(self) -> str | None:
        """Which lines of metrics.jsonl are no JSON of a step, in words; None where all are."""
        return next(iter(self._metrics[1]), None)

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """metrics.jsonl, one row per line, without repeats of a step."""
        import pandas as pd

        records, _ = self._metrics
        table = pd.DataFrame(records, columns=None if records else ["kind", "step"])
        return table.drop_duplicates(["kind", "step"], keep="last")

    @property
    def train(self) -> "pd.DataFrame":
        """Training by step: tokens, loss (nats per token, NaN if skipped), grad_norm, lr, tokens_per_s."""
        return self._kind("train", ("step", "tokens", "loss", "grad_norm", "lr", "tokens_per_s"))

    @property
    def val(self) -> "pd.DataFrame":
        """Validation by step: tokens trained on, loss (nats per token), bits_per_byte (NaN if unknown)."""
        return self._kind("val", ("step", "tokens", "loss", "bits_per_byte"))

    def _kind(self, kind: str, columns: tuple[str, ...]) -> "pd.DataFrame":
        import pandas as pd

        rows = self.metrics[self.metrics["kind"] == kind].reindex(columns=list(columns))
        return rows.apply(pd.to_numeric).sort_values("step", ignore_index=True)

    @cached_property
    def evaluated_step(self) -> int | None:
        """The last step whose checkpoint went through the lm-eval tasks."""
        return last_evaluated_step(self.folder)

    @cached_property
    def results(self) -> dict[str, Any]:
        """lm-eval's results of the last evaluated step, as written; empty where no task has run."""
        return {} if self.evaluated_step is None else read_results(self.folder, self.evaluated_step)

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Task scores of the last evaluated step, {task: {metric: value}}, without lm-eval's suffix `,none`.

        Standard errors are there as `acc_stderr`, of another filter as `exact_match,strict_stderr`; strings
        ("N/A", aliases) and non-finite values are not.
        """
        return {
            task: {
                _score_name(key): float(value)
                for key, value in entries.items()
                if "," in key and isinstance(value, int | float) and math.isfinite(value)
            }
            for task, entries in self.results.get("results", {}).items()
        }

    @property
    def limit(self) -> float | None:
        """How many items (or which share) of each task were scored; None for all of them."""
        return self.results.get("normlab", {}).get("limit")

    def sample_count(self, task: str) -> int | None:
        """How many items of a task were scored."""
        return self.results.get("n-samples", {}).get(task, {}).get("effective")

    @cached_property
    def items(self) -> "pd.DataFrame | None":
        """Scores by item at the last evaluated step: task, doc_id, metric, value; None where not kept."""
        return None if self.evaluated_step is None else self._table(self.evaluated_step, "per_item.parquet")

    @cached_property
    def documents(self) -> "pd.DataFrame | None":
        """The final validation: document, tokens, bytes, loss (nats, sum over its tokens); None if not kept.

        Older runs have no bytes.
        """
        return self._table(self.summary.get("step") or 0, "validation.parquet")

    @cached_property
    def slices(self) -> "pd.DataFrame | None":
        """The final validation in slices: kind, low, high, document, tokens, loss; None if not kept."""
        return self._table(self.summary.get("step") or 0, "slices.parquet")

    def _table(self, step: int, file_name: str) -> "pd.DataFrame | None":
        import pandas as pd

        path = evaluation_folder(self.folder, step) / file_name
        with reading(path):
            return pd.read_parquet(path) if path.exists() else None


def _score_name(key: str) -> str:
    metric, _, filter_name = key.partition(",")
    error = "_stderr" if metric.endswith("_stderr") else ""
    return score_name(f"{metric.removesuffix('_stderr')},{filter_name}") + error


def read_run(run_dir: str | Path) -> RunRecord:
    """The record of a run folder. Raises UserError where it is none, or its summary says too little.

    The variant is what its recipe.yaml holds, by the names of today: a name may have meant another design
    when the run was trained. A run that says `running` and that nobody trains has the status `dead`.
    """
    folder = Path(run_dir)
    summary = read_summary(folder)
    if "status" in summary:
        summary["status"] = status_now(folder, summary)
    if (folder / "recipe.yaml").is_file():
        model = read_recipe(folder).get("model") or {}
        design = {key: model[key] for key in DESIGN_KEYS if key in model}
        summary["variant"] = variant_name(GPTConfig(**design))
    missing = [key for key in REQUIRED_KEYS if not isinstance(summary.get(key), str)]
    if missing:
        raise UserError(f"{folder / 'summary.json'} is no run's summary: it lacks {' and '.join(missing)}")
    return RunRecord(folder, summary)


def read_runs(run_dirs: Iterable[str | Path]) -> list[RunRecord]:
    """The records in the order given, a folder given twice only once. Raises UserError as `read_run` does."""
    return [read_run(folder) for folder in dict.fromkeys(Path(run_dir) for run_dir in run_dirs)]
