"""Several evaluations, one after another: one that fails is said, and the others go on."""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import REFUSED, UserError

from .checkpoints import is_there
from .evaluation import evaluate_model
from .job import Job
from .together import by_rank_0, in_one_line

if TYPE_CHECKING:
    from training.engine.ranks import Ranks
    from training.run.console import Console


def log_file(folder: Path, rank: int) -> Path:
    """What libraries print while models are scored into this folder, and the traceback of what fails."""
    return folder / "logs" / ("eval.log" if rank == 0 else f"eval_rank{rank}.log")


def evaluate_each(
    jobs: Iterator[Job], console: "Console", ranks: "Ranks | None" = None, alone: bool = False
) -> int:
    """Score one model after another. Returns the exit status: 0, or 2 where one could not be scored.

    A checkpoint that training has removed since is passed over, and said.

    Args:
        jobs: made as they are asked for, on rank 0.
        console: of this rank; its log is that of the job's run.
        ranks: who evaluates; all of them call it. None for this process alone.
        alone: whether there is one job, whose own sentence says enough.

    Raises what is neither a UserError nor an OSError where a job is alone, or on several ranks, of which
    others may not know it.
    """
    failed, count = [], 0
    while (job := by_rank_0(ranks, lambda: next(jobs, None))) is not None:
        console.log_to(log_file(job.out, ranks.rank if ranks else 0))
        if not by_rank_0(ranks, lambda: job.is_given or is_there(job.source, job.step)):
            console.say(f"{job.name} is left out: its checkpoint was removed")
            continue
        count += 1
        if not alone:
            console.say(f"{job.name}:")
        try:
            evaluate_model(job, console, ranks)
        except Exception as error:
            is_known = isinstance(error, UserError | OSError)
            if not is_known and ranks and ranks.world_size > 1:
                raise
            if not by_rank_0(ranks, lambda: job.is_given or is_there(job.source, job.step)):
                console.say(f"{job.name} is left out: its checkpoint was removed")
                continue
            if alone and not is_known:
                raise
            traceback.print_exc()
            sentence = in_one_line(error)
            console.fail(error if alone else f"{job.name} cannot be scored: {sentence}")
            failed.append(job.name)
    if failed and not alone:
        console.say(f"{count - len(failed)} of {count} were scored, but not {', '.join(failed)}")
    return REFUSED if failed else 0
