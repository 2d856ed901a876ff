"""The lines of a file of JSON objects as rows: what text each holds, or why it holds none."""

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from model.errors import UserError, did_you_mean

from ..sources.content import DamagedContent
from ..sources.documents import BadRow

LONGEST_LINE_BYTES = 2**28


class Row(NamedTuple):
    """A line of a file: its text, or which of `BAD_REASONS` it is."""

    text: str | None
    id: str | None
    problem: str | None
    line: int


class JsonRows(Iterable[Row]):
    """A row for each line that is not blank, and a last one where damage ends the file.

    Attributes:
        path: Of the file, for messages.
        kept: How many rows held a text so far.
        damaged_at: The bytes of the compressed file in front of damage that ends it; None where all is read.
        is_cut: Whether the last line has no end and is no JSON, as in a file that was cut off.

    Raises:
        UserError: as it is read: the file does not hold JSON lines with the text column.
    """

    def __init__(self, path: str, content: Iterable[bytes], text_column: str) -> None:
        self.path = path
        self.kept = 0
        self.damaged_at: int | None = None
        self.is_cut = False
        self._content = content
        self._text_column = text_column

    def __iter__(self) -> Iterator[Row]:
        columns: list[str] = []  # of the first object
        kinds: set[str] = set()  # of what stands in the text column
        number, beginning = 0, ""
        try:
            for number, (line, has_end) in enumerate(lines_of(self.path, self._content), start=1):
                if not line.strip():
                    continue
                beginning = beginning or repr(line[:40])[1:]
                value = _parsed(line)
                if isinstance(value, dict):
                    columns = columns or list(value)
                    if self._text_column in value:
                        kinds.add(type(value[self._text_column]).__name__)
                row = _row(value, self._text_column, number)
                self.kept += bool(row.text)
                self.is_cut = not has_end and isinstance(value, BadRow) and value.reason != "too_long"
                yield row
        except DamagedContent as error:
            self.damaged_at = error.at
            yield Row(None, None, "unreadable", number + 1)
            return
        self._check(beginning, columns, kinds)

    def _check(self, beginning: str, columns: list[str], kinds: set[str]) -> None:
        if beginning and not columns:
            raise UserError(
                f"data.source: {self.path} does not hold one JSON object per line: it begins with {beginning}"
            )
        if columns and not kinds:
            raise UserError(
                f"data.text_column is {self._text_column!r}, but {self.path} has the columns "
                f"{', '.join(columns)}{did_you_mean(self._text_column, columns)}"
            )
        if kinds and kinds.isdisjoint({"str", "NoneType"}):
            raise UserError(
                f"data.text_column is {self._text_column!r}, but that column of {self.path} holds "
                f"{', '.join(sorted(kinds))}, not text"
            )


def _row(value: Any, text_column: str, line: int) -> Row:
    if isinstance(value, BadRow):
        return Row(None, None, value.reason, line)
    if not isinstance(value, dict) or not isinstance(value.get(text_column, 0), str | None):
        return Row(None, None, "not_json", line)
    text, id_ = value[text_column], value.get("id")
    id_ = None if id_ is None or not _is_utf8(str(id_)) else str(id_)
    if text is not None and not _is_utf8(text):
        return Row(None, id_, "not_utf8", line)
    return Row(text, id_, None, line)


def _parsed(line: bytes) -> Any:
    """A line's JSON value, or the BadRow that it is."""
    if len(line) > LONGEST_LINE_BYTES:
        return BadRow("too_long")
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return BadRow("not_utf8")
    except (ValueError, RecursionError):
        return BadRow("not_json")


def _is_utf8(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, as JSON can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lines_of(path: str, content: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Lines without their ends, and whether they had one.

    Once a line is longer than `LONGEST_LINE_BYTES` the rest of it is dropped, as it would fill the memory:
    it counts as too long.
    """
    parts: list[bytes] = []
    size = 0
    for number, piece in enumerate(content):
        if number == 0:
            piece = piece.removeprefix(codecs.BOM_UTF8)
            if piece.lstrip().startswith(b"["):
                raise UserError(
                    f"data.source: {path} holds a JSON array: write one object per line, as "
                    "`jq -c '.[]' array.json > lines.jsonl` does"
                )
        *ends, rest = piece.split(b"\n")
        for end in ends:
            yield b"".join((*parts, end)), True
            parts, size = [], 0
        if size <= LONGEST_LINE_BYTES:
            parts.append(rest)
            size += len(rest)
    if size:
        yield b"".join(parts), False
