"""The recipe's `eval` section."""

from dataclasses import dataclass

from eval.tasks import PROTOCOL_TASKS, check_names


@dataclass(frozen=True)
class EvalConfig:
    """What an evaluation job scores.

    Attributes:
        tasks: names of the tasks, the protocol's six unless given
        data_dir: folder of local evaluation sets, laid out as eval/tasks.py says; null reads the hub's
        limit: score only the first items of each task, this many; null scores all
    """

    tasks: tuple[str, ...] = PROTOCOL_TASKS
    data_dir: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        check_names(self.tasks)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"eval.limit is {self.limit}: it must be at least 1, or null for all items")
