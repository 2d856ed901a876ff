"""One checkpoint, evaluated: the tasks that have no results yet, its slices, and what is said of them."""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from training.config.evaluation import KNOWN_TASKS, EvalConfig
from training.run.reader import evaluation_folder
from training.run.tokenizer import read_tokenizer, tokenizer_note

from ..given import load_given, score_validation
from ..harness.tasks import expand, group_results, takes_fewshot, tasks_within
from ..result_files import check_limit, format_table, results_file, stored_results, write_results
from ..tasks import load_tasks, reads_local_files
from ..tracked.late import log_late
from .job import Job
from .locks import take_turns, writing
from .together import by_rank_0, on_all

if TYPE_CHECKING:
    from lm_eval.api.group import Group

    from data import Tokenizer
    from model import GPT
    from training.engine.ranks import Ranks
    from training.run.console import Console


def evaluate_model(job: Job, console: "Console", ranks: "Ranks | None" = None) -> None:
    """`score_model`, and send the results to W&B, for which rank 0 alone waits."""
    score_model(job, console, ranks)
    if ranks is None or ranks.rank == 0:
        log_late(job.out, job.step, console.say)


def score_model(job: Job, console: "Console", ranks: "Ranks | None" = None) -> None:
    """Score the model on the tasks that have no results yet, and say the results of all.

    Args:
        job: what is scored.
        console: of this rank.
        ranks: who evaluates; all of them call it. None for this process alone.

    Raises UserError or OSError for what cannot be scored, on all ranks where it is so on one.
    """
    config, loaded = job.config, None
    if note := tokenizer_note(job.like):
        console.say(note)
    by_rank_0(ranks, lambda: check_limit(job.out, job.step, config.limit))  # there may be more results by now
    if job.is_given:
        loaded = given = on_all(ranks, lambda: load(job))
        by_rank_0(ranks, lambda: score_validation(*given, job.source, job.like, job.out, console))
    if job.slices:
        from ..slices.losses import write_slices

        loaded = sliced = loaded or on_all(ranks, lambda: load(job))
        by_rank_0(ranks, lambda: write_slices(sliced[0], job.step, job.like, job.out, console))
    if config.tasks:
        score_missing(job, loaded, console, ranks)


def score_missing(
    job: Job, loaded: "tuple[GPT, Tokenizer] | None", console: "Console", ranks: "Ranks | None"
) -> None:
    """Score the tasks that have no results yet, and say those of all. Raises as `score_model`."""
    config = job.config
    names = on_all(ranks, lambda: expand(config.tasks, config.include_path))
    stored = by_rank_0(ranks, lambda: [name for name in names if _is_stored(job, name)])
    if missing := tuple(name for name in names if name not in stored):
        console.say(f"reading {sources(missing, config)}")
        score(job, missing, loaded, console, ranks)
    console.say(by_rank_0(ranks, lambda: format_table(stored_results(job.out, job.step, config), names)))
    console.say(f"results in {results_file(job.out, job.step)}")


def sources(names: Iterable[str], config: EvalConfig) -> str:
    """Tasks, and where their items come from, in words; a group may have them from two places."""
    found: dict[str, list[str]] = {}
    for name in names:
        for task in tasks_within(name, config.include_path):
            if config.data_dir is not None and reads_local_files(task):
                place = config.data_dir
            elif task in KNOWN_TASKS:
                place = "the hub or the sample"
            else:
                place = "where their definitions say"
            found.setdefault(place, []).append(name)
    return "; ".join(f"{', '.join(dict.fromkeys(tasks))} from {place}" for place, tasks in found.items())


def load(job: Job) -> "tuple[GPT, Tokenizer]":
    """The model, where it is to run, and its tokenizer."""
    import torch

    from training.engine.weights import load_model

    if job.is_given:
        gpt, tokenizer = load_given(job.source, job.like)
    else:
        gpt, tokenizer = load_model(job.source, job.step)[0], read_tokenizer(job.source)
    return gpt.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def score(
    job: Job,
    names: tuple[str, ...],
    loaded: "tuple[GPT, Tokenizer] | None",
    console: "Console",
    ranks: "Ranks | None" = None,
) -> None:
    """Score the model on these tasks; each one's results are on disk before the next begins.

    What is wrong with a task's items or requests is said before any is scored. A task that another process
    scores meanwhile is waited for.
    """
    from lm_eval.api.group import Group

    from ..checks.requests import check_requests
    from ..jobs import run_tasks
    from ..scoring.kept import Keep, model_fingerprint
    from ..scoring.shared_contexts import why_not_shared

    config = job.config
    tasks = on_all(
        ranks,
        lambda: load_tasks(
            names,
            config.data_dir,
            job.like,
            include_path=config.include_path,
            num_fewshot=config.num_fewshot,
        ),
    )
    stored = by_rank_0(ranks, lambda: [name for name in tasks if _is_stored(job, name)])
    tasks = {name: task for name, task in tasks.items() if name not in stored}  # of a group
    if fixed := [name for name, task in tasks.items() if not takes_fewshot(task, config.num_fewshot)]:
        console.say(f"eval.num_fewshot does nothing for {', '.join(fixed)}: they show no examples")
    gpt, tokenizer = loaded or on_all(ranks, lambda: load(job))
    on_all(ranks, lambda: check_requests(tasks, tokenizer, gpt.config.block_size, config.limit))
    console.say(f"scoring {job.name} on {next(gpt.parameters()).device}")
    if reason := on_all(ranks, lambda: why_not_shared(gpt)):
        console.say(f"contexts are computed again for each of an item's choices: {reason}")

    answers = evaluation_folder(job.out, job.step) / "answers"
    keep = Keep(answers, on_all(ranks, lambda: model_fingerprint(gpt, tokenizer)), console.say)
    groups = [task for task in tasks.values() if isinstance(task, Group)]
    single = {name: task for name, task in tasks.items() if not isinstance(task, Group)}
    turns = take_turns(job.out, job.step, single, partial(_is_stored, job), console.say)
    while (name := by_rank_0(ranks, lambda: next(turns, None))) is not None:
        of_task = {name: single[name]}
        run = partial(run_tasks, gpt, tokenizer, of_task, limit=config.limit, bar=console.bar, keep=keep)
        by_rank_0(ranks, partial(_write, job, on_all(ranks, run)))
        by_rank_0(ranks, partial(keep.forget, name))
    for group in groups:
        by_rank_0(ranks, partial(_write_group, job, group))


def _is_stored(job: Job, name: str) -> bool:
    return name in stored_results(job.out, job.step, job.config)["results"]


def _write(job: Job, results: dict[str, Any]) -> None:
    with writing(job.out, job.step):
        check_limit(job.out, job.step, job.config.limit)
        write_results(job.out, job.step, results, job.config)


def _write_group(job: Job, group: "Group") -> None:
    _write(job, group_results(group, stored_results(job.out, job.step, job.config)))
