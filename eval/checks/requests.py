"""The requests of all tasks, made and tokenised before the first task is scored."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from data import Tokenizer
from model.errors import UserError

from ..scoring.windows import PublishedValidation, TextWindows, WindowTask

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task


def check_requests(
    tasks: "Mapping[str, Task | WindowTask | Group]", tokenizer: Tokenizer, block_size: int, limit: int | None
) -> None:
    """Make what a model will be asked, so that no task ends after others were scored.

    Args:
        tasks: as `load_tasks` gives them.
        tokenizer: of the model.
        block_size: of the model.
        limit: only the first items of each task.

    Raises UserError for a task with too little text, a text that cannot be tokenised, an item that its
    definition makes no request of, and a way to generate text that cannot be followed.
    """
    from lm_eval.api.task import Task

    for name, task in tasks.items():
        try:
            if isinstance(task, TextWindows | PublishedValidation):
                task.windows(tokenizer, block_size)
            elif isinstance(task, Task):
                _check_task(task, tokenizer, block_size, limit)
        except UserError as error:
            raise UserError(f"task '{name}': {error}") from error


def _check_task(task: "Task", tokenizer: Tokenizer, block_size: int, limit: int | None) -> None:
    from ..harness.generation import Decoding

    try:
        task.build_all_requests(limit=limit)
    except UserError:
        raise
    except Exception as error:  # a template or a function of the definition, on an item that lacks something
        raise UserError(
            f"its definition makes no request of an item: {type(error).__name__}: {error}"
        ) from error
    if not task.instances:
        raise UserError("it has no item to score")
    for request in task.instances:
        is_text = request.request_type == "generate_until"
        if is_text:
            Decoding.of(request.args[1], block_size)
        for text in request.args[:1] if is_text else request.args:
            tokenizer.encode(text)
