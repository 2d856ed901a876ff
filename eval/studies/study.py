"""A study as its file says it, strictly read: designs, seeds, rates, sizes, and the rules of its verdicts."""

import json
import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from model import DESIGN_KEYS
from model.errors import UserError, did_you_mean
from model.values import FROM_0, FROM_1, Range, as_type, check_ranges, shown
from training.config.recipe_file import parse_yaml

RANGES = {
    "confidence": Range(above=0.5, below=1),
    "equivalent_within": Range(above=0),
    "gate": Range(at_least=-1, at_most=1),
    "most_seeds": Range(at_least=2, at_most=1000),
    "tries": FROM_1,
}
MULTIPLE = re.compile(r"(.+)x")
"""A rate as a multiple of the shared one: `0.5x`."""
SET_BY_STUDY = {
    "model.variant": "name designs under 'baseline' and 'variants'",
    "train.init_seed": "give 'seeds'",
    "train.candidate_overrides": "a candidate's own rates are one more rate of its own",
    **{f"model.{key}": "name designs under 'variants'" for key in DESIGN_KEYS},
}
"""Keys that neither `overrides` nor a size may set, and what to do instead."""
Keys = Mapping[str, str]
"""`section.key` of train.py's command line (`ds.` before those of the JSON) -> its value as it is typed."""


@dataclass(frozen=True)
class Rules:
    """How a study decides; they are fixed before its first run.

    Attributes:
        confidence: of every interval
        equivalent_within: nats per token; a difference that is shown to be smaller is no difference
        gate: nats per token; a design goes on to the next size where its difference is at most this
        sequential: whether seeds are added one by one until each design's answer is clear
        most_seeds: how many there are at most then
        tries: how often a run is started that ends with an error, before it counts as failed
    """

    confidence: float = 0.95
    equivalent_within: float = 0.003
    gate: float = 0.0
    sequential: bool = False
    most_seeds: int = 20
    tries: int = 2

    def __post_init__(self) -> None:
        check_ranges("rules", self, RANGES)


@dataclass(frozen=True)
class Study:
    """What a study's file holds.

    Attributes:
        recipe: the recipe of every run
        deepspeed_config: the engine of every run
        ranks: how many processes or GPUs train a run
        baseline: a name of the catalogue or a file
        variants: the designs that are judged beside it: names of the catalogue or files
        seeds: `train.init_seed` of the runs that are judged
        selection_seeds: those of the runs that choose each design's best rate
        rates: peak learning rates, or multiples of the shared one such as 2x; the shared one is among them
        sizes: name -> `section.key: value`, the smallest first; without it there is the recipe's own
        target: the size that smaller ones are to foretell: one of `sizes` (default: the last), or the keys of
            another, which this study does not train
        repeat_baseline: whether the baseline is also judged as a design of its own, from other first weights:
            its difference is noise, and passes every gate
        composite: parts of a design, name -> `section.key: value`: each is tried alone, and left out of all
        overrides: `section.key: value` for every run
        rules: how it decides
        evaluate: whether judged runs are scored on the recipe's tasks
        path: the file
    """

    recipe: str
    deepspeed_config: str
    seeds: tuple[int, ...]
    baseline: str = "vanilla"
    variants: tuple[str, ...] = ()
    ranks: int = 1
    selection_seeds: tuple[int, ...] = ()
    rates: tuple[str, ...] = ("1x",)
    sizes: Mapping[str, Keys] = field(default_factory=dict)
    target: str | Keys | None = None
    repeat_baseline: bool = False
    composite: Mapping[str, Keys] = field(default_factory=dict)
    overrides: Keys = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    evaluate: bool = False
    path: Path = Path("study.yaml")

    def __post_init__(self) -> None:
        check_ranges("study", self, {"ranks": FROM_1, "seeds": FROM_0, "selection_seeds": FROM_0})
        if not self.variants and not self.composite:
            raise UserError("'variants' is empty: name the designs that are judged beside the baseline")
        if not self.seeds:
            raise UserError("'seeds' is empty: give the seeds that are judged, such as [1, 2, 3]")
        for key in ("variants", "seeds", "selection_seeds", "rates"):
            _refuse_twice(key, getattr(self, key))
        if both := set(self.seeds) & set(self.selection_seeds):
            raise UserError(
                f"seed {min(both)} stands in 'seeds' and in 'selection_seeds': a rate is chosen on other "
                "runs than those that are judged"
            )
        if self.rules.sequential and len(self.seeds) > self.rules.most_seeds:
            raise UserError(f"'seeds' has {len(self.seeds)}, but rules.most_seeds is {self.rules.most_seeds}")
        for rate in self.rates:
            rate_of(rate)
        if len(self.rates) > 1 and not self.selection_seeds:
            raise UserError(
                "'selection_seeds' is missing: with several rates each design's best one is chosen on seeds "
                "of their own, such as [101, 102]"
            )
        for name, keys in self.composite.items():
            for key in keys:
                if not key.startswith("model."):
                    raise UserError(f"composite.{name} sets {key}, but a part of a design sets keys of model")
        for where, keys in (("overrides", self.overrides), *self._sizes()):
            for key in keys:
                if key in SET_BY_STUDY:
                    raise UserError(f"{where} sets {key}, which the study itself sets: {SET_BY_STUDY[key]}")
        if isinstance(self.target, str) and self.target not in self.sizes:
            hint = did_you_mean(self.target, self.sizes)
            raise UserError(f"'target' is '{self.target}', which is no size of the study{hint}")

    def _sizes(self) -> list[tuple[str, Keys]]:
        named = [(f"size {name}", keys) for name, keys in self.sizes.items()]
        if self.target is None or isinstance(self.target, str):
            return named
        return [*named, ("target", self.target)]

    @property
    def name(self) -> str:
        """Of the study, and of its folder."""
        return self.path.stem

    @property
    def ladder(self) -> Mapping[str, Keys]:
        """The sizes that are trained, the smallest first."""
        return self.sizes or {Path(self.recipe).stem: {}}

    @property
    def seeds_at_most(self) -> tuple[int, ...]:
        """The judged seeds, with those that a sequential study may add."""
        if not self.rules.sequential:
            return self.seeds
        taken, added = {*self.seeds, *self.selection_seeds}, list(self.seeds)
        seed = max(self.seeds)
        while len(added) < self.rules.most_seeds:
            seed += 1
            if seed not in taken:
                added.append(seed)
        return tuple(added)


def rate_of(text: str) -> tuple[float, bool]:
    """A rate's number, and whether it is a multiple of the shared rate. Raises UserError."""
    multiple = MULTIPLE.fullmatch(text)
    number = as_type("rates", multiple[1] if multiple else text, float)
    if not Range(above=0, at_most=1000).holds(number):
        raise UserError(f"rates has {text}, but a rate is a number above 0, or a multiple such as 2x")
    return number, bool(multiple)


def read_study(path: Path) -> Study:
    """The study in a file. Raises UserError or OSError with one sentence; nothing heavy is imported."""
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path("recipes/studies")
        known = [str(file) for file in sorted(folder.glob("*.yaml"))]
        raise UserError(f"there is no study {path}{did_you_mean(str(path), known)}")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, Mapping):
            raise UserError("holds no study: it must be a mapping: 'variants: [rmsnorm]'")
        return _study(content, path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _study(content: Mapping[str, Any], path: Path) -> Study:
    values = _known(content, Study, "the study", leave_out=("path",))
    found: dict[str, Any] = {"path": path}
    kinds = typing.get_type_hints(Study)
    for key, value in values.items():
        if key == "rules":
            rules = _known(_mapping("rules", value), Rules, "rules")
            of_rules = typing.get_type_hints(Rules)
            found[key] = Rules(
                **{name: as_type(f"rules.{name}", v, of_rules[name]) for name, v in rules.items()}
            )
        elif key in ("sizes", "composite"):
            found[key] = {
                _name(key, name): _keys(f"{key}.{name}", keys) for name, keys in _mapping(key, value).items()
            }
        elif key == "overrides" or (key == "target" and isinstance(value, Mapping)):
            found[key] = _keys(key, value)
        else:
            found[key] = as_type(key, value, str if key == "target" else kinds[key])
    return Study(**found)


def _known(
    content: Mapping[str, Any], kind: type, where: str, leave_out: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    """The content, whose keys are all fields of a dataclass and hold all that it needs. Raises UserError."""
    known = [one for one in fields(kind) if one.name not in leave_out]
    names = [one.name for one in known]
    for key in content:
        if key not in names:
            hint = did_you_mean(str(key), names)
            raise UserError(f"unknown key '{key}' in {where}{hint}; known are {', '.join(names)}")
    for one in known:
        if one.default is MISSING and one.default_factory is MISSING and one.name not in content:
            raise UserError(f"'{one.name}' is missing")
    return content


def _keys(where: str, value: Any) -> Keys:
    """`section.key: value`, each value as it is typed on train.py's command line."""
    keys = {}
    for key, given in ({} if value == "null" else _mapping(where, value)).items():
        if "." not in key:
            raise UserError(f"{where} has the key '{key}': keys are written whole, such as model.n_layer: 4")
        keys[key] = given if isinstance(given, str) else json.dumps(given)
    return keys


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {shown(value)}, but it must be a mapping")
    return value


def _name(key: str, name: str) -> str:
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise UserError(f"{key} has the name '{name}': letters, digits, '_', '-', '+' and '.' are allowed")
    return name


def _refuse_twice(key: str, values: tuple[Any, ...]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"'{key}' holds {value} twice")
