"""A run before it starts: the recipe's sections, and what the command line makes of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data import DataConfig, open_tokenizer
from model import GPT, PRESETS, VARIANTS, GPTConfig, variant_name
from model.catalogue import DESIGN_KEYS
from model.designs import designs_of_file

from ..engine.ranks import rank_from_environment, world_size_from_environment
from ..run.folder import RunFolder
from ..run.tracking import TrackingConfig
from ..schedule import ScheduleConfig
from .command import Command, Shorthand, parse_command
from .ds_config import load_ds_config, precision
from .evaluation import EvalConfig


@dataclass(frozen=True)
class TrainConfig:
    """The run: how long, from which initial weights, and what is saved when.

    Attributes:
        steps: optimizer steps
        init_seed: draws the initial weights (and dropout); data.seed orders the documents
        val_every: steps between validations; one always follows the last step
        checkpoint_every: steps between checkpoints; one always follows the last step
        keep_checkpoints: how many of the newest stay, beside the one with the best validation loss
        max_skipped_steps: so many steps in a row with gradients that are not finite end the run as diverged
        preflight: whether the design is checked before the run begins; --skip_preflight sets it to false
        compile: whether torch.compile compiles the blocks; it changes numbers by rounding only
        profile_steps: steps to profile, counted from this start; --profile sets it to 3, 4 and 5
    """

    steps: int = 200
    init_seed: int = 1
    val_every: int = 50
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    max_skipped_steps: int = 10
    preflight: bool = True
    compile: bool = True
    profile_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "val_every", "checkpoint_every", "keep_checkpoints", "max_skipped_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it must be at least 1")
        if any(step < 1 for step in self.profile_steps):
            raise ValueError(f"train.profile_steps is {list(self.profile_steps)}: steps count from 1")


@dataclass(frozen=True)
class Recipe:
    """A run but for the engine, which the DeepSpeed JSON describes."""

    model: GPTConfig
    data: DataConfig
    train: TrainConfig
    schedule: ScheduleConfig
    eval: EvalConfig
    tracking: TrackingConfig

    def __post_init__(self) -> None:
        needed = open_tokenizer(self.data.tokenizer).vocab_size
        if self.model.vocab_size < needed:
            raise ValueError(
                f"model.vocab_size is {self.model.vocab_size}: data.tokenizer {self.data.tokenizer} needs at "
                f"least {needed}"
            )

    @property
    def variant(self) -> str:
        """The name that this recipe's results carry."""
        return variant_name(self.model)

    def facts(self, ds_config: dict[str, Any]) -> dict[str, Any]:
        """What summary.json says of a run before anything is built."""
        shape, data = self.model, self.data
        return {
            "variant": self.variant,
            "precision": precision(ds_config),
            "model": f"{shape.n_layer}L {shape.n_head}H {shape.n_embd}d",
            "block_size": shape.block_size,
            "init_seed": self.train.init_seed,
            "data_seed": data.seed,
            "tokenizer": data.tokenizer,
            "packing": f"{data.packing} masked" if data.document_mask else data.packing,
            "steps": self.train.steps,
            "tokens_per_step": ds_config["train_batch_size"] * shape.block_size,
        }


SECTIONS: dict[str, type] = {
    "model": GPTConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "schedule": ScheduleConfig,
    "eval": EvalConfig,
    "tracking": TrackingConfig,
}


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
SWITCHES = {
    "--skip_preflight": "--train.preflight=false",
    "--profile": "--train.profile_steps=[3, 4, 5]",
}
"""Options without a value, and what each stands for."""
VOCAB_MULTIPLE = 64
"""The embedding has the tokenizer's vocabulary rounded up to a multiple of this: GPT-2's 50257 to 50304."""
# What may change when a run goes on: none of it enters a step's numbers.
FREE_TO_CHANGE = {
    "train.steps",
    "train.val_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_skipped_steps",
    "train.preflight",
    "train.profile_steps",
    "data.workers",
    "data.prefetch",
    "data.cache_dir",
    "data.on_bad_document",
    "eval",
    "tracking",
    # the same global batch from another number of ranks; ds.train_batch_size is not free
    "ds.checkpoint.load_universal",
    "ds.train_micro_batch_size_per_gpu",
    "ds.gradient_accumulation_steps",
}


def recipe_of(argv: list[str]) -> tuple[Command, Recipe]:
    """The command line as it was given, and the recipe that it makes.

    Raises ValueError or OSError, one sentence each.
    """
    command = parse_command(
        [SWITCHES.get(word, word) for word in argv],
        SECTIONS,
        SHORTHANDS,
        description="Train one GPT-2 variant and score it on the fixed validation set.",
    )
    sections = command.recipe
    if "model.vocab_size" not in command.given:
        rows = -(-open_tokenizer(sections["data"].tokenizer).vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        sections["model"] = replace(sections["model"], vocab_size=rows)
    recipe = Recipe(**sections)
    if recipe.schedule.steps is None:
        recipe = replace(recipe, schedule=replace(recipe.schedule, steps=recipe.train.steps))
    return command, recipe


def resolve(argv: list[str]) -> tuple[Recipe, dict[str, Any], RunFolder]:
    """Recipe, DeepSpeed config and run folder from the command line; nothing is built or written.

    Raises ValueError or OSError, one sentence each.
    """
    command, recipe = recipe_of(argv)
    # Small, so that a design that cannot be built says so now.
    gpt = GPT(replace(recipe.model, n_embd=8 * recipe.model.n_head, block_size=8, vocab_size=64))
    if recipe.data.document_mask:
        gpt.check_document_mask()
    ds_config = load_ds_config(command.deepspeed_config, command.ds_overrides, world_size_from_environment())
    name = f"{command.recipe_file.stem}_{recipe.variant}_seed{recipe.train.init_seed}"
    run = RunFolder(command.run_dir or Path("runs", re.sub(r"[^\w.+-]", "-", name)), rank_from_environment())
    run.check_same_run(vars(recipe), ds_config, FREE_TO_CHANGE)
    return recipe, ds_config, run
