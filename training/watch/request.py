"""A request to stop, as ranks tell each other of it."""

from typing import NamedTuple

from model.errors import FAILED


class Request(NamedTuple):
    """Who asked a run to stop.

    Attributes:
        reason: as the beginning of a sentence, such as `SIGTERM was received`.
        exit_status: how the run ends then: INTERRUPTED where it is saved first, FAILED where it cannot go on.
    """

    reason: str
    exit_status: int

    @property
    def is_failure(self) -> bool:
        return self.exit_status == FAILED

    def of_rank(self, rank: int) -> "Request":
        """As other ranks say it; a failure names its place itself."""
        is_named = self.is_failure or " by rank " in self.reason
        return self if is_named else self._replace(reason=f"{self.reason} by rank {rank}")
