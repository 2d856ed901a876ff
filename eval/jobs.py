"""Evaluation jobs: lm-eval's tasks on a model."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cache, partial
from typing import Any

from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.loggers.utils import add_env_info, get_git_commit_hash
from lm_eval.utils import hash_string
from tqdm import tqdm

from data import Tokenizer
from model import GPT, variant_name
from model.errors import UserError

from .harness.tasks import FEWSHOT_SEED
from .result_files import merge_results
from .scoring.answers import Answers
from .scoring.kept import Keep
from .scoring.lm import NormLabLM
from .scoring.windows import PublishedValidation, TextWindows, WindowTask, evaluate_windows

BOOTSTRAP_ITERS = 1000
"""Resamples for the standard error of LAMBADA's perplexity; the other standard errors have closed forms."""


def run_tasks(
    gpt: GPT,
    tokenizer: Tokenizer,
    tasks: Mapping[str, Task | WindowTask],
    *,
    bar: Callable[..., tqdm],
    limit: int | None = None,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Score a model on tasks as `load_tasks` gives them, one progress bar per task.

    Where there is a process group all of its ranks call it, share the work, and get the same results.

    Args:
        gpt: on the device it is to run on, in fp32 for results that others can compare with.
        tokenizer: the one that the model was trained with.
        bar: makes a progress bar from a title and tqdm's options, as `Console.bar` does.
        limit: score only the first items of each task.
        keep: where answers are kept, for a next call to go on from; None keeps none.

    Returns:
        What `lm_eval` returns: `results`, `configs`, `versions`, `n-shot`, `higher_is_better`, `n-samples`
        and `samples` by task, `config`, `date`, versions of the libraries. Beside lm-eval's keys a sample has
        `sizes`: of each of its requests the UTF-8 bytes (None where tokens are asked for) and the tokens that
        were scored; None for a request of a text.

    Raises UserError where a task has an answer of more tokens than the model's block_size.
    """
    # lm-eval would bootstrap in a pool of processes forked from this one, which may hold a GPU.
    os.environ["DISABLE_MULTIPROC"] = "1"
    tracker = GeneralConfigTracker()
    variant = variant_name(gpt.config)
    tracker.log_experiment_args("normlab", {"model": variant}, None, None, False)
    results: dict[str, Any] = {"date": time.time()}
    for name, task in tasks.items():
        answers = Answers(partial(bar, f"{name:<16}", unit_scale=False), name, keep)
        lm = NormLabLM(gpt, tokenizer, answers)
        try:
            task_results = _evaluate(lm, name, task, limit)
        except UserError as error:
            raise UserError(f"task '{name}': {error}") from error
        results = merge_results(results, task_results)
    tracker.log_end_time()
    parameter = next(gpt.parameters())
    results["config"] = {
        "model": "normlab",
        "model_args": asdict(gpt.config),
        "tokenizer": tokenizer.name,
        "model_num_parameters": gpt.num_parameters(),
        "model_dtype": str(parameter.dtype),
        "device": str(parameter.device),
        "limit": limit,
        "bootstrap_iters": BOOTSTRAP_ITERS,
    }
    return results | _environment() | asdict(tracker)


def _evaluate(lm: NormLabLM, name: str, task: Task | WindowTask, limit: int | None) -> dict[str, Any]:
    if isinstance(task, TextWindows | PublishedValidation):
        return evaluate_windows(lm, task, limit)
    # Its requests may have been made before, for a check: solved examples are drawn as at the first time.
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    results = evaluate(lm, {"tasks": {name: task}}, limit=limit, bootstrap_iters=BOOTSTRAP_ITERS)
    for sample in results["samples"][name]:
        sample["sizes"] = [
            lm.sizes.get(arguments) if all(isinstance(part, str) for part in arguments) else None
            for arguments in sample["arguments"]
        ]
    return results | {"task_hashes": {name: _task_hash(results["samples"][name])}}


def _task_hash(samples: Iterable[Mapping[str, str]]) -> str:
    """lm-eval's hash of a task's documents, prompts and targets: equal where two runs had the same items."""
    return hash_string("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))


@cache
def _environment() -> dict[str, Any]:
    environment: dict[str, Any] = {"git_hash": get_git_commit_hash()}
    add_env_info(environment)
    return environment
