"""The benchmark's published metrics: token losses over windows that do not overlap, or are drawn at random.

`wikitext2_windows` and `lambada_windows` are exp of the mean token loss over the whole text, all pages or
passages in one. It is cut into windows of `model.block_size` tokens that do not overlap: the first prediction
of a window has one token of context, the last has all of them, and every token but the text's first is
predicted once. The last window is shorter. Unlike lm-eval's, these perplexities are per token, and LAMBADA's
is not that of the last words.

How the documents are joined is not published. Here a newline joins them, which makes WikiText-2's raw file of
its pages.

`published_validation` is the validation loss as it was published: 200 batches of 96 windows drawn with
replacement, documents cut anywhere, no document mask. They are drawn from the run's own validation tokens,
and always alike, so that runs with one validation set and one block size have the same windows. It has a
sampling error, which `validation.parquet`, every token scored once, has not.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data import Tokenizer, ValidationSet, open_data
from model.errors import UserError
from training.run.reader import read_summary, section_of
from training.run.tokenizer import read_tokenizer

from .lm import NormLabLM

BATCHES, BATCH_SIZE, SEED = 200, 96, 42


@dataclass(frozen=True)
class TextWindows:
    """A text in windows that do not overlap.

    Attributes:
        name: of the task.
        text: all of its documents.
        where: the file or data set that it is from.
    """

    name: str
    text: str
    where: str

    metric = "token_perplexity"
    per_item = 1
    """Windows of one item of `--limit`."""

    def windows(self, tokenizer: Tokenizer, block_size: int) -> list[np.ndarray]:
        """Tokens of each window, up to (block_size + 1,): all but the first are predicted.

        Raises UserError for a text of less than two tokens.
        """
        tokens = tokenizer.encode(self.text)
        if len(tokens) < 2:
            raise UserError(f"{self.where} holds no text to score")
        return [tokens[start : start + block_size + 1] for start in range(0, len(tokens) - 1, block_size)]

    def scores(self, log_likelihoods: np.ndarray, counts: np.ndarray) -> dict[str, float | str]:
        """The perplexity of windows with these log-likelihoods in nats and numbers of predicted tokens."""
        return {"token_perplexity": math.exp(-log_likelihoods.sum() / counts.sum())}

    @property
    def fingerprint(self) -> str:
        """A hash of what is scored."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class PublishedValidation:
    """Random windows of validation tokens, `BATCHES` batches of `BATCH_SIZE`, the same in every run.

    Attributes:
        name: of the task.
        tokens: (N + 1,), as a `ValidationSet` has them.
        fingerprint: a hash of them.
        where: what they are.
    """

    name: str
    tokens: np.ndarray
    fingerprint: str
    where: str = "the run's validation set"

    metric = "loss"
    per_item = BATCH_SIZE

    def windows(self, tokenizer: Tokenizer, block_size: int) -> list[np.ndarray]:
        """Tokens of each window, (block_size + 1,): all but the first are predicted.

        Raises UserError where the validation set is shorter than one.
        """
        places = len(self.tokens) - block_size
        if places < 1:
            raise UserError(f"{self.where} has less than a window of {block_size + 1} tokens")
        starts = np.random.default_rng(SEED).integers(places, size=BATCHES * BATCH_SIZE)
        return [self.tokens[start : start + block_size + 1] for start in starts]

    def scores(self, log_likelihoods: np.ndarray, counts: np.ndarray) -> dict[str, float | str]:
        """The mean loss in nats per token and its standard error over batches."""
        losses = -(log_likelihoods / counts).reshape(-1, BATCH_SIZE).mean(axis=1)
        has_spread = len(losses) > 1
        error = float(losses.std(ddof=1) / math.sqrt(len(losses))) if has_spread else "N/A"
        return {"loss": float(losses.mean()), "loss_stderr": error}


WindowTask = TextWindows | PublishedValidation


def published_validation(name: str, run_dir: Path) -> PublishedValidation:
    """The task on a run's validation set, which is opened as the run did.

    Raises:
        UserError: the recipe's data does not give the validation set that the run was trained with.
        OSError: it cannot be reached.
    """
    validation = validation_set(run_dir)
    return PublishedValidation(name, validation.tokens, validation.fingerprint)


def validation_set(run_dir: Path) -> ValidationSet:
    """A run's validation set, opened as the run did. Raises as `published_validation`."""
    config = section_of(run_dir, "data")
    if file := read_tokenizer(run_dir).file:
        config = replace(config, tokenizer=str(file))
    _, validation = open_data(config)
    summary = read_summary(run_dir) if (run_dir / "summary.json").is_file() else {}
    if summary.get("val_fingerprint") not in (None, validation.fingerprint):
        raise UserError(
            f"the data of {run_dir / 'recipe.yaml'} has changed: its validation set is not the one that the "
            "run was validated on"
        )
    return validation


def score_windows(lm: NormLabLM, windows: Sequence[np.ndarray]) -> list[tuple[float, bool]]:
    """Of each window's tokens behind its first the log-likelihood in nats, and whether all are greedy."""
    pairs = [(window[:1].tolist(), window[1:].tolist()) for window in windows]
    return lm.score(pairs, unit=" windows")


def evaluate_windows(lm: NormLabLM, task: WindowTask, limit: int | None) -> dict[str, Any]:
    """A task's scores as lm-eval's `evaluate` gives them, with a sample for each window.

    Args:
        lm: the model.
        task: what to score.
        limit: only so many windows, or batches of them, from the first on.
    """
    block_size = lm.gpt.config.block_size
    windows = task.windows(lm.tokenizer, block_size)
    scored = windows if limit is None else windows[: limit * task.per_item]
    answers = score_windows(lm, scored)
    log_likelihoods = np.array([score for score, _ in answers])
    counts = np.array([len(window) - 1 for window in scored])
    samples = [
        {"doc_id": number, "metrics": [task.metric], task.metric: (answer[0], len(window) - 1)}
        | {"resps": [[answer]], "sizes": [(None, len(window) - 1)]}
        for number, (answer, window) in enumerate(zip(answers, scored, strict=True))
    ]
    scores = {f"{metric},none": value for metric, value in task.scores(log_likelihoods, counts).items()}
    config = {"task": task.name, "dataset_path": task.where, "output_type": "windows", "num_fewshot": 0}
    config |= {"block_size": block_size, "windows_per_item": task.per_item, "metadata": {"version": 1.0}}
    by_task = {
        "results": {"alias": task.name, **scores},
        "group_subtasks": [],
        "configs": config,
        "versions": 1.0,
        "n-shot": 0,
        "higher_is_better": {task.metric: False},
        "n-samples": {"original": len(windows), "effective": len(scored)},
        "samples": samples,
        "task_hashes": hashlib.sha256(f"{task.fingerprint} {block_size}".encode()).hexdigest(),
    }
    return {key: {task.name: value} for key, value in by_task.items()}
