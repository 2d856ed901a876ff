"""The columns of the scorecard: known tasks have titles, any other task its names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from training.config.evaluation import KNOWN_TASKS, PUBLISHED_VALIDATION


@dataclass(frozen=True)
class Metric:
    """One column of the scorecard.

    Attributes:
        name: in csv and json.
        title: in tables.
        unit: of its values, which are shown in percent where lm-eval gives a fraction.
        task: the task whose results hold it; empty for the validation losses.
        key: lm-eval's name for it there.
    """

    name: str
    title: str
    unit: str
    task: str = ""
    key: str = ""


VAL_LOSS = Metric("val_loss", "val loss", "nats/token")
VAL_BITS = Metric("val_bits_per_byte", "val bits/byte", "bits/byte")
TASK_METRICS = (
    Metric("published_val_loss", "published val loss", "nats/token", PUBLISHED_VALIDATION, "loss"),
    Metric("wikitext_ppl", "WikiText-2 ppl", "perplexity", "wikitext", "word_perplexity"),
    Metric("wikitext_bits", "WikiText-2 bits/byte", "bits/byte", "wikitext", "bits_per_byte"),
    Metric("lambada_ppl", "LAMBADA ppl", "perplexity", "lambada_openai", "perplexity"),
    Metric(
        "wikitext_windows_ppl",
        "WikiText-2 windows ppl",
        "perplexity",
        "wikitext2_windows",
        "token_perplexity",
    ),
    Metric("lambada_windows_ppl", "LAMBADA windows ppl", "perplexity", "lambada_windows", "token_perplexity"),
    Metric("arc_easy_acc", "ARC-Easy %", "percent", "arc_easy", "acc"),
    Metric("arc_easy_acc_norm", "ARC-Easy norm %", "percent", "arc_easy", "acc_norm"),
    Metric("arc_challenge_acc", "ARC-Challenge %", "percent", "arc_challenge", "acc"),
    Metric("arc_challenge_acc_norm", "ARC-Challenge norm %", "percent", "arc_challenge", "acc_norm"),
    Metric("hellaswag_acc", "HellaSwag %", "percent", "hellaswag", "acc"),
    Metric("hellaswag_acc_norm", "HellaSwag norm %", "percent", "hellaswag", "acc_norm"),
    Metric("piqa_acc", "PIQA %", "percent", "piqa", "acc"),
    Metric("piqa_acc_norm", "PIQA norm %", "percent", "piqa", "acc_norm"),
    Metric("winogrande_acc", "WinoGrande %", "percent", "winogrande", "acc"),
    Metric("sample_documents_ppl", "sample docs ppl", "perplexity", "sample_documents", "word_perplexity"),
    Metric(
        "sample_documents_bits", "sample docs bits/byte", "bits/byte", "sample_documents", "bits_per_byte"
    ),
    Metric("sample_lastword_ppl", "sample last-word ppl", "perplexity", "sample_lastword", "perplexity"),
    Metric("sample_lastword_acc", "sample last-word %", "percent", "sample_lastword", "acc"),
)
"""Of the tasks here, in the scorecard's order: of accuracies `acc`, and `acc_norm` where a task has it."""
METRICS = (VAL_LOSS, VAL_BITS, *TASK_METRICS)
FRACTIONS = ("acc", "acc_norm", "acc_mutual_info", "exact_match")
"""Metrics of any task that lm-eval gives as a share of the items."""


def other_metrics(scores: Iterable[Mapping[str, Mapping[str, float]]]) -> tuple[Metric, ...]:
    """What other tasks than those here have been scored by, in the order of their names.

    Args:
        scores: of each run {task: {metric: value}}, as `RunRecord` has them.
    """
    found = {
        (task, key)
        for of_run in scores
        for task, of_task in of_run.items()
        for key in of_task
        if task not in KNOWN_TASKS and not key.endswith("_stderr")
    }
    return tuple(_other(task, key) for task, key in sorted(found))


def _other(task: str, key: str) -> Metric:
    metric = key.partition(",")[0]
    if metric in FRACTIONS:
        return Metric(f"{task}_{key}", f"{task} {key} %", "percent", task, key)
    unit = "perplexity" if metric.endswith("perplexity") else metric.replace("bits_per_byte", "bits/byte")
    return Metric(f"{task}_{key}", f"{task} {key}", unit, task, key)
