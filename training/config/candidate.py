"""`CONFIG_OVERRIDES`: the rates that a candidate file brings, as the published benchmark lets it."""

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from model import design_files, module_literal
from model.errors import UserError, did_you_mean
from model.values import FROM_0, Range

from .deepspeed import DeepSpeedConfig, set_key
from .recipe import Recipe

NAME = "CONFIG_OVERRIDES"
STANDS_FOR = {
    "learning_rate": "ds.optimizer.params.lr",
    "weight_decay": "ds.optimizer.params.weight_decay",
    "grad_clip": "ds.gradient_clipping",
    "warmup_iters": "schedule.warmup",
    "min_lr": "schedule.floor",
}
"""What a candidate may set, and the key that holds it here. `schedule.floor` is `min_lr` over the peak."""


@dataclass(frozen=True)
class Overrides:
    """What a run's candidate brings, and what became of it.

    Attributes:
        given: as its file says it, by the file's names
        applied: those of them that the run has
        instead_of: what it would have had in their place; None where neither recipe nor JSON says
    """

    given: Mapping[str, float] = field(default_factory=dict)
    applied: Mapping[str, float] = field(default_factory=dict)
    instead_of: Mapping[str, float | None] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What summary.json says of them: nothing where the candidate brings none."""
        return {"candidate_overrides": asdict(self)} if self.given else {}

    def sentences(self) -> list[str]:
        """What is said of them before the first step."""
        said = [
            f"the candidate's {NAME}: {name} {value:g} ({STANDS_FOR[name]}) in place of "
            f"{_in_words(self.instead_of[name])}"
            for name, value in self.applied.items()
        ]
        ignored = [f"{name} {value:g}" for name, value in self.given.items() if name not in self.applied]
        return said + ([f"the candidate's {NAME} is not followed in {', '.join(ignored)}"] if ignored else [])


def with_overrides(
    recipe: Recipe, deepspeed: DeepSpeedConfig, command_line: Collection[str]
) -> tuple[Recipe, DeepSpeedConfig, Overrides]:
    """Recipe and engine with the rates of the candidate's own, as `train.candidate_overrides` says.

    Args:
        recipe: as resolved without them.
        deepspeed: the engine without them.
        command_line: the keys that it sets, which are stronger.

    Raises UserError for overrides that cannot be, or that the recipe refuses.
    """
    given = read_overrides(design_files(recipe.model).values())
    mode = recipe.train.candidate_overrides
    if given and mode == "refuse":
        raise UserError(
            f"the candidate brings a {NAME} ({', '.join(given)}), and train.candidate_overrides is refuse: "
            "give apply, or ignore to train it at the recipe's rates"
        )
    own = {
        name: value
        for name, value in given.items()
        if mode == "apply" and STANDS_FOR[name] not in command_line
    }
    if "learning_rate" in own and {"muon_lr", "adam_lr"} & deepspeed.optimizer_params.keys():
        raise UserError(
            f"{NAME} sets learning_rate, but {deepspeed.source} sets muon_lr or adam_lr, which decide alone: "
            "give --train.candidate_overrides ignore"
        )
    params, schedule = deepspeed.optimizer_params, recipe.schedule
    before: dict[str, float | None] = {
        "learning_rate": deepspeed.peak_lr,
        "weight_decay": params.get("weight_decay"),
        "grad_clip": deepspeed.raw.get("gradient_clipping"),
        "warmup_iters": schedule.warmup_steps,
        "min_lr": schedule.floor * deepspeed.peak_lr,
    }
    raw = copy.deepcopy(dict(deepspeed.raw))
    for name, value in own.items():
        if STANDS_FOR[name].startswith("ds."):
            set_key(raw, STANDS_FOR[name].removeprefix("ds."), value)
    deepspeed = replace(deepspeed, raw=raw)
    if "min_lr" in own:
        if own["min_lr"] > deepspeed.peak_lr:
            raise UserError(f"{NAME} sets min_lr to {own['min_lr']:g}, above the peak {deepspeed.peak_lr:g}")
        schedule = replace(schedule, floor=own["min_lr"] / deepspeed.peak_lr)
    if "warmup_iters" in own:
        schedule = replace(schedule, warmup=int(own["warmup_iters"]))
    # A recipe that is run again from the run folder has the values in it, whoever set them.
    beaten = mode == "apply" and len(own) < len(given)
    train = replace(recipe.train, candidate_overrides="ignore") if beaten else recipe.train
    overrides = Overrides(given, own, {name: before[name] for name in own})
    return replace(recipe, schedule=schedule, train=train), deepspeed, overrides


def read_overrides(files: Iterable[Path]) -> dict[str, float]:
    """What the files' `CONFIG_OVERRIDES` hold; they are read, never run.

    Raises UserError for a name that no candidate may set, a value that cannot be, or two files that differ.
    """
    found: dict[str, float] = {}
    for path in dict.fromkeys(files):
        values = module_literal(path, NAME)
        if values is None:
            continue
        if not isinstance(values, dict):
            raise UserError(f"{path}: {NAME} is {values!r}, but it must be a dict")
        for name, value in values.items():
            _check(path, name, value)
            if found.setdefault(name, value) != value:
                raise UserError(f"{path}: {NAME} sets {name} to {value:g}, another file to {found[name]:g}")
    return found


def _check(path: Path, name: Any, value: Any) -> None:
    if name not in STANDS_FOR:
        raise UserError(
            f"{path}: {NAME} sets {name!r}, which a candidate may not{did_you_mean(str(name), STANDS_FOR)}: "
            f"it may set {', '.join(STANDS_FOR)}"
        )
    bounds = Range(above=0) if name == "learning_rate" else FROM_0
    if not bounds.holds(value):
        raise UserError(f"{path}: {NAME} sets {name} to {value!r}, but it must be a number {bounds}")
    if name == "warmup_iters" and value != int(value):
        raise UserError(f"{path}: {NAME} sets warmup_iters to {value!r}, but it must be whole steps")


def _in_words(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
