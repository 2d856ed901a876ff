"""The requests of all tasks, made and tokenised before the first task is scored."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from data import Tokenizer
from model.errors import UserError

from ..windows import PublishedValidation, TextWindows, WindowTask

if TYPE_CHECKING:
    from lm_eval.api.task import Task


def check_requests(
    tasks: "Mapping[str, Task | WindowTask]", tokenizer: Tokenizer, block_size: int, limit: int | None
) -> None:
    """Make what a model will be asked, so that no task ends after others were scored.

    Args:
        tasks: as `load_tasks` gives them.
        tokenizer: of the model.
        block_size: of the model.
        limit: only the first items of each task.

    Raises UserError for a task with too little text, or a text that cannot be tokenised.
    """
    for name, task in tasks.items():
        try:
            if isinstance(task, TextWindows | PublishedValidation):
                task.windows(tokenizer, block_size)
                continue
            task.build_all_requests(limit=limit)
            for request in task.instances:
                for text in request.args:
                    tokenizer.encode(text)
        except UserError as error:
            raise UserError(f"task '{name}': {error}") from error
