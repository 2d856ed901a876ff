"""What a run folder says: its summary, its metrics, its task scores and its validation losses by document."""

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

REQUIRED_KEYS = ("status", "variant")


@dataclass(frozen=True)
class Run:
    """One run folder. The summary is read at once, everything larger when it is first asked for."""

    folder: Path
    summary: dict[str, Any]

    @property
    def val_loss(self) -> float:
        """Final validation loss in nats a token; NaN where the run has none."""
        return self._finite("val_loss")

    @property
    def val_bits_per_byte(self) -> float:
        """The same loss in bits a byte of text; NaN where the run has none."""
        return self._finite("val_bits_per_byte")

    def _finite(self, key: str) -> float:
        value = self.summary.get(key)
        return value if value is not None and math.isfinite(value) else math.nan

    @property
    def tokenizer(self) -> str:
        """`data.tokenizer`; runs from before there was a choice have GPT-2's."""
        return self.summary.get("tokenizer", "gpt2")

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """metrics.jsonl, one row a line; without repeats of a step and without a last line cut by a kill."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                if number < len(lines):
                    raise ValueError(f"{path} line {number} is not JSON.") from None
        table = pd.DataFrame(records, columns=None if records else ["kind", "step"])
        return table.drop_duplicates(["kind", "step"], keep="last")

    @property
    def train(self) -> pd.DataFrame:
        """Training by step: tokens, loss (nats a token, NaN if skipped), grad_norm, lr, tokens_per_s."""
        return self._kind("train", ("step", "tokens", "loss", "grad_norm", "lr", "tokens_per_s"))

    @property
    def val(self) -> pd.DataFrame:
        """Validation by step: tokens trained so far, loss in nats a token, bits_per_byte (NaN if unknown)."""
        return self._kind("val", ("step", "tokens", "loss", "bits_per_byte"))

    def _kind(self, kind: str, columns: tuple[str, ...]) -> pd.DataFrame:
        rows = self.metrics[self.metrics["kind"] == kind].reindex(columns=list(columns))
        return rows.apply(pd.to_numeric).sort_values("step", ignore_index=True)

    @cached_property
    def evaluated_step(self) -> int | None:
        """The last step whose checkpoint went through the lm-eval tasks."""
        steps = [_step(path.parent) for path in self.folder.glob("eval/step_*/results.json")]
        return max((step for step in steps if step is not None), default=None)

    @cached_property
    def results(self) -> dict[str, Any]:
        """lm-eval's results of the last evaluated step, as written; empty where no task has run."""
        return {} if self.evaluated_step is None else _read_json(self._evaluation("results.json"))

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Task scores of the last evaluated step, {task: {metric: value}}, without lm-eval's suffix `,none`.

        Standard errors are there as `acc_stderr`; strings ("N/A", aliases) and non-finite values are not.
        """
        return {
            task: {
                key.removesuffix(",none"): float(value)
                for key, value in entries.items()
                if key.endswith(",none") and isinstance(value, int | float) and math.isfinite(value)
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
    def items(self) -> pd.DataFrame | None:
        """Scores by item at the last evaluated step: task, doc_id, metric, value; None where not kept."""
        if self.evaluated_step is None or not self._evaluation("per_item.parquet").exists():
            return None
        return pd.read_parquet(self._evaluation("per_item.parquet"))

    @cached_property
    def documents(self) -> pd.DataFrame | None:
        """The final validation: document, tokens, bytes, loss (nats, sum over its tokens); None if not kept.

        Older runs have no bytes.
        """
        path = self.folder / "eval" / f"step_{self.summary.get('step') or 0:08d}" / "validation.parquet"
        return pd.read_parquet(path) if path.exists() else None

    def _evaluation(self, file_name: str) -> Path:
        return self.folder / "eval" / f"step_{self.evaluated_step:08d}" / file_name


def load_run(run_dir: str | Path) -> Run:
    """Open a run folder; a folder that is none gets one sentence that says what is missing."""
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give a run folder, one that holds summary.json.")
    if not (folder / "summary.json").exists():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no summary.json.")
    summary = _read_json(folder / "summary.json")
    missing = [key for key in REQUIRED_KEYS if not isinstance(summary.get(key), str)]
    if missing:
        raise ValueError(f"{folder / 'summary.json'} is no run's summary: it lacks {' and '.join(missing)}.")
    return Run(folder, summary)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is not valid JSON.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object.")
    return content


def _step(folder: Path) -> int | None:
    match = re.fullmatch(r"step_(\d{8,})", folder.name)
    return int(match.group(1)) if match else None
