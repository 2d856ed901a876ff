"""What one key of the DeepSpeed JSON may hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import UserError
from model.values import Range, as_type, describe_range, describe_type


@dataclass(frozen=True)
class Key:
    """What a key may hold.

    Attributes:
        kind: bool, int, float, str, list or dict; a tuple of all values where there are only so many; object
            where it is left to DeepSpeed
        bounds: of a number, or of each number of a list
        or_null: whether null is allowed, too
        strict: whether only JSON's own form is taken: elsewhere DeepSpeed's classes read `5e8` as an integer,
            1 as true, and some texts as either
        length: of a list, where it has one
    """

    kind: Any
    bounds: Range | None = None
    or_null: bool = False
    strict: bool = False
    length: int | None = None

    def takes(self, value: Any) -> bool:
        """Whether a value of the JSON is one of the key's. NaN and the infinities are never."""
        if isinstance(value, float) and not Range().holds(value):
            return False
        if self.kind is object or (value is None and self.or_null):
            return True
        if isinstance(self.kind, tuple):
            texts = () if self.strict else tuple(map(str, self.kind))
            return not isinstance(value, bool) and value in (*self.kind, *texts)
        if self.kind is bool:
            return isinstance(value, bool) or (
                not self.strict and (value in (0, 1) or isinstance(value, str))
            )
        if self.kind in (int, float):
            return self._takes_number(value)
        if not isinstance(value, self.kind):
            return False
        if self.length is not None and len(value) != self.length:
            return False
        return self.kind is not list or self.bounds is None or all(map(self.bounds.holds, value))

    def _takes_number(self, value: Any) -> bool:
        if not self.strict and isinstance(value, str):
            try:
                value = as_type("", value, self.kind)
            except UserError:
                return False
        if not (self.bounds or Range()).holds(value):
            return False
        is_whole = isinstance(value, int) or (not self.strict and value.is_integer())
        return self.kind is float or is_whole

    def describe(self) -> str:
        """As the end of `it must be ...`."""
        bounds = self.bounds or Range()
        if isinstance(self.kind, tuple):
            words = f"one of {', '.join(map(str, self.kind))}"
        elif self.length is not None:
            words = f"a list of {self.length} numbers {bounds}"
        elif self.kind in (int, float):
            words = describe_range(self.kind, bounds)
        elif self.kind is dict:
            words = "a section in braces"
        else:
            words = "a finite number" if self.kind is object else describe_type(self.kind)
        return f"{words} or null" if self.or_null else words


def below(prefix: str, keys: Mapping[str, Key]) -> dict[str, Key]:
    """The keys of a section by their dotted paths."""
    return {f"{prefix}.{name}": key for name, key in keys.items()}
