"""Parquet files, here or remote, read a row group at a time with pyarrow.

A partly read `datasets` stream can hang the process when it exits. No file is kept open: a `Footer` makes
opening one cheap, and only the column chunk that is asked for is read.
"""

import os
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import UserError, did_you_mean

from ..config import MOST_LANES, DataConfig
from ..interrupts import check_interrupted
from .documents import BadRow, DamagedShard, Document, RowGroup, Shard, Source, cut_into_shards
from .network import filesystem_of, is_damage, retry_damage
from .places import is_remote
from .remote import Footer, RemoteFile, read_footers

STREAM_BUFFER_BYTES = 2**21
WHOLE_ROWS, WHOLE_BYTES = 1_000, 2**24
"""A row group of no more rows and bytes of text is decoded at once."""
DECODED_GROUPS = 2 * MOST_LANES
"""So many of them are kept at most, each for the shards of it that come next."""


class _Place(NamedTuple):
    """A column of a row group."""

    path: str
    group: int
    column: str


class ParquetSource(Source):
    """Row groups as `cut_into_shards` cuts them.

    A small row group is decoded once for all of its shards that are read one after the other. A large one is
    decoded as a stream; a shard in its middle costs decoding what stands before it, unless a stream has come
    that far. Several threads may read shards at a time.
    """

    decodes_from_group_start = True

    def __init__(
        self,
        config: DataConfig,
        paths: Sequence[str],
        storage_options: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        self.config = config
        self._storage_options = storage_options or {}
        # large row groups that are being read, by the next row
        self._streams: OrderedDict[tuple[_Place, int], Iterator[pa.RecordBatch]] = OrderedDict()
        # small row groups with shards yet to be read, and the row that they are read up to
        self._decoded: OrderedDict[tuple[_Place, int], pa.ChunkedArray] = OrderedDict()
        self._broken: dict[_Place, tuple[int, str]] = {}  # from which row on, and why
        self._process = os.getpid()
        footers = self._read_footers(paths)
        notes: list[str] = []
        sizes: dict[str, int] = {}
        self._footers: dict[str, Footer] = {}
        self._has_ids = True
        for path, footer in zip(paths, footers, strict=True):
            if isinstance(footer, str):
                if config.on_bad_document == "stop":
                    raise UserError(f"data.source: {footer}")
                notes.append(f"data.source: {footer}: it is left out.")
                continue
            check_text_column(config, footer.schema, path)
            self._has_ids &= footer.schema.names.count("id") == 1
            sizes[path] = footer.size
            self._footers[path] = footer
        if not sizes and notes:
            raise UserError(notes[0].removesuffix(": it is left out."))
        groups = (
            RowGroup(path, group, rows, size)
            for path, footer in self._footers.items()
            for group, (rows, size) in enumerate(zip(footer.rows, footer.text_bytes, strict=True))
        )
        rows_of_source = sum(sum(footer.rows) for footer in self._footers.values())
        shards, self.shards_per_window = cut_into_shards(groups, rows_of_source)
        of_files = self._footers.items()
        versions = {path: footer.version for path, footer in of_files if footer.version is not None}
        super().__init__(config, sizes, shards, revision, versions)
        self.notes += notes

    def ids(self, shard: Shard) -> list[str] | None:
        if not self._has_ids:
            return None
        try:
            ids = self._read(shard, "id").to_pylist()
        except DamagedShard:
            return None
        return [str(id_) for id_ in ids if id_ is not None] or None

    def _rows(self, shard: Shard) -> list[Document | BadRow | None]:
        return to_rows(self._read(shard, self.config.text_column))

    def _read(self, shard: Shard, column: str) -> pa.ChunkedArray:
        """A column of a shard's rows. Raises DamagedShard."""
        place = _Place(shard.path, shard.group, column)
        first_broken, reason = self._broken.get(place, (sys.maxsize, ""))
        if shard.first_row >= first_broken:
            raise DamagedShard(reason)
        try:
            return retry_damage(lambda: self._column(shard, place), shard.path, self.config.timeout_s)
        except Exception as error:
            if not is_damage(error):
                raise
            reason = " ".join(str(error).split())
            self._broken[place] = shard.first_row, reason  # what follows cannot be reached either
            raise DamagedShard(reason) from error

    def _column(self, shard: Shard, place: _Place) -> pa.ChunkedArray:
        if self._process != os.getpid():  # two processes must not move one file's position
            self._streams.clear()
            self._decoded.clear()
            self._process = os.getpid()
        rows, size = self._footers[shard.path].counts[:, shard.group].tolist()
        if shard.rows == rows or (rows <= WHOLE_ROWS and size <= WHOLE_BYTES):
            values = self._of_whole_group(shard, place, rows)
        else:
            values = self._next_of_stream(shard, place, rows)
        if len(values) != shard.rows:  # which pyarrow does not always see in a damaged page
            raise pa.ArrowInvalid(f"{len(values)} rows came instead of {shard.rows}")
        return values

    def _of_whole_group(self, shard: Shard, place: _Place, rows: int) -> pa.ChunkedArray:
        values = self._decoded.pop((place, shard.first_row), None)
        if values is None:
            file, group = self._open(shard.path, shard.group, place.column)
            with file:
                values = file.read_row_group(group, columns=[place.column], use_threads=False).column(0)
            if len(values) != rows:
                raise pa.ArrowInvalid(f"{len(values)} rows came instead of {rows}")
        next_row = shard.first_row + shard.rows
        if next_row < rows:
            self._decoded[place, next_row] = values
            if len(self._decoded) > DECODED_GROUPS:
                self._decoded.popitem(last=False)
        return values.slice(shard.first_row, shard.rows)

    def _next_of_stream(self, shard: Shard, place: _Place, rows: int) -> pa.ChunkedArray:
        batches = self._streams.pop((place, shard.first_row), None)
        if batches is None:
            file, group = self._open(shard.path, shard.group, place.column, buffer_size=STREAM_BUFFER_BYTES)
            # of a group's shards only the last may have other rows
            per_shard = self.shards[shard.index - 1].rows if shard.first_row else shard.rows
            batches = file.iter_batches(per_shard, [group], columns=[place.column], use_threads=False)
            for _ in _take(batches, shard.first_row):
                pass
        values = pa.chunked_array(_take(batches, shard.rows))
        next_row = shard.first_row + shard.rows
        if next_row < rows:
            self._streams[place, next_row] = batches
            # one per lane, and what lanes left half read
            if len(self._streams) > 2 * (self.config.lanes or MOST_LANES):
                self._streams.popitem(last=False)
        return values

    def _open(self, path: str, group: int, column: str, **options: Any) -> tuple[pq.ParquetFile, int]:
        """A file for a column of one of its row groups, and the row group's number there."""
        footer = self._footers[path]
        # `pre_buffer` reads in threads, which a fork loses, and keeps the whole column of a row group
        options |= {"pre_buffer": False, "page_checksum_verification": True}
        options["metadata"], number = footer.of_chunk(group, column)
        location = self._location(path)
        if is_remote(location):
            file = RemoteFile(location, self._storage_options, footer.size, self.config.timeout_s)
            return pq.ParquetFile(file, **options), number
        if "://" in location:
            location = filesystem_of(location, {})[1]
        return pq.ParquetFile(location, **options), number

    def _location(self, path: str) -> str:
        """The parquet file that is read for one of the source's files."""
        return path

    def _read_footers(self, paths: Sequence[str]) -> list[Footer | str]:
        columns = (self.config.text_column, "id")
        return read_footers(paths, self._storage_options, columns, self.config.timeout_s)


def _take(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Array]:
    """The next rows of a stream of one column. Raises Interrupted: there may be millions to pass over."""
    while rows > 0:
        check_interrupted()
        batch = next(batches, None)
        if batch is None:
            raise pa.ArrowInvalid(f"its row group ends {rows} rows too early")
        rows -= batch.num_rows
        yield batch.column(0)


def to_rows(column: pa.ChunkedArray | pa.Array) -> list[Document | BadRow | None]:
    """A text column's values; one that is not UTF-8 is a BadRow."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not _is_text(column.type):
        return [_decoded(value) for value in column.to_pylist()]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> Document | BadRow | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return BadRow("not_utf8")


def check_text_column(config: DataConfig, schema: pa.Schema, path: str) -> None:
    """Raises UserError where `data.text_column` is missing, there twice, or holds no text.

    Bytes are text that is not marked as such, and a column of nulls has only empty documents.
    """
    column = config.text_column
    count = schema.names.count(column)
    if count != 1:
        what = f"{path} has the columns {', '.join(schema.names)}"
        hint = f": give each a name of its own, as {column} is there {count} times" if count else ""
        raise UserError(
            f"data.text_column is {column!r}, but {what}{hint or did_you_mean(column, schema.names)}"
        )
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (_is_text(kind) or _is_bytes(kind) or pa.types.is_null(kind)):
        raise UserError(f"data.text_column is {column!r}, but that column of {path} holds {kind}, not text")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
