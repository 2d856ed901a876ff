"""The runs that a study may need: each size, design and rate resolved as train.py would."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from model import DESIGN_KEYS
from model.errors import UserError
from training.config.candidate import STANDS_FOR
from training.config.commands import resolve_command
from training.config.recipe import Recipe
from training.run.folder import recipe_as_dict
from training.run.search import OF_NO_EFFECT

from ..judging.request import Role, Trial, design_identity
from .designs import Design, designs_of
from .study import Keys, Study, rate_of

OWN = "own"
"""The rate of a candidate's CONFIG_OVERRIDES, one more among its rates."""
PEAKS = ("lr", "muon_lr", "adam_lr")
"""Of the optimizer's params in the DeepSpeed JSON: what a multiple of the shared rate multiplies."""
Fingerprints = Mapping[str, Mapping[str, str]]
"""By size: `data_fingerprint` and `val_fingerprint` of its runs."""
FOR_ALL: Keys = {"eval.after_training": "false"}
"""Of every run of a study, beside its file: what is evaluated is so once all runs have ended."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    size: str
    design: str
    rate: str
    seed: int

    @property
    def name(self) -> str:
        """For its files."""
        return re.sub(r"[^\w.+-]", "-", f"{self.size}_{self.design}_{self.rate}_seed{self.seed}")


@dataclass(frozen=True)
class Plan:
    """A study with its runs resolved.

    Attributes:
        study: as its file says it.
        designs: the baseline first.
        shared: of each size the label of the rate that all designs share.
        trials: by size, design and rate, of the recipe's own seed.
        target: the baseline's run of a size that is foretold and not trained; None without one.
        widened: by size and design the name of a baseline with as many parameters or FLOPs, where the design
            has more than the baseline.
    """

    study: Study
    designs: tuple[Design, ...]
    shared: Mapping[str, str]
    trials: Mapping[tuple[str, str, str], Trial]
    target: Trial | None = None
    widened: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[str, ...]:
        """The smallest first."""
        return tuple(self.study.ladder)

    @property
    def baseline(self) -> str:
        """Its name."""
        return self.designs[0].name

    @property
    def candidates(self) -> tuple[str, ...]:
        """The names of the designs that are judged beside the baseline."""
        return tuple(design.name for design in self.designs[1:])

    @cached_property
    def _rates(self) -> dict[tuple[str, str], tuple[str, ...]]:
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for size, design, rate in self.trials:
            found[size, design] = (*found.get((size, design), ()), rate)
        return found

    def arms(self, size: str) -> tuple[str, ...]:
        """All that is trained at a size, widened baselines too."""
        return tuple(dict.fromkeys(design for of, design, _ in self.trials if of == size))

    def baselines(self, size: str, design: str) -> tuple[str, ...]:
        """What a design is held against at a size: the baseline, and where there is one its widened form."""
        wide = self.widened.get((size, design))
        return (self.baseline,) if wide is None else (self.baseline, wide)

    def rates(self, size: str, design: str) -> tuple[str, ...]:
        """The labels of its rates, the candidate's own last."""
        return self._rates[size, design]

    def trial(self, cell: Cell) -> Trial:
        """What train.py is given for a run."""
        trial = self.trials[cell.size, cell.design, cell.rate]
        seed = cell.seed + next((one.adds_to_seed for one in self.designs if one.name == cell.design), 0)
        recipe = replace(trial.recipe, train=replace(trial.recipe.train, init_seed=seed))
        words = (*trial.words, f"--train.init_seed={seed}")
        return replace(trial, seed=seed, recipe=recipe, words=words)

    def cells(self, size: str, design: str) -> Iterator[Cell]:
        """All that a design may need at a size: judged seeds at one more rate than the shared one, unknown
        before its best is chosen, stand at the first that is not shared."""
        rates, shared = self.rates(size, design), self.shared[size]
        others = [rate for rate in rates if rate != shared]
        for seed in self.study.seeds_at_most:
            yield from (Cell(size, design, rate, seed) for rate in (shared, *others[:1]))
        if others:
            for seed in self.study.selection_seeds:
                yield from (Cell(size, design, rate, seed) for rate in rates)

    @cached_property
    def _keys(self) -> dict[tuple[str, str, str], str]:
        return {
            (size, design, rate): json.dumps(
                [resolved(trial.recipe, trial.deepspeed.raw), self.identity(design), self.study.ranks],
                sort_keys=True,
            )
            for (size, design, rate), trial in self.trials.items()
        }

    def key(self, cell: Cell, data: Fingerprints) -> str:
        """A hash of all that decides a run's numbers: code, seed, configs, ranks, and the data's content."""
        of_data = json.dumps(dict(data[cell.size]), sort_keys=True)
        text = f"{self._keys[cell.size, cell.design, cell.rate]} {cell.seed} {of_data}"
        return hashlib.sha256(text.encode()).hexdigest()

    def identity(self, design: str) -> str:
        """A hash of a design: of its names, options and code, and of what else it sets. A widened baseline is
        the baseline's design."""
        found = next((one for one in self.designs if one.name == design), self.designs[0])
        design = found.name
        trial = self.trials[self.sizes[0], design, self.shared[self.sizes[0]]]
        identity = design_identity(trial.recipe.model)
        if found.is_variant:
            return identity
        text = json.dumps([identity, dict(found.keys), found.adds_to_seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def make_plan(study: Study) -> Plan:
    """The study's runs. Raises UserError or OSError with the sentence of train.py for one that cannot be."""
    designs = tuple(designs_of(study))
    shared, trials = {}, {}
    for size, keys in study.ladder.items():
        for number, design in enumerate(designs):
            resolve = _Resolver(study, design, keys, "candidate" if number else "baseline", f"size {size}")
            trial = resolve()
            rates = _multiples(study, size, trial)
            shared[size] = next(label for label, factor in rates.items() if factor == 1)
            for label, factor in rates.items():
                trials[size, design.name, label] = trial if factor == 1 else resolve(_peaks(trial, factor))
            if trial.overrides.given:
                if not study.selection_seeds:
                    raise UserError(
                        f"{study.path}: {design.name} brings rates of its own, which are chosen or not on "
                        "'selection_seeds', such as [101, 102]"
                    )
                trials[size, design.name, OWN] = resolve(own=True)
    target = None
    if isinstance(study.target, Mapping):
        target = _Resolver(study, designs[0], study.target, "baseline", "target")()
    plan = Plan(study, designs, shared, trials, target)
    identities = [plan.identity(design.name) for design in designs]
    for number, identity in enumerate(identities):
        if (first := identities.index(identity)) < number:
            one, other = designs[first].name, designs[number].name
            raise UserError(f"{study.path}: {one} and {other} are one design: there is nothing to compare")
    return plan


def resolve_baseline(study: Study, like: Trial, keys: Keys) -> Trial:
    """The baseline's run with some of its keys changed. Raises UserError or OSError."""
    words = (*like.words, *(f"--{key}={value}" for key, value in keys.items()))
    request, recipe, deepspeed, overrides = resolve_command([*words], study.ranks)
    return Trial("baseline", recipe.train.init_seed, words, recipe, deepspeed, overrides, request.recipe_file)


def resolved(recipe: Recipe, deepspeed: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's numbers, design and seed aside, by dotted keys."""
    tree = flat({**recipe_as_dict(vars(recipe)), "ds": dict(deepspeed)})
    apart = {f"model.{key}" for key in DESIGN_KEYS} | {"train.init_seed"}
    return {
        key: value
        for key, value in tree.items()
        if key not in OF_NO_EFFECT
        and key.partition(".")[0] not in OF_NO_EFFECT
        and not any(key == one or key.startswith(f"{one}.") for one in apart)
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


class _Resolver:
    """Makes one design's runs at one size; raises UserError with where it stood."""

    def __init__(self, study: Study, design: Design, keys: Keys, role: Role, where: str) -> None:
        self.study, self.where, self.role = study, f"{study.path}, {design.name} at {where}", role
        self.keys = {**FOR_ALL, **design.keys, **study.overrides, **keys}
        self.files = {"config": study.recipe, "deepspeed_config": study.deepspeed_config}
        self.given: Mapping[str, float] = {}

    def __call__(self, peaks: Keys | None = None, own: bool = False) -> Trial:
        """The run at the shared rate, at other peaks, or with the candidate's own CONFIG_OVERRIDES."""
        beaten = {STANDS_FOR[name] for name in self.given} if own else set()
        keys = {key: value for key, value in self.keys.items() if key not in beaten} | dict(peaks or {})
        keys["train.candidate_overrides"] = "apply" if own else "ignore"
        words = tuple(f"--{key}={value}" for key, value in (self.files | keys).items())
        try:
            request, recipe, deepspeed, overrides = resolve_command([*words], self.study.ranks)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from error
        self.given = overrides.given
        seed = recipe.train.init_seed
        return Trial(self.role, seed, words, recipe, deepspeed, overrides, request.recipe_file)


def _multiples(study: Study, size: str, trial: Trial) -> dict[str, float]:
    """The study's rates at a size, by their labels, as multiples of the shared one; raises UserError."""
    shared, found = trial.deepspeed.peak_lr, {}
    split = len({"muon_lr", "adam_lr"} & trial.deepspeed.optimizer_params.keys())
    for text in study.rates:
        number, is_multiple = rate_of(text)
        if split and not is_multiple:
            raise UserError(
                f"{study.path}: rates has {text}, but {study.deepspeed_config} sets several peak rates: give "
                "multiples, such as 2x"
            )
        factor = number if is_multiple else number / shared
        found[text] = 1.0 if math.isclose(factor, 1, rel_tol=1e-9) else factor
    if 1.0 not in found.values():
        raise UserError(
            f"{study.path}: the shared rate of size {size} is {shared:g}, which is not among the rates "
            f"({', '.join(study.rates)}): add 1x"
        )
    return found


def _peaks(trial: Trial, factor: float) -> Keys:
    params = trial.deepspeed.optimizer_params
    return {f"ds.optimizer.params.{key}": repr(params[key] * factor) for key in PEAKS if key in params}
