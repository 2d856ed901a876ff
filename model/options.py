"""A design's own options: keyword parameters of its class, typed, with defaults."""

import inspect
import json
import typing
from collections.abc import Mapping
from functools import partialmethod
from typing import TYPE_CHECKING, Any

from .errors import UserError, did_you_mean
from .values import as_type

if TYPE_CHECKING:
    from torch import nn

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
