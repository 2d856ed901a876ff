"""Thrift's compact protocol, as far as a parquet footer needs it written."""

from collections.abc import Sequence
from typing import Any, NamedTuple

END = b"\0"
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12


class I32(int):
    """A 32-bit number, which has a type of its own; any other `int` is written with 64 bits."""


class Field(NamedTuple):
    """A field of a struct, by its number in the format's definition."""

    number: int
    value: Any


class Encoded(bytes):
    """A struct that stands in bytes already."""


def encode_fields(fields: Sequence[Field], before: int) -> bytes:
    """Fields of a struct in ascending order, which follow the one with the number `before` or, for 0, are the
    first; after the last field of all stands `END`. A field whose value is None is left out; the others are
    numbers, texts, bytes, structs (tuples of `Field`, or `Encoded`), and lists of one of these."""
    parts = []
    for number, value in fields:
        if value is not None:
            parts.append(bytes([(number - before) << 4 | _kind(value)]) + _content(value))
            before = number
    return b"".join(parts)


def _kind(value: Any) -> int:
    if isinstance(value, int):
        return _I32 if isinstance(value, I32) else _I64
    if isinstance(value, (tuple, Encoded)):
        return _STRUCT
    return _LIST if isinstance(value, list) else _BINARY


def _content(value: Any) -> bytes:
    kind = _kind(value)
    if kind in (_I32, _I64):
        return _varint(value << 1 if value >= 0 else (-value << 1) - 1)
    if kind == _STRUCT:
        return value if isinstance(value, Encoded) else encode_fields(value, 0) + END
    if kind == _LIST:
        of = _kind(value[0]) if value else _STRUCT
        head = bytes([len(value) << 4 | of]) if len(value) < 15 else bytes([0xF0 | of]) + _varint(len(value))
        return head + b"".join(map(_content, value))
    content = value.encode() if isinstance(value, str) else value
    return _varint(len(content)) + content


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)
