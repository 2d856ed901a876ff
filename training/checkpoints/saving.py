"""The loop's call for a checkpoint."""

from typing import TYPE_CHECKING

from ..state import TrainState
from .writing import Checkpoints

if TYPE_CHECKING:
    from ..run.reporter import Reporter
    from ..watch.stop import StopRequest


def save(checkpoints: Checkpoints, state: TrainState, report: "Reporter", stop: "StopRequest") -> int:
    """Have a checkpoint written of where the run stands. All ranks call it. Returns its step."""
    with report.phase("checkpoint"), stop.phase("checkpoint"):
        state.wall_time_s = report.wall_time_s()
        checkpoints.save(state)
    return state.step
