"""Constructors: what a design is built with, and what it gets of the config because it names it."""

import functools
import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import BlockConfig, TopologyConfig
from .errors import UserError
from .plug_points import PlugPoint

if TYPE_CHECKING:
    from torch import nn

_CALLS: dict[PlugPoint, tuple[str, tuple[str, ...], str]] = {
    "norm": ("(ndim, bias=...)", ("bias",), "let it take bias too, whether it uses it or not"),
    "block": ("(config)", (), "let it take the config"),
    "topology": ("(config, blocks)", (), "let it take the config and the list of blocks"),
}
_POSITIONAL: dict[PlugPoint, int] = {"norm": 1, "block": 1, "topology": 2}
_filled: "dict[tuple[type[nn.Module], int, frozenset[str]], type[nn.Module]]" = {}
_building: ContextVar[TopologyConfig | None] = ContextVar("_building", default=None)


@contextmanager
def built_for(config: TopologyConfig) -> Iterator[None]:
    """Constructors that run inside get what they name from this config: a BlockConfig inside a block."""
    token = _building.set(config)
    try:
        yield
    finally:
        _building.reset(token)


def from_config(
    design: "type[nn.Module]", given: int, more: frozenset[str] = frozenset()
) -> "type[nn.Module]":
    """The design as a class whose constructor's parameters that the config has are filled in.

    That is `layer_idx` and `n_layer`, and every other field of `BlockConfig`, in `Block(config, layer_idx)`
    as in `LayerNorm(ndim, bias, layer_idx)`, wherever it is built. What the caller gives is stronger. A
    default is replaced where it is None or a number of the same type: any other is the design's own option,
    under a name that the config has too. Outside the blocks there is no layer: the final norm and a
    topology's norms keep the default of `layer_idx`, or where it has none get n_layer, one more than the
    last layer's.

    Args:
        design: a class; it is returned as it is where it names nothing of the config.
        given: how many arguments the contract gives: 2 for `Norm(ndim, bias)`.
        more: fields that a block's file adds to the config.
    """
    # One class for the same design: what a file is loaded with decides whether it is loaded again.
    if (made := _filled.get((design, given, more))) is not None:
        return made
    parameters = list(inspect.signature(design).parameters.values())[given:]
    fields = {name for kind in BlockConfig.__mro__[:-1] for name in inspect.get_annotations(kind)}
    named = [p for p in parameters if p.name in fields | more and not isinstance(p.default, str)]
    if not named:
        return design
    plain = design.__init__

    @functools.wraps(plain)
    def filled(self: Any, *args: Any, **kwargs: Any) -> None:
        present = inspect.signature(plain).bind_partial(self, *args, **kwargs).arguments
        for parameter in named:
            if parameter.name not in present:
                kwargs |= _of_config(parameter)
        plain(self, *args, **kwargs)

    made = type(design.__name__, (design,), {"__init__": filled, "__module__": design.__module__})
    return _filled.setdefault((design, given, more), made)


def _of_config(parameter: inspect.Parameter) -> dict[str, Any]:
    """The argument for a parameter, by name; none where its default stays."""
    config, default = _building.get(), parameter.default
    if config is None:
        return {}
    if parameter.name == "layer_idx" and not isinstance(config, BlockConfig):
        return {"layer_idx": config.n_layer} if default is parameter.empty else {}
    if not hasattr(config, parameter.name):
        return {}
    value = getattr(config, parameter.name)
    fits = default is parameter.empty or default is None
    numbers = isinstance(value, int | float) and type(value) is type(default)
    return {parameter.name: value} if fits or numbers else {}


def check_constructor(
    plug: PlugPoint, name: str, design: "type[nn.Module]", options: Mapping[str, Any], known: Collection[str]
) -> None:
    """Raises UserError where a design cannot be built as its plug point is, with the line of its constructor.

    Args:
        plug: which plug point.
        name: as the config has it.
        design: the class, without options.
        options: those that are given.
        known: the config's names, which a constructor may name.
    """
    call, keywords, advice = _CALLS[plug]
    signature = inspect.signature(design)
    try:
        bound = signature.bind_partial(*[None] * _POSITIONAL[plug], **dict.fromkeys(keywords))
    except TypeError:
        own = f"__init__{inspect.signature(design.__init__)}"
        raise UserError(
            f"model.{plug} '{name}' is built as {design.__name__}{call}, but {_place(design)} has {own}: "
            f"{advice}"
        ) from None
    missing = [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and not (p.name in bound.arguments or p.name in known or p.name in options)
    ]
    if missing:
        raise UserError(
            f"model.{plug} '{name}' needs {' and '.join(missing)}, which its constructor ({_place(design)}) "
            f"has no default for: give it one in the file, or --model.{plug}_options.{missing[0]} VALUE"
        )


def _place(design: "type[nn.Module]") -> str:
    """Where the constructor begins: `my_norm.py line 12`."""
    code = getattr(inspect.unwrap(design.__init__), "__code__", None)
    return f"{Path(code.co_filename).name} line {code.co_firstlineno}" if code else design.__name__
