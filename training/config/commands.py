"""What train.py and its relatives are given: a recipe, a DeepSpeed JSON, and what overrides either."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data import open_tokenizer
from model import DESIGN_KEYS, PRESETS, VARIANTS, designs_of_file
from model.errors import UserError

from ..engine.environment import (
    check_local_rank,
    check_timeout,
    rank_from_environment,
    world_size_from_environment,
)
from ..run.changes import check_same_run
from ..run.folder import RunFolder
from .candidate import Overrides, with_overrides
from .command_line import CommandLine, Option, Shorthand, existing_file
from .deepspeed import DeepSpeedConfig, read_deepspeed_config
from .recipe import FREE_TO_CHANGE, SECTIONS, Recipe
from .tracking import run_id_of_sweep

VOCAB_MULTIPLE = 64
"""The embedding has the tokenizer's vocabulary rounded up to a multiple of this: GPT-2's 50257 to 50304."""


def _of_model(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"model.{key}": value for key, value in values.items()}


SHORTHANDS = {
    "model.preset": Shorthand(
        {name: _of_model(shape) for name, shape in PRESETS.items()},
        help=f"one of {', '.join(PRESETS)}: sets n_layer, n_head and n_embd",
    ),
    "model.variant": Shorthand(
        {name: _of_model(variant.design) for name, variant in VARIANTS.items()},
        of_file=lambda path: _of_model(VARIANTS["vanilla"].design | designs_of_file(path)),
        help=f"one of `python -m model.catalogue`, or a file that defines LayerNorm, Block or Topology: sets "
        f"{', '.join(DESIGN_KEYS)}",
    ),
}
FILES = {
    "config": Option("the recipe: model, data, length, evaluation", "RECIPE.yaml"),
    "deepspeed_config": Option("the engine: batch sizes, precision, ZeRO, optimizer, clipping", "DS.json"),
}
TRAIN = CommandLine(
    prog="train.py",
    usage="deepspeed [--num_gpus N] train.py --config RECIPE.yaml --deepspeed_config DS.json "
    "[--run_dir DIR]\n                 [--section.key VALUE ...] [--ds.path.to.key VALUE ...]",
    description="Train one GPT-2 variant and score it on the fixed validation set.",
    sections=SECTIONS,
    shorthands=SHORTHANDS,
    options=FILES
    | {
        "run_dir": Option(
            "the run folder; a run that stopped there is resumed (default: under runs/)", "DIR"
        ),
        "restart": Option("begin again; the run that is there is kept in DIR/before_restart_1", None),
        "allow_recipe_change": Option("keys that may differ from the run that goes on", "KEY,KEY"),
        "explain": Option("print the whole run as it is resolved; nothing is trained, no data opened", None),
        "local_rank": Option("set by the launcher", "N"),
    },
    switches={
        "--skip_preflight": "--train.preflight=false",
        "--profile": "--train.profile_steps=[3, 4, 5]",
    },
    takes_deepspeed=True,
)


@dataclass(frozen=True)
class Request:
    """A recipe and a DeepSpeed JSON with what overrides them, as far as no tokenizer and no JSON is read.

    Attributes:
        recipe_file: of --config
        sections: the recipe's sections, overrides and shorthands applied
        keys: those that the recipe file or the command line sets
        command_line: those that the command line sets, `ds.` before those of the JSON
        deepspeed_file: of --deepspeed_config
        deepspeed_overrides: dotted path in it -> value as typed
        options: the command's own, by name
    """

    recipe_file: Path
    sections: Mapping[str, Any]
    keys: frozenset[str]
    command_line: frozenset[str]
    deepspeed_file: Path
    deepspeed_overrides: Mapping[str, str]
    options: Mapping[str, str]

    def recipe(self) -> Recipe:
        """The whole recipe, `model.vocab_size` and `schedule.steps` filled in where they were left out.

        It opens the tokenizer. Raises UserError or OSError.
        """
        sections = dict(self.sections)
        if "model.vocab_size" not in self.keys:
            needed = open_tokenizer(sections["data"].tokenizer).vocab_size
            rows = -(-needed // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
            sections["model"] = replace(sections["model"], vocab_size=rows)
        recipe = Recipe(**sections)
        if recipe.schedule.steps is None:
            recipe = replace(recipe, schedule=replace(recipe.schedule, steps=recipe.train.steps))
        return recipe


def read_request(command: CommandLine, argv: list[str]) -> Request:
    """The command line and the recipe that it names.

    Raises:
        UserError: one sentence about what was given and what is allowed.
        SystemExit: after `--help`, with status 0.
    """
    given = command.read(argv)
    for required in FILES:
        if required not in given.options:
            raise UserError(
                f"--{required} is missing: it takes a file, e.g. "
                "--config recipes/sample.yaml --deepspeed_config ds_configs/zero1_bf16_cpu.json"
            )
    recipe_file, deepspeed_file = (existing_file(name, given.options[name]) for name in FILES)
    sections, keys = command.build_sections(command.read_recipe(recipe_file), given.keys)
    command_line = frozenset({*given.keys, *(f"ds.{key}" for key in given.deepspeed)})
    return Request(recipe_file, sections, keys, command_line, deepspeed_file, given.deepspeed, given.options)


def resolve_command(
    argv: list[str], world_size: int | None = None
) -> tuple[Request, Recipe, DeepSpeedConfig, Overrides]:
    """train.py's command line for `world_size` ranks, or as many as there are, whatever its run folder holds.

    Gives what was asked for, the recipe, the engine, and what a candidate changed in them. Raises UserError,
    OSError or, after `--help`, SystemExit.
    """
    request = read_request(TRAIN, argv)
    if world_size is None:
        world_size = world_size_from_environment()
    deepspeed = read_deepspeed_config(request.deepspeed_file, request.deepspeed_overrides, world_size)
    return request, *with_overrides(request.recipe(), deepspeed, request.command_line)


def run_name(recipe_file: Path, recipe: Recipe) -> str:
    """What a run's folder is called where nobody names it."""
    return re.sub(r"[^\w.+-]", "-", f"{recipe_file.stem}_{recipe.variant}_seed{recipe.train.init_seed}")


def read_command(argv: list[str]) -> tuple[Recipe, DeepSpeedConfig, RunFolder, Overrides]:
    """train.py's command line: the recipe, the engine, the run folder, and what a candidate changed in them.

    Nothing is built or written.

    Neither torch nor DeepSpeed is imported, and what costs least is checked first. What they alone can check
    remains: `check_design` builds the design, `check_with_deepspeed` asks DeepSpeed's own classes.

    Raises:
        UserError, OSError: one sentence about what was given and what is allowed.
        SystemExit: after `--help`, with status 0.
    """
    request, recipe, deepspeed, overrides = resolve_command(argv)
    check_local_rank(request.options.get("local_rank"))
    check_timeout()
    name = run_name(request.recipe_file, recipe)
    if of_sweep := run_id_of_sweep():  # whose runs differ in anything
        name = f"{name}_{of_sweep}"
    path = request.options.get("run_dir") or Path("runs", name)
    # Slurm starts a job that it has stopped with the same words: that one goes on.
    is_requeued = (os.environ.get("SLURM_RESTART_COUNT") or "0") != "0"
    restarts = "restart" in request.options and not is_requeued
    run = RunFolder(Path(path), rank_from_environment(), restarts)
    listed = request.options.get("allow_recipe_change", "").split(",")
    allowed = [key for key in map(str.strip, listed) if key]
    follows = "schedule.steps" not in request.keys
    check_same_run(run, vars(recipe), deepspeed.raw, FREE_TO_CHANGE, allowed, follows)
    before = run.summary.get("wandb", {}) if run.has_begun() else {}
    recipe = replace(recipe, tracking=recipe.tracking.in_group(request.recipe_file.stem, before))
    return recipe, deepspeed, run, overrides
