"""The command line of what looks at a source: SOURCE and the `data` keys that say what its documents are."""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence
from typing import NoReturn

import docstring_parser

from model.errors import UserError

from .config import DataConfig
from .sources import Source, open_source, refuse_missing
from .tokenizer import Tokenizer, open_tokenizer

KEYS = (
    "files", "tokenizer", "text_column", "split", "subset", "revision", "max_document_bytes",
    "on_bad_document",
)  # fmt: skip


class SourceParser(argparse.ArgumentParser):
    """A parser with SOURCE and `--data.KEY` for each of `KEYS`; mistakes are a UserError of one sentence."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("source", metavar="SOURCE", help="what data.source takes")
        kinds = typing.get_type_hints(DataConfig)
        texts = {
            one.arg_name: one.description for one in docstring_parser.parse(DataConfig.__doc__ or "").params
        }
        for field in dataclasses.fields(DataConfig):
            if field.name in KEYS:
                kind = kinds[field.name]
                self.add_argument(
                    f"--data.{field.name}",
                    type=kind if kind is int else str,
                    choices=typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else None,
                    default=field.default,
                    metavar=None if typing.get_origin(kind) is typing.Literal else "VALUE",
                    help=f"{texts[field.name]} (default: {field.default})",
                )

    def parse(self, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, DataConfig]:
        """The options, and what they say of the data."""
        options = self.parse_args(arguments)
        data = {key: getattr(options, f"data.{key}") for key in KEYS}
        return options, DataConfig(source=options.source, **data)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}")


def open_with_notes(config: DataConfig) -> tuple[Source, Tokenizer]:
    """The source that a command names, and its tokenizer; the source's notes go to stderr.

    Raises:
        UserError, OSError: as `open_source` and `open_tokenizer`.
    """
    refuse_missing(config)
    tokenizer = open_tokenizer(config.tokenizer)
    source = open_source(config, tokenizer)
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    return source, tokenizer


def at_least(lowest: int) -> typing.Callable[[str], int]:
    """The type of an option that is an integer of `lowest` or more."""

    def integer(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"it is {text!r}, but it must be an integer of {lowest} or more")
        return int(text)

    return integer
