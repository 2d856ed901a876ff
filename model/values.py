"""What a key may hold: a text read as the key's type, and a number held to its range."""

import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .errors import UserError

NULLS = ("null", "Null", "NULL", "~")
"""What stands for no value where a key may have none."""
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[+-]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DESCRIPTIONS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
    dict: "a mapping such as {eps: 1.0e-6}",
    list: "a list such as [a, b]",
    tuple: "a list such as [a, b]",
}


class Quoted(str):
    """A text that stood in quotes: `"null"` is no null, and `"12"` no number where any value may be."""


@dataclass(frozen=True)
class Range:
    """Which finite numbers a key takes; None is no bound."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def holds(self, value: Any) -> bool:
        """Whether a value is a number in the range. NaN, an infinity and a truth value are in none."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """As the end of `an integer ...`: `of at least 0 and below 1`; nothing for a range without bounds."""
        bounds = {
            "of at least": self.at_least,
            "above": self.above,
            "of at most" if self.at_least is self.above is None else "at most": self.at_most,
            "below": self.below,
        }
        return " and ".join(f"{words} {bound:,}" for words, bound in bounds.items() if bound is not None)


FROM_0, FROM_1 = Range(at_least=0), Range(at_least=1)


def check_ranges(section: str, config: Any, ranges: Mapping[str, Range]) -> None:
    """Hold the numbers of a section's dataclass to their ranges; null and what is in a list too.

    Args:
        section: its name in the recipe, for the sentence.
        config: the dataclass.
        ranges: field -> range.

    Raises UserError with one sentence about the first that is outside.
    """
    kinds = typing.get_type_hints(type(config))
    for name, bounds in ranges.items():
        value, kind = getattr(config, name), kinds[name]
        if value is None and type(None) in typing.get_args(kind):
            continue
        is_list = isinstance(value, tuple)
        for number in value if is_list else (value,):
            if not bounds.holds(number):
                of = typing.get_args(kind)[0] if is_list else kind
                given = f"{list(value)}, but each of them" if is_list else f"{shown(value)}, but it"
                raise UserError(f"{section}.{name} is {given} must be {describe_range(of, bounds)}")


def describe_range(kind: Any, bounds: Range) -> str:
    """A type of numbers and their range: `an integer of at least 1`, `a number above 0 or null`."""
    described = [
        f"{describe_type(one)} {bounds}".rstrip() if one in (int, float) else describe_type(one)
        for one in (typing.get_args(kind) or (kind,))
    ]
    return " or ".join(described)


def as_type(key: str, value: Any, kind: Any) -> Any:
    """A value of a key as its type: a text is read, anything else has to fit already.

    A text where any value may be is what JSON reads in it, or itself. Numbers are decimal (`010` is 10), with
    single underscores between digits if you like, and finite.

    Args:
        key: for the sentence.
        value: a text, as it was written or typed; a list or mapping of such; or a value of Python's.
        kind: the type.

    Raises UserError where it does not fit.
    """
    try:
        return _read(value, kind)
    except (ValueError, OverflowError):
        raise UserError(f"{key} is {shown(value)}, but it must be {describe_type(kind)}") from None


def _read(value: Any, kind: Any) -> Any:
    """`as_type` without its sentence: raises ValueError or OverflowError."""
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Literal:
        return _one_of(value, arguments)
    if origin in (typing.Union, types.UnionType):
        return _of_any(value, arguments)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        of_each = arguments[0] if arguments else Any
        return origin(_read(one, of_each) for one in value)
    if origin is dict and isinstance(value, Mapping):
        of_each = arguments[1] if arguments else Any
        return {str(name): _read(one, of_each) for name, one in value.items()}
    if origin in _READERS:
        return _READERS[origin](value)
    if origin in (Any, object) or not isinstance(origin, type):
        return plain_value(value)
    if not isinstance(value, origin):
        raise ValueError
    return value


def _one_of(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if (type(value) is type(choice) and value == choice) or (
            isinstance(value, str) and value == str(choice)
        ):
            return choice
    raise ValueError


def _of_any(value: Any, kinds: tuple[Any, ...]) -> Any:
    # `null` is a text too: where both fit, it is none
    for kind in sorted(kinds, key=lambda kind: kind is not type(None)):
        try:
            return _read(value, kind)
        except (ValueError, OverflowError):
            continue
    raise ValueError


def _null(value: Any) -> None:
    if value is not None and not _is_null(value):
        raise ValueError


def _is_null(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Quoted) and value in NULLS


def _text(value: Any) -> str:
    if not isinstance(value, str) or _is_null(value):
        raise ValueError
    return str(value)


def _truth(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    if not isinstance(value, bool):
        raise ValueError
    return value


def _integer(value: Any) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def _number(value: Any) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if not Range().holds(value):
        raise ValueError
    return float(value)


_READERS: dict[Any, Callable[[Any], Any]] = {
    type(None): _null,
    str: _text,
    bool: _truth,
    int: _integer,
    float: _number,
}


def plain_value(value: Any) -> Any:
    """A value where any may be: a text that was not quoted is the number, truth value or null that JSON reads
    in it, or else itself."""
    if isinstance(value, Mapping):
        return {str(name): plain_value(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain_value(one) for one in value]
    if isinstance(value, Quoted) or not isinstance(value, str):
        return str(value) if isinstance(value, str) else value
    if _is_null(value):
        return None
    if value in ("true", "false"):
        return value == "true"
    with suppress(ValueError):
        number = json.loads(value)
        if Range().holds(number):
            return number
    return value


def shown(value: Any) -> str:
    """A value as a sentence shows it: a text in quotes, and a list or mapping as YAML would write it."""
    return repr(_written(value)) if isinstance(value, str | Mapping | list) else repr(value)


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_written(one)}' for name, one in value.items())}}}"
    return f"[{', '.join(map(_written, value))}]" if isinstance(value, list) else str(value)


def describe_type(kind: Any) -> str:
    """A type in words, as the end of `it must be ...`: `an integer`, `one of a, b`, `a text or null`.

    Args:
        kind: a type, a Literal, a union, or a tuple of types as `isinstance` takes it.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe_type, arguments))
    if isinstance(kind, tuple):
        return " or ".join(map(describe_type, kind))
    fallback: str = getattr(kind, "__name__", str(kind))
    return _DESCRIPTIONS.get(origin or kind, fallback)
