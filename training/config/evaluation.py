"""The recipe's `eval` section, and the names of the tasks that there are."""

import fnmatch
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from model.errors import UserError, did_you_mean
from model.values import FROM_0, FROM_1, check_ranges

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
RANGES = {"limit": FROM_1, "num_fewshot": FROM_0}
"""Of EvalConfig's numbers."""
KNOWN_TASKS = (*PUBLIC_TASKS, *SAMPLE_TASKS, *TEXT_WINDOW_TASKS, PUBLISHED_VALIDATION)


@cache
def names_in_definitions(include_path: str | None) -> frozenset[str]:
    """Every name that lm-eval's definitions and those of a folder use for tasks, groups and tags.

    Read as text, so that a mistaken name is refused without lm-eval's seconds of imports. A few of them are
    no tasks of their own.
    """
    lm_eval = importlib.util.find_spec("lm_eval")
    assert lm_eval and lm_eval.submodule_search_locations
    roots = [Path(lm_eval.submodule_search_locations[0]) / "tasks"]
    if include_path is not None:
        roots.append(Path(include_path))
    names: set[str] = set()
    for root in roots:
        for file in root.rglob("*"):
            if file.suffix in ("", ".yaml") and file.is_file():
                names.update(_NAME_IN_YAML.findall(file.read_text(encoding="utf-8", errors="replace")))
    return frozenset(names)


_NAME_IN_YAML = re.compile(
    r"""^[ ]*(?:-[ ]+)?(?:['"]?(?:task|group|tag)['"]?[ ]*:[ ]*|(?<=-[ ]))  # a key, or an item of a list
        ['"]?([^\s'"\[\]{}:\#]+)['"]?[ ]*(?:\#.*)?$""",
    re.MULTILINE | re.VERBOSE,
)


def is_pattern(name: str) -> bool:
    """Whether a task's name stands for all that match it, as `mmlu_*` does."""
    return any(sign in name for sign in "*?[")


def check_names(names: Iterable[str], include_path: str | None = None) -> None:
    """Raise UserError, with the nearest task, where a name is neither in KNOWN_TASKS nor in lm-eval's tasks.

    Args:
        names: of tasks, groups and tags, or patterns of them.
        include_path: a folder of definitions beside lm-eval's.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"eval.include_path is '{include_path}', which is no folder: name one of YAML tasks")
    for name in names:
        if not fnmatch.filter(KNOWN_TASKS, name):
            defined = names_in_definitions(include_path)
            if not fnmatch.filter(defined, name):
                raise unknown_task(name, defined)


def unknown_task(name: str, defined: Iterable[str]) -> UserError:
    """What is said of a name or pattern that no task has."""
    if is_pattern(name):
        return UserError(f"no task matches '{name}': `lm-eval ls tasks` lists lm-eval's names")
    hint = did_you_mean(name, KNOWN_TASKS, cutoff=0.5) or did_you_mean(name, sorted(defined))
    known = ", ".join(KNOWN_TASKS)
    return UserError(f"there is no task '{name}'{hint}; known are {known} and what `lm-eval ls tasks` lists")


@dataclass(frozen=True)
class EvalConfig:
    """What an evaluation job scores, and when.

    Attributes:
        tasks: names of the tasks, the protocol's six unless given; any task, group or pattern of lm-eval's
        data_dir: folder of local evaluation sets, laid out as eval/tasks.py says; null reads the hub's
        limit: score only the first items of each task, this many (windows of the window tasks, batches of
            `published_validation`); null scores all
        sample_text: prompts that are continued at each validation, into the log and samples.jsonl
        include_path: folder of YAML tasks of your own, beside lm-eval's; null has none
        num_fewshot: solved examples before each item, for tasks whose definition does not fix them at 0;
            null leaves each task its own number
        after_training: whether the run's last checkpoint is scored when training ends, by the same processes;
            `python -m eval` scores any run later
    """

    tasks: tuple[str, ...] = PROTOCOL_TASKS
    data_dir: str | None = None
    limit: int | None = None
    sample_text: tuple[str, ...] = ()
    include_path: str | None = None
    num_fewshot: int | None = None
    after_training: bool = True

    def __post_init__(self) -> None:
        check_names(self.tasks, self.include_path)
        check_ranges("eval", self, RANGES)
