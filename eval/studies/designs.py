"""The designs of a study: its baseline, its variants, the parts of a composite, the baseline repeated."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError

from .study import Keys, Study

AGAIN = "_again"
"""What follows the baseline's name where it is judged against itself."""
REPEATED_SEEDS = 1000
"""Added to each seed of the baseline's repetition: other first weights, the same data in the same order."""


@dataclass(frozen=True)
class Design:
    """A design of a study: its name in tables, what it sets, and what is added to each of its seeds."""

    name: str
    keys: Keys
    adds_to_seed: int = 0

    @property
    def is_variant(self) -> bool:
        """Whether it is one of the catalogue or of a file, with nothing beside."""
        return set(self.keys) == {"model.variant"} and not self.adds_to_seed

    @property
    def is_repeated(self) -> bool:
        """Whether it is the baseline again, whose difference to itself is noise."""
        return self.adds_to_seed > 0


def designs_of(study: Study) -> Iterator[Design]:
    """The baseline, the variants, the baseline repeated; of a composite each part, all, and all but each."""
    again = f"{_name_of(study.baseline)}{AGAIN}"
    names: list[str] = [again] if study.repeat_baseline else []
    for variant in (study.baseline, *study.variants):
        name = _name_of(variant)
        if name in names:
            raise UserError(f"{study.path}: two designs would be called {name}: rename a file")
        names.append(name)
        yield Design(name, {"model.variant": variant})
    parts = study.composite
    for first, second in ((a, b) for a in parts for b in parts if a < b):
        if both := parts[first].keys() & parts[second].keys():
            raise UserError(f"{study.path}: {first} and {second} of the composite both set {min(both)}")
    below = {"model.variant": study.baseline}
    if study.repeat_baseline:
        yield Design(again, below, REPEATED_SEEDS)
    for name, keys in parts.items():
        yield Design(f"+{name}", below | dict(keys))
    if len(parts) > 1:
        yield Design("whole", below | {key: v for keys in parts.values() for key, v in keys.items()})
    if len(parts) > 2:  # of two, one left out is the other alone
        for left_out in parts:
            rest = {key: v for name, keys in parts.items() if name != left_out for key, v in keys.items()}
            yield Design(f"whole-{left_out}", below | rest)


def _name_of(variant: str) -> str:
    """In tables: a file goes by its stem."""
    return Path(variant).stem if variant.endswith(".py") else variant
