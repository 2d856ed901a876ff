"""The loop's calls for a checkpoint: on its way, and where it ends."""

from typing import TYPE_CHECKING

from ..state import TrainState
from ..watch.failures import record_fault
from .writing import Checkpoints

if TYPE_CHECKING:
    from ..feed import Feed
    from ..run.reporter import Reporter
    from ..watch.stop import StopRequest


def save(checkpoints: Checkpoints, state: TrainState, report: "Reporter", stop: "StopRequest") -> int:
    """Have a checkpoint written of where the run stands. All ranks call it. Returns its step."""
    with report.phase("checkpoint"), stop.phase("checkpoint"):
        state.wall_time_s = report.wall_time_s()
        checkpoints.save(state)
    return state.step


def save_last(
    checkpoints: Checkpoints,
    feed: "Feed",
    state: TrainState,
    saved: int,
    diverged: bool,
    report: "Reporter",
    stop: "StopRequest",
) -> str | None:
    """Have all be saved where the loop has ended, and wait until it is. All ranks call it.

    Args:
        checkpoints: writes them.
        feed: this rank's, whose data may have ended.
        state: where the run stands.
        saved: the step of the latest checkpoint.
        diverged: whether this is no state to go on from.
        report: is told, and has the run's folder, which keeps whose fault it was.
        stop: why the loop ended, where it was asked to.

    Returns why the run has failed, where a rank could not go on or the disk is full.
    """
    request, failure = stop.of_all_ranks(), feed.error_of_any_rank()
    last = state.step == report.recipe.train.steps
    if request and request.is_failure:
        failure = request.reason
    elif state.step != saved and not diverged and checkpoints.are_due(state, last=last, stop=True):
        save(checkpoints, state, report, stop)
    with stop.phase("checkpoint"):
        failure = checkpoints.wait() or failure
        if failure:
            record_fault(report.folder, feed.cause or checkpoints.cause, failure)
    stop.progress.enter("end")
    return failure
