"""Parquet files, here or remote, read a row group at a time with pyarrow.

A partly read `datasets` stream can hang the process when it exits, and opening a file again for each of its
row groups costs more than the row groups: an open file is kept.
"""

import os
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import UserError, did_you_mean

from ..config import DataConfig
from .documents import ROWS_PER_SHARD, BadRow, DamagedShard, Document, Shard, Source
from .network import filesystem_of, is_damage, with_retries

OPEN_FILES = 32
STREAM_BUFFER_BYTES = 2**21


class _Footer(NamedTuple):
    """What is kept of a file's footer: its rows by row group, its columns, and the file's size."""

    rows: list[int]
    schema: pa.Schema
    size: int


class _Place(NamedTuple):
    """A column of a row group."""

    path: str
    group: int
    column: str


class ParquetSource(Source):
    """Row groups of up to `ROWS_PER_SHARD` rows are one shard, larger ones several.

    A large row group is decoded as a stream, one shard after the other; a shard in its middle costs decoding
    what stands before it, unless a stream has come that far.
    """

    decodes_from_group_start = True

    def __init__(
        self,
        config: DataConfig,
        paths: Sequence[str],
        storage_options: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        self._storage_options = storage_options or {}
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        # large row groups that are being read, by the next row
        self._streams: OrderedDict[tuple[_Place, int], Iterator[pa.RecordBatch]] = OrderedDict()
        self._broken: dict[_Place, tuple[int, str]] = {}  # from which row on, and why
        self._process = os.getpid()
        with ThreadPoolExecutor(16) as pool:  # on the hub each footer is a request or two
            footers = list(pool.map(self._footer, paths))
        notes: list[str] = []
        shards: list[Shard] = []
        sizes: dict[str, int] = {}
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
            for group, rows in enumerate(footer.rows):
                for first in range(0, rows, ROWS_PER_SHARD):
                    shards.append(Shard(len(shards), path, group, first, min(ROWS_PER_SHARD, rows - first)))
        if not sizes and notes:
            raise UserError(notes[0].removesuffix(": it is left out."))
        super().__init__(config, sizes, shards, revision)
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
            return with_retries(lambda: self._column(shard, place), shard.path)
        except Exception as error:
            if not is_damage(error):
                raise
            reason = " ".join(str(error).split())
            self._broken[place] = shard.first_row, reason  # what follows cannot be reached either
            raise DamagedShard(reason) from error

    def _column(self, shard: Shard, place: _Place) -> pa.ChunkedArray:
        if self._process != os.getpid():  # two processes must not move one file's position
            self._files.clear()
            self._streams.clear()
            self._process = os.getpid()
        try:
            file = self._file(shard.path)
            if file.metadata.row_group(shard.group).num_rows <= ROWS_PER_SHARD:
                table = file.read_row_group(shard.group, columns=[place.column], use_threads=False)
                values = table.column(place.column)
            else:
                values = self._next_of_stream(shard, place, file.metadata)
        except BaseException:
            self._files.pop(shard.path, None)  # another try opens it again
            raise
        if len(values) != shard.rows:  # which pyarrow does not always see in a damaged page
            raise pa.ArrowInvalid(f"{len(values)} rows came instead of {shard.rows}")
        return values

    def _next_of_stream(self, shard: Shard, place: _Place, metadata: pq.FileMetaData) -> pa.ChunkedArray:
        batches = self._streams.pop((place, shard.first_row), None)
        if batches is None:
            file = self._open(shard.path, metadata=metadata, buffer_size=STREAM_BUFFER_BYTES)
            batches = file.iter_batches(
                ROWS_PER_SHARD, [shard.group], columns=[place.column], use_threads=False
            )
            for _ in _take(batches, shard.first_row):
                pass
        values = pa.chunked_array(_take(batches, shard.rows))
        next_row = shard.first_row + shard.rows
        if next_row < metadata.row_group(shard.group).num_rows:
            self._streams[place, next_row] = batches
            if len(self._streams) > 2 * self.config.lanes:  # one per lane, and what lanes left half read
                self._streams.popitem(last=False)
        return values

    def _file(self, path: str) -> pq.ParquetFile:
        if path not in self._files:
            self._files[path] = self._open(path)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(path)
        return self._files[path]

    def _open(self, path: str, **options: Any) -> pq.ParquetFile:
        # `pre_buffer` reads in threads, which a fork loses, and keeps the whole column of a row group
        options |= {"pre_buffer": False, "page_checksum_verification": True}
        if os.path.isfile(path):
            return pq.ParquetFile(path, **options)
        filesystem, location = filesystem_of(path, self._storage_options)
        # read what pyarrow asks for and no more: it knows where each column lies
        return pq.ParquetFile(filesystem.open(location, "rb", cache_type="none"), **options)

    def _footer(self, path: str) -> _Footer | str:
        """The footer, or what is wrong with the file."""

        def read() -> _Footer:
            filesystem, location = filesystem_of(path, self._storage_options)
            with self._open(path) as file:
                metadata = file.metadata
                rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                return _Footer(rows, file.schema_arrow, filesystem.size(location))

        try:
            return with_retries(read, path, opening=True)
        except Exception as error:
            if is_damage(error):
                return f"{path} is not a readable parquet file ({' '.join(str(error).split())})"
            raise


def _take(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Array]:
    """The next rows of a stream of one column."""
    while rows > 0:
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
