"""lm-eval's own tasks, and those of a folder of YAML files, by name, group, tag and pattern."""

import fnmatch
import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.errors import UserError
from training.config.evaluation import KNOWN_TASKS, is_pattern, unknown_task

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry

FEWSHOT_SEED = 1234
"""Of the draws of solved examples: lm-eval's own."""


def expand(names: Iterable[str], include_path: str | None) -> tuple[str, ...]:
    """The names of tasks and groups that names, tags and patterns stand for, each once, in their order.

    A pattern stands for the tasks that match it, or where none does for the groups. Raises UserError for a
    name that is unknown, a pattern that matches none, and a YAML file that cannot be loaded.
    """
    expanded: dict[str, None] = {}
    for name in names:
        expanded |= dict.fromkeys([name] if name in KNOWN_TASKS else _members(name, include_path))
    return tuple(expanded)


def _members(name: str, include_path: str | None) -> list[str]:
    manager = task_manager(name, include_path)
    if is_pattern(name):
        tasks = [*KNOWN_TASKS, *(task for task in manager.all_subtasks if task not in KNOWN_TASKS)]
        found = fnmatch.filter(tasks, name) or fnmatch.filter(manager.all_groups, name)
    elif name in manager.all_tags:
        found = sorted(manager.task_index[name].tags)
    else:
        found = [name] if name in manager.task_index else []
    if not found:
        raise unknown_task(name, manager.all_tasks)
    return found


def task_manager(name: str, include_path: str | None) -> "TaskManager":
    """lm-eval's index of its tasks and a folder's, which takes seconds to build; or the folder's alone, where
    it defines the task or group and all that this is made of.

    Raises UserError where a YAML file of the folder cannot be loaded, or has the name of another task.
    """
    if include_path is not None and _is_whole(name, own := _index(include_path, False)):
        return own
    return _index(include_path, True)


@cache
def _index(include_path: str | None, include_defaults: bool) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        _check_definitions(Path(include_path))
    return TaskManager(include_path=include_path, include_defaults=include_defaults)


def _is_whole(name: object, manager: "TaskManager") -> bool:
    if name in manager.all_subtasks:
        return True
    if not isinstance(name, str) or name not in manager.all_groups:
        return False
    members = (manager.task_index[name].cfg or {}).get("task")
    return isinstance(members, list) and all(_is_whole(member, manager) for member in members)


def _check_definitions(folder: Path) -> None:
    """lm-eval leaves out a file that it cannot read. Raises UserError."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.yaml")):
        try:
            definition = load_yaml(file, resolve_func=False)
        except Exception as error:  # whatever YAML or an include of the file ends in
            problem = _in_one_line(error)
            raise UserError(f"{file} cannot be read as a task: {problem}: mend the file") from error
        name = definition.get("group") or definition.get("task")
        if not isinstance(name, str):
            continue  # what other files include
        if name in KNOWN_TASKS or name in found:
            other = f"of {found[name]}" if name in found else "here"
            raise UserError(f"{file} defines '{name}', but a task {other} has that name: rename it")
        found[name] = file


def definitions_fingerprint(include_path: str | None) -> str | None:
    """A hash of a folder's definitions and their code; None without a folder."""
    if include_path is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(include_path).rglob("*")):
        if file.suffix in ("", ".yaml", ".py") and file.is_file():
            digest.update(f"{file.relative_to(include_path)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def tasks_within(name: str, include_path: str | None) -> list[str]:
    """The tasks that a name stands for: those of a group and of the groups in it, or itself."""
    if name in KNOWN_TASKS:
        return [name]
    return list(dict.fromkeys(_within(name, task_manager(name, include_path).task_index)))


def _within(member: object, index: "Mapping[str, Entry]") -> Iterator[str]:
    name = (member.get("group") or member.get("task")) if isinstance(member, dict) else member
    entry = index.get(name) if isinstance(name, str) else None
    if entry is None:
        parts = member.get("task") if isinstance(member, dict) else None  # a group within a group's file
    elif entry.cfg is None:
        parts = sorted(entry.tags)
    else:
        parts = entry.cfg.get("task")
    if isinstance(parts, list):
        for part in parts:
            yield from _within(part, index)
    elif isinstance(name, str):
        yield name


def load_defined(
    name: str,
    include_path: str | None,
    num_fewshot: int | None,
    instead: Mapping[str, Mapping[str, Any]] | None = None,
) -> "dict[str, Task | Group]":
    """A task, or a group's tasks and after them the groups, inner ones first, with their data read.

    Args:
        name: of the task or group.
        include_path: a folder of definitions beside lm-eval's.
        num_fewshot: solved examples before each item; None for each task's own number.
        instead: definitions by task, in place of lm-eval's.

    Raises UserError where one cannot be loaded or scored here, ConnectionError without the hub.
    """
    from datasets.exceptions import DataFilesNotFoundError

    manager = task_manager(name, include_path)
    for task_name in tasks_within(name, include_path):
        entry = manager.task_index.get(task_name)
        if entry and (entry.cfg or {}).get("unsafe_code"):  # its file runs some as it is loaded
            raise _runs_code(task_name)
    # As lm-eval does: some definitions shuffle the choices, by Python's or NumPy's own generator.
    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    try:
        with _definitions_replaced(manager.task_index, instead or {}):
            loaded = manager.load([name])
    except OSError as error:
        if isinstance(error, DataFilesNotFoundError) or type(error) is FileNotFoundError:
            raise UserError(f"task '{name}' cannot be loaded: {_in_one_line(error)}") from error
        raise ConnectionError(
            f"task '{name}' cannot be had from the Hugging Face hub ({_in_one_line(error)}): "
            "--include_path DIR takes YAML tasks that read local files"
        ) from error
    except Exception as error:  # a definition may end in anything: a missing key, package or column
        raise UserError(
            f"task '{name}' cannot be loaded: {type(error).__name__}: {_in_one_line(error)}"
        ) from error
    groups = loaded.get("groups", {})
    for task_name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise _runs_code(task_name)
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"task '{task_name}' shows pictures or sound, and the model reads text only")
        set_fewshot(task, num_fewshot)
    return loaded["tasks"] | dict(sorted(groups.items(), key=lambda group: len(group[1].get_all_groups())))


@contextmanager
def _definitions_replaced(
    index: "dict[str, Entry]", instead: Mapping[str, Mapping[str, Any]]
) -> Iterator[None]:
    before = {name: index[name] for name in instead}
    for name, definition in instead.items():
        index[name] = replace(index[name], yaml_path=None, cfg=dict(definition))
    try:
        yield
    finally:
        index.update(before)


def _runs_code(task: str) -> UserError:
    return UserError(f"task '{task}' runs code that the model writes, which is not done here: leave it out")


def set_fewshot(task: "Task", num_fewshot: int | None) -> None:
    """As lm-eval does: a number replaces the task's own unless that is fixed at 0; None leaves it."""
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def takes_fewshot(task: object, num_fewshot: int | None) -> bool:
    """Whether a task has as many solved examples as were asked for; true of a group, whose tasks say it."""
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

    if not num_fewshot or isinstance(task, Group):
        return True
    rolling = "loglikelihood_rolling"  # which scores documents, and shows none before
    return (
        isinstance(task, Task)
        and rolling != task.OUTPUT_TYPE
        and (task.get_config("num_fewshot") == num_fewshot)
    )


def group_results(group: "Group", stored: Mapping[str, Any]) -> dict[str, Any]:
    """A group's means over its tasks, by lm-eval's weights, from the stored results of these.

    Returns what `write_results` takes.
    """
    of_tasks = {
        name: stored["results"][name] | {"sample_len": stored["n-samples"][name]["effective"]}
        for name in (task.task_name for task in group.get_all_tasks())
    }
    scores = {key: value for key, value in group.aggregate(of_tasks).items() if key != "sample_len"}
    counts = [stored["n-samples"][name] for name in of_tasks]
    by_name: dict[str, Any] = {
        "results": scores,
        "group_subtasks": group.child_names,
        "versions": group.version,
        "n-samples": {key: sum(count[key] for count in counts) for key in ("original", "effective")},
    }
    if group.has_aggregation:
        by_name["groups"] = scores
    others = {key: value for key, value in stored.items() if key not in ("samples", "normlab")}
    return others | {key: {group.name: value} for key, value in by_name.items()} | {"samples": {}}


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
