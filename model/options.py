"""A design's own options: keyword parameters of its class, typed, with defaults."""

import inspect
import json
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from functools import partialmethod
from typing import TYPE_CHECKING, Any

from .errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

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
_MADE: "dict[tuple[type[nn.Module], str], type[nn.Module]]" = {}


def with_options(
    key: str, design: "type[nn.Module]", positional: int, options: Mapping[str, Any]
) -> "type[nn.Module]":
    """The design with `options` set, a class that is built with the contract's arguments alone.

    Args:
        key: the recipe's key of the options, such as `model.norm_options`, for the error's sentence.
        design: a class whose options are its parameters after the first `positional`.
        positional: how many arguments the contract gives: 2 for `Norm(ndim, bias)`.
        options: values by name; a text is read as the option's type.

    Raises UserError for an option that the design does not have, or a value of the wrong type.
    """
    if not options:
        return design
    known = options_of(design, positional)
    values = {}
    for name, value in options.items():
        if name not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            hint = did_you_mean(name, known, 0.5)
            raise UserError(f"{key}.{name} is no option of {design.__name__}{hint}; {has}")
        values[name] = as_type(f"{key}.{name}", value, known[name][0])
    # One class for the same options: what a file is loaded with decides whether it is loaded again.
    made = (design, json.dumps(values, sort_keys=True, default=repr))
    if made not in _MADE:
        body = {"__init__": partialmethod(design.__init__, **values), "__module__": design.__module__}
        _MADE[made] = type(design.__name__, (design,), body)
    return _MADE[made]


def options_of(design: "type[nn.Module]", positional: int) -> dict[str, tuple[Any, Any]]:
    """A design's options: name -> (type, default), `Parameter.empty` for one that must be given."""
    parameters = list(inspect.signature(design).parameters.values())[positional:]
    try:
        hints = typing.get_type_hints(design.__init__)
    except NameError:  # an annotation that is only read, never run
        hints = {}
    return {
        p.name: (hints.get(p.name, object if p.default is p.empty else type(p.default)), p.default)
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }


def as_type(key: str, value: Any, kind: Any) -> Any:
    """A value of a key, read as its type where it is a text. Raises UserError where it does not fit."""
    if isinstance(value, str) and kind is not str:
        with suppress(json.JSONDecodeError):  # a text may be one of a Literal's
            value = json.loads(value)
    if not _fits(value, kind):
        raise UserError(f"{key} is {value!r}, but it must be {describe_type(kind)}")
    return float(value) if kind is float else value


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True


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
