"""What the ranks of an evaluation do together: one does it for all, or all do it, and none goes on alone."""

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from model.errors import UserError

if TYPE_CHECKING:
    from training.engine.ranks import Ranks

LOOK_EVERY_S = 0.05
Done = TypeVar("Done")
_Problem = tuple[bool, str]
"""Whether the user or the machine is to blame, and the sentence."""
_count = itertools.count()


def by_rank_0(ranks: "Ranks | None", work: Callable[[], Done]) -> Done:
    """What `work` returns on rank 0, which alone does it, on all ranks, which all call this.

    The others wait without a time limit: rank 0 may wait for another process. An error of rank 0 is raised by
    all: a UserError where it was one or an OSError, else a RuntimeError.

    Args:
        ranks: None where there is one process and no process group.
        work: what it returns is small and can be pickled.
    """
    if ranks is None or ranks.world_size == 1:
        return work()
    from torch.distributed.distributed_c10d import _get_default_store

    store, key = _get_default_store(), f"normlab evaluation {next(_count)}"
    done: Done | None = None
    error: Exception | None = None
    if ranks.rank == 0:
        try:
            done = work()
        except Exception as raised:
            error = raised
        store.set(key, "done")
    while not store.check([key]):  # which fails where rank 0 is gone
        time.sleep(LOOK_EVERY_S)
    done, problem = ranks.broadcast((done, _problem(error)))
    if error:
        raise error
    if problem:
        raise _raised(problem)
    return done  # type: ignore[return-value]


def on_all(ranks: "Ranks | None", work: Callable[[], Done]) -> Done:
    """What `work` returns on this rank, once it ended well on all of them, which all call this.

    Where it failed on one, all raise: that rank its own error, the others what `by_rank_0` says.
    """
    if ranks is None or ranks.world_size == 1:
        return work()
    import torch.distributed as dist

    done: Done | None = None
    error: Exception | None = None
    try:
        done = work()
    except Exception as raised:
        error = raised
    problems: list[_Problem | None] = [None] * ranks.world_size
    dist.all_gather_object(problems, _problem(error))
    if error:
        raise error
    for problem in filter(None, problems):
        raise _raised(problem)
    return done  # type: ignore[return-value]


def _problem(error: Exception | None) -> _Problem | None:
    if error is None:
        return None
    if isinstance(error, UserError | OSError):
        return True, str(error)
    return False, in_one_line(error)


def _raised(problem: _Problem) -> Exception:
    is_a_users, sentence = problem
    return UserError(sentence) if is_a_users else RuntimeError(f"another rank failed: {sentence}")


def in_one_line(error: BaseException) -> str:
    """An exception's class and first line; of a UserError or an OSError the line alone."""
    lines = str(error).strip().splitlines()
    if isinstance(error, UserError | OSError) and lines:
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
