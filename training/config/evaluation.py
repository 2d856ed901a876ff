"""The recipe's `eval` section, and the names of the tasks that there are."""

from collections.abc import Iterable
from dataclasses import dataclass

from model.errors import UserError, did_you_mean
from model.values import FROM_1, check_ranges

PROTOCOL_TASKS = ("wikitext", "lambada_openai", "arc_easy", "hellaswag", "piqa", "winogrande")
"""What the protocol compares variants on."""
PUBLIC_TASKS = (*PROTOCOL_TASKS, "arc_challenge")
"""lm-eval's own, which read the hub or local files."""
SAMPLE_TASKS = ("sample_documents", "sample_lastword")
"""On the held-out documents of the embedded sample."""
TEXT_WINDOW_TASKS = ("wikitext2_windows", "lambada_windows")
"""The same data as `wikitext` and `lambada_openai`, by the token, as the benchmark publishes it."""
PUBLISHED_VALIDATION = "published_validation"
"""Random windows of the run's own validation tokens."""
RANGES = {"limit": FROM_1}
"""Of EvalConfig's numbers."""
KNOWN_TASKS = (*PUBLIC_TASKS, *SAMPLE_TASKS, *TEXT_WINDOW_TASKS, PUBLISHED_VALIDATION)


def check_names(names: Iterable[str]) -> None:
    """Raise UserError, with the nearest task and all of them, where a name is not in KNOWN_TASKS."""
    for name in names:
        if name not in KNOWN_TASKS:
            raise UserError(
                f"there is no task '{name}'{did_you_mean(name, KNOWN_TASKS, cutoff=0.5)}; known are "
                f"{', '.join(KNOWN_TASKS)}"
            )


@dataclass(frozen=True)
class EvalConfig:
    """What an evaluation job scores.

    Attributes:
        tasks: names of the tasks, the protocol's six unless given
        data_dir: folder of local evaluation sets, laid out as eval/tasks.py says; null reads the hub's
        limit: score only the first items of each task, this many (windows of the window tasks, batches of
            `published_validation`); null scores all
        sample_text: prompts that are continued at each validation, into the log and samples.jsonl
    """

    tasks: tuple[str, ...] = PROTOCOL_TASKS
    data_dir: str | None = None
    limit: int | None = None
    sample_text: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_names(self.tasks)
        check_ranges("eval", self, RANGES)
