"""What an evaluation is asked for: models, tasks and steps, checked before any is scored."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from training.config.evaluation import EvalConfig
from training.run.reader import is_model_folder, read_recipe

from ..given import STEP, check_given
from ..result_files import check_limit
from ..tasks import check_tasks
from .checkpoints import choose_steps


@dataclass(frozen=True)
class Job:
    """What is scored, and where the results go.

    Attributes:
        source: a run folder, or a model in Hugging Face's form.
        like: the run whose data, tokenizer and tasks are used: the source itself where it is a run.
        out: the folder that gets eval/step_*: the source unless --out names another.
        step: of the checkpoint.
        config: which tasks, on which items.
        slices: whether the validation loss is scored in slices too.
    """

    source: Path
    like: Path
    out: Path
    step: int
    config: EvalConfig
    slices: bool = False

    @property
    def is_given(self) -> bool:
        """Whether the weights are no run's."""
        return self.source != self.like

    @property
    def name(self) -> str:
        """What it scores, in words."""
        return str(self.source) if self.is_given else f"step {self.step} of {self.source}"


@dataclass(frozen=True)
class Request:
    """What is asked of one source: `step` is a number or one of `checkpoints.WORDS`, the rest as in `Job`."""

    source: Path
    like: Path
    out: Path
    step: int | str
    config: EvalConfig
    slices: bool

    def jobs(self) -> list[Job]:
        """A job for each checkpoint that is there now. Raises UserError as `choose_steps` does."""
        is_given = self.source != self.like
        steps = [STEP] if is_given else choose_steps(self.source, self.step)
        return [Job(self.source, self.like, self.out, step, self.config, self.slices) for step in steps]


def check(options: argparse.Namespace) -> list[Job]:
    """The jobs of a command, in their order. Raises UserError as `check_requests` and `choose_steps` do, and
    where results over more items would be lost."""
    jobs = [job for request in check_requests(options) for job in request.jobs()]
    for job in jobs:
        check_limit(job.out, job.step, job.config.limit)
    return jobs


def check_requests(options: argparse.Namespace) -> list[Request]:
    """What the command asks of each source: a recipe's eval section with the command line over it.

    Raises UserError for whatever can be said before a checkpoint is looked for.
    """
    if options.apply_chat_template:
        raise UserError(
            "--apply_chat_template needs a model that was trained on chats, and a pretrained one has no chat "
            "template: leave it out"
        )
    sources = list(dict.fromkeys(options.sources))
    if options.out and len(sources) > 1:
        raise UserError(f"--out {options.out} is a folder for one model, and {len(sources)} are given")
    return [_check_request(options, source) for source in sources]


def _check_request(options: argparse.Namespace, source: Path) -> Request:
    like, out = options.validation_like, options.out or source
    if is_model_folder(source):
        check_given(source, like, out, options.step)
        if options.watch:
            raise UserError(f"{source} is one model: --watch is for runs")
    elif like or options.out:
        given = "--validation_like" if like else "--out"
        read_recipe(source)
        raise UserError(f"{given} is for a model without a run, and {source} is a run: leave it out")
    else:
        like = source
    config = _config(options, read_recipe(like).get("eval") or {})
    check_tasks(config.tasks, config.data_dir, config.include_path, config.num_fewshot)
    return Request(source, like, out, options.step or "last", config, options.slices)


def _config(options: argparse.Namespace, section: dict[str, object]) -> EvalConfig:
    if options.tasks is not None:
        section["tasks"] = tuple(options.tasks.split(","))
    elif options.slices:
        section["tasks"] = ()
    if options.eval_data is not None:
        section["data_dir"] = options.eval_data
    for key in ("limit", "include_path", "num_fewshot"):
        if getattr(options, key) is not None:
            section[key] = getattr(options, key)
    if "tasks" in section:
        section["tasks"] = tuple(section["tasks"])  # type: ignore[arg-type]
    return EvalConfig(**section)  # type: ignore[arg-type]
