"""Whether what was read from a JSON file is of a type; what is not comes in words."""

import types
import typing
from typing import Any

_WORDS: dict[Any, str] = {
    type(None): "null",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def misshapen(value: Any, kind: Any, where: str = "") -> str | None:
    """In what a value is not of a type: `runs[3].step is 'x', but it must be an integer`. None where it is.

    Args:
        value: as `json.loads` gives it.
        kind: of `_WORDS` and `Any`, their unions, Literals, `list[...]`, `dict[str, ...]`, and TypedDicts, of
            which a value may have further keys. An integer is a number too.
        where: the value's place in the file.
    """
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Any:
        return None
    if origin in (typing.Union, types.UnionType):
        found = {one: misshapen(value, one, where) for one in arguments}
        likely = [problem for one, problem in found.items() if problem and _is_alike(value, one)]
        return None if None in found.values() else (likely or [_sentence(value, kind, where)])[0]
    if not _is_alike(value, kind):
        return _sentence(value, kind, where)
    inside: dict[str, Any] = {}
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        if missing := sorted(kind.__required_keys__ - value.keys()):
            return f"{_joined(where, missing[0])} is missing"
        inside = {key: hints[key] for key in hints if key in value}
    elif origin is dict and arguments:
        inside = dict.fromkeys(value, arguments[1])
    found_inside = [misshapen(value[key], of, _joined(where, key)) for key, of in inside.items()]
    if origin is list and arguments:
        found_inside = [misshapen(one, arguments[0], f"{where}[{n}]") for n, one in enumerate(value)]
    return next(filter(None, found_inside), None)


def _is_alike(value: Any, kind: Any) -> bool:
    """Whether a value is of the type, whatever it holds."""
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in typing.get_args(kind))
    if typing.is_typeddict(kind):
        return isinstance(value, dict)
    return type(value) in ((int, float) if origin is float else (origin,))


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _sentence(value: Any, kind: Any, where: str) -> str:
    text = " ".join(repr(value).split())
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{where or 'it'} is {short}, but it must be {_words(kind)}"


def _words(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    return _WORDS[dict if typing.is_typeddict(kind) else origin]
