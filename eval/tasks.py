"""The tasks by name, on the hub's data, on local files, or on the embedded sample.

The protocol's six tasks and arc_challenge are lm-eval's own, read from the Hugging Face hub. With
`--eval_data DIR` the same tasks, under the same names, read local files with the hub's fields, one folder per
data set, plain or gzipped (`.gz`):

    DIR/wikitext2/test_document_level.jsonl            page
    DIR/lambada_openai/lambada_test.jsonl              text
    DIR/arc_easy/test.jsonl                            question, choices, answerKey
    DIR/arc_challenge/test.jsonl                       question, choices, answerKey
    DIR/hellaswag/validation.jsonl                     activity_label, ctx_a, ctx_b, endings, label
    DIR/piqa/validation.jsonl                          goal, sol1, sol2, label
    DIR/winogrande/winogrande_xl_validation.jsonl      sentence, option1, option2, answer

Two more need neither hub nor folder; they read the held-out documents of the embedded sample (`data.sample`):
`sample_documents` is their perplexity, `sample_lastword` the last word of a passage, as in LAMBADA.

The tasks of `scoring.windows` read the data of `wikitext` and `lambada_openai`, or the run's validation set.
"""

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model.errors import UserError
from training.config.evaluation import KNOWN_TASKS, PUBLISHED_VALIDATION, check_names

from .checks.items import check_items, count_items, read_items
from .harness.tasks import expand, load_defined, set_fewshot, tasks_within

if TYPE_CHECKING:
    import datasets
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

    from .scoring.windows import WindowTask


@dataclass(frozen=True)
class TaskSet:
    """Where a public task's definition and its local data lie."""

    definition: str
    """lm-eval's own YAML file, below lm_eval/tasks."""
    file: str
    """The data, below `--eval_data`."""
    split: str
    """The split that is scored."""


TASK_SETS = {
    "wikitext": TaskSet("wikitext/wikitext.yaml", "wikitext2/test_document_level.jsonl", "test"),
    "lambada_openai": TaskSet("lambada/lambada_openai.yaml", "lambada_openai/lambada_test.jsonl", "test"),
    "arc_easy": TaskSet("arc/arc_easy.yaml", "arc_easy/test.jsonl", "test"),
    "hellaswag": TaskSet("hellaswag/hellaswag.yaml", "hellaswag/validation.jsonl", "validation"),
    "piqa": TaskSet("piqa/piqa.yaml", "piqa/validation.jsonl", "validation"),
    "winogrande": TaskSet(
        "winogrande/default.yaml", "winogrande/winogrande_xl_validation.jsonl", "validation"
    ),
    "arc_challenge": TaskSet("arc/arc_challenge.yaml", "arc_challenge/test.jsonl", "test"),
}


class TextSet(NamedTuple):
    """What a task of text windows reads."""

    task: str
    """The public task whose data it is."""
    column: str


TEXT_SETS = {
    "wikitext2_windows": TextSet("wikitext", "page"),
    "lambada_windows": TextSet("lambada_openai", "text"),
}

_DOCUMENT_PERPLEXITY = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    # The column's name, not a template: lm-eval would evaluate a rendered "[...]" as Python.
    "doc_to_target": "text",
    "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    "metadata": {"version": 1.0},
}


def local_file(name: str, data_dir: str | Path) -> Path:
    """The file that a public task reads below `data_dir`. Raises UserError where it is missing."""
    if not Path(data_dir).is_dir():
        raise UserError(f"there is no folder {data_dir} to read evaluation sets from")
    plain = Path(data_dir, TASK_SETS[_public_task(name)].file)
    for file in (plain, plain.with_name(plain.name + ".gz")):
        if file.is_file():
            return file.resolve()
    raise UserError(f"task '{name}' reads {plain} (or {plain.name}.gz), which does not exist")


def check_tasks(
    names: Iterable[str],
    data_dir: str | Path | None,
    include_path: str | None = None,
    num_fewshot: int | None = None,
) -> None:
    """What can be said about a choice of tasks without reading data: the names, the files of `data_dir`, and
    whether these have enough items for solved examples.

    Raises UserError.
    """
    names = tuple(names)
    check_names(names, include_path)
    for name in names:
        if data_dir is None or not reads_local_files(name):
            continue
        file = local_file(name, data_dir)
        if num_fewshot and name in TASK_SETS and (count := count_items(file)) <= num_fewshot:
            raise UserError(
                f"eval.num_fewshot is {num_fewshot}, but {file} holds {count} item(s), and an item is shown "
                "others than itself: set it lower"
            )


def reads_local_files(name: str) -> bool:
    """Whether a task reads `--eval_data` where it is given."""
    return _public_task(name) in TASK_SETS


def _public_task(name: str) -> str:
    """The public task whose data a task reads: mostly itself."""
    return TEXT_SETS[name].task if name in TEXT_SETS else name


def load_tasks(
    names: Iterable[str],
    data_dir: str | Path | None,
    run_dir: Path | None = None,
    *,
    include_path: str | None = None,
    num_fewshot: int | None = None,
) -> "dict[str, Task | WindowTask | Group]":
    """lm-eval's task objects, and those of `scoring.windows`, with their data read, in the order of `names`.

    Args:
        names: of the tasks; a group gives its tasks, and itself after them.
        data_dir: local evaluation sets for the tasks that have some; None for the hub's.
        run_dir: whose validation set `published_validation` scores.
        include_path: a folder of YAML tasks beside lm-eval's.
        num_fewshot: solved examples before each item; None for each task's own number.

    Raises UserError for an unknown name, for a file that is missing or cannot be read and for an item that
    cannot be scored, ConnectionError where the hub is needed and cannot be reached.
    """
    # Imported here: the recipe is checked against the names above without lm-eval's seconds of imports.
    from datasets.exceptions import DatasetGenerationError
    from lm_eval.tasks import TaskManager

    check_tasks(names := expand(names, include_path), data_dir, include_path)
    # Without lm-eval's index of all its tasks, which takes seconds to build.
    manager = TaskManager(include_defaults=False)
    tasks: dict[str, Task | WindowTask | Group] = {}
    for name in names:
        if name not in KNOWN_TASKS:
            local = _read_locally(name, data_dir, include_path)
            tasks |= load_defined(name, include_path, num_fewshot, local)
            continue
        if name == PUBLISHED_VALIDATION:
            from .scoring.windows import published_validation

            assert run_dir is not None
            tasks[name] = published_validation(name, run_dir)
            continue
        config = _task_config(_public_task(name), data_dir)
        files = _files_of(config)
        try:
            _check_items(name, config)  # lm-eval would end while it scores
            if name in TEXT_SETS:
                tasks[name] = _in_windows(name, config)
            else:
                tasks[name] = manager.load([config])["tasks"][name]
                set_fewshot(tasks[name], num_fewshot)
        except DatasetGenerationError as error:
            where = ", ".join(files) or "the hub's data"
            raise UserError(f"task '{name}' cannot read {where}: {_first_line(error)}") from error
        except OSError as error:
            if files:
                raise
            raise ConnectionError(
                f"task '{name}' cannot be had from the Hugging Face hub ({_first_line(error)}): "
                "--eval_data DIR reads local evaluation sets"
            ) from error
    return tasks


def _read_locally(
    name: str, data_dir: str | Path | None, include_path: str | None
) -> dict[str, dict[str, Any]]:
    """By task, what to read of the tasks in a group that have local files, once their items are checked."""
    members = () if data_dir is None else tasks_within(name, include_path)
    configs = {task: _task_config(task, data_dir) for task in members if task in TASK_SETS}
    for task, config in configs.items():
        _check_items(task, config)
    return configs


def _check_items(name: str, config: dict[str, Any]) -> None:
    """Raises UserError, and for the hub's data what `datasets` raises."""
    lines = [Path(file) for file in _files_of(config) if not file.endswith(".parquet")]
    check_items(name, read_items(name, *lines) if lines else enumerate(_rows(config), 1), _where(config))


def _in_windows(name: str, config: dict[str, Any]) -> "WindowTask":
    """A task of text windows on the data of a public task. Raises what `datasets` raises."""
    from .scoring.windows import TextWindows

    return TextWindows(name, "\n".join(_rows(config)[TEXT_SETS[name].column]), _where(config))


def _rows(config: dict[str, Any]) -> "datasets.Dataset":
    """The split that a task scores, as `datasets` reads it."""
    import datasets

    return datasets.load_dataset(
        config["dataset_path"],
        config.get("dataset_name"),
        split=config.get("test_split") or config["validation_split"],  # as lm-eval chooses
        **config.get("dataset_kwargs", {}),
    )


def _where(config: dict[str, Any]) -> str:
    """The file or the hub's data set that a task reads."""
    return ", ".join(_files_of(config)) or config["dataset_path"]


def _task_config(name: str, data_dir: str | Path | None) -> dict[str, Any]:
    if name in TASK_SETS:
        task_set = TASK_SETS[name]
        definition = _definition(task_set.definition)
        return (
            definition
            if data_dir is None
            else definition | _read_from(task_set.split, local_file(name, data_dir))
        )

    from data.sample.build import SAMPLE_DIR, build_sample

    sample = build_sample(SAMPLE_DIR)
    if name == "sample_documents":
        source = _read_from("test", sample / "validation.parquet")
        return {"task": name, "num_fewshot": 0} | _DOCUMENT_PERPLEXITY | source
    lambada = _definition(TASK_SETS["lambada_openai"].definition)
    return lambada | {"task": name} | _read_from("test", sample / "lastword.jsonl")


def _definition(file: str) -> dict[str, Any]:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(Path(lm_eval.tasks.__file__).parent / file)


def _read_from(split: str, file: Path) -> dict[str, Any]:
    """The keys of a task's definition that make it read one local file as its only split."""
    splits = dict.fromkeys(("training_split", "validation_split", "test_split")) | {f"{split}_split": split}
    return splits | {
        "dataset_path": "parquet" if file.suffix == ".parquet" else "json",
        "dataset_name": None,
        # `datasets` takes a path for a pattern
        "dataset_kwargs": {"data_files": {split: glob.escape(str(file))}},
    }


def _files_of(config: dict[str, Any]) -> list[str]:
    """The paths of the local files that a task reads; none where it reads the hub's."""
    escaped = config.get("dataset_kwargs", {}).get("data_files", {}).values()
    return [re.sub(r"\[([*?[])\]", r"\1", path) for path in escaped]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
