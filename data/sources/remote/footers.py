"""Footers of parquet files: each read once, and only the places of the columns that are needed kept.

A footer of FineWeb's has 9 MB, most of it statistics. What is kept of one makes a footer of its own for a row
group, from which pyarrow reads that row group alone. Of remote files it is kept on disk too.
"""

import base64
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from .thrift import END, I32, Encoded, Field, encode_fields

MAGIC = b"PAR1"
CHECKSUM_BYTES = 16
# numbers of parquet's definition (parquet.thrift); what is not here is left to the whole footer
_KINDS = {"INT32": 1, "INT64": 2, "BYTE_ARRAY": 6}
_MEANINGS = {"NONE": None, "UTF8": 0}
_CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6}
_ENCODINGS = {"PLAIN": 0, "PLAIN_DICTIONARY": 2, "RLE": 3, "BIT_PACKED": 4, "DELTA_BINARY_PACKED": 5} | {
    "DELTA_LENGTH_BYTE_ARRAY": 6,
    "DELTA_BYTE_ARRAY": 7,
    "RLE_DICTIONARY": 8,
}
WHOLE_FOOTERS_KEPT = 4
"""Parsed at a time, of files whose footer cannot be cut."""


class _Column(NamedTuple):
    """A column that is kept, in the numbers of parquet's definition."""

    name: str
    kind: int
    meaning: int | None
    required: bool
    encodings: list[int]


class _Chunk(NamedTuple):
    """Where a column of a row group lies."""

    codec: int
    values: int
    uncompressed: int
    compressed: int
    data: int
    dictionary: int  # 0 where it has none


@dataclass(frozen=True, eq=False)
class Footer:
    """What is kept of a footer.

    Attributes:
        schema: All of the file's columns.
        size: The file's bytes.
        counts: Rows and uncompressed bytes of text by row group, (2, groups) int64.
        created_by: The program that wrote the file, whose mistakes pyarrow knows.
        columns: The columns that can be read.
        chunks: Their `_Chunk`s, (columns, groups, 6) int64.
        whole: The footer itself, where it cannot be cut; then there are no `columns`.
        version: What tells the file's content, where the storage says it; it is not kept.
    """

    schema: pa.Schema
    size: int
    counts: np.ndarray
    created_by: str
    columns: tuple[_Column, ...]
    chunks: np.ndarray
    whole: bytes = b""
    version: str | None = None

    @property
    def rows(self) -> list[int]:
        """By row group."""
        return self.counts[0].tolist()

    @property
    def text_bytes(self) -> list[int]:
        """Uncompressed, by row group."""
        return self.counts[1].tolist()

    def standing_for(self, size: int, version: str | None) -> "Footer":
        """The same of a file that stands for one of another size and version."""
        return replace(self, size=size, version=version)

    def of_chunk(self, group: int, column: str) -> tuple[pq.FileMetaData, int]:
        """A footer that pyarrow reads a column of a row group with, and the row group's number in it."""
        if self.whole:
            return _parsed(self.whole), group
        place, begin, about, end = self._around_chunks[column]
        chunk = _Chunk(*self.chunks[place, group].tolist())
        rows = int(self.counts[0, group])
        fields = (
            Field(4, I32(chunk.codec)),
            Field(5, chunk.values),
            Field(6, chunk.uncompressed),
            Field(7, chunk.compressed),
            Field(9, chunk.data),
            Field(11, chunk.dictionary or None),
        )
        column_metadata = Encoded(about + encode_fields(fields, 3) + END)
        columns = [(Field(2, chunk.data), Field(3, column_metadata))]
        row_group = (Field(1, columns), Field(2, chunk.uncompressed), Field(3, rows))
        footer = begin + encode_fields((Field(3, rows), Field(4, [row_group])), 2) + end
        return parse(footer + len(footer).to_bytes(4, "little") + MAGIC), 0

    @functools.cached_property
    def _around_chunks(self) -> dict[str, tuple[int, bytes, bytes, bytes]]:
        """By column: its place here, and what is the same in the footers of all its chunks, before their
        numbers of rows, before their numbers of values, and after them."""
        return {
            column.name: (place, *self._around_chunk(column)) for place, column in enumerate(self.columns)
        }

    def _around_chunk(self, column: _Column) -> tuple[bytes, bytes, bytes]:
        root = (Field(4, "schema"), Field(5, I32(1)))
        leaf = (
            Field(1, I32(column.kind)),
            Field(3, I32(0 if column.required else 1)),
            Field(4, column.name),
            Field(6, None if column.meaning is None else I32(column.meaning)),
        )
        about = (
            Field(1, I32(column.kind)),
            Field(2, [I32(encoding) for encoding in column.encodings]),
            Field(3, [column.name]),
        )
        schema = pa.schema([self.schema.field(column.name).remove_metadata()])
        pair = (Field(1, "ARROW:schema"), Field(2, base64.b64encode(schema.serialize())))
        end = (Field(5, [pair]), Field(6, self.created_by or None))
        begin = (Field(1, I32(2)), Field(2, [root, leaf]))
        return encode_fields(begin, 0), encode_fields(about, 0), encode_fields(end, 4) + END

    def to_bytes(self) -> bytes:
        """What `footer_from` reads."""
        about = {"size": self.size, "created_by": self.created_by, "columns": self.columns}
        file = io.BytesIO()
        np.savez_compressed(
            file,
            about=_as_array(json.dumps(about).encode()),
            schema=_as_array(self.schema.serialize().to_pybytes()),
            counts=self.counts,
            chunks=self.chunks,
            whole=_as_array(self.whole),
        )
        content = file.getvalue()
        return xxhash.xxh3_128_digest(content) + content


def footer_from(content: bytes) -> Footer:
    """What `Footer.to_bytes` has written. Raises ValueError where it is damaged."""
    checksum, content = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
    if xxhash.xxh3_128_digest(content) != checksum:
        raise ValueError("it does not fit its checksum")
    arrays = np.load(io.BytesIO(content))
    about = json.loads(arrays["about"].tobytes())
    schema = pa.ipc.read_schema(pa.py_buffer(arrays["schema"].tobytes()))
    columns = tuple(_Column(*column) for column in about["columns"])
    counts, chunks, whole = arrays["counts"], arrays["chunks"], arrays["whole"].tobytes()
    return Footer(schema, about["size"], counts, about["created_by"], columns, chunks, whole)


def parse(content: bytes | pa.Buffer) -> pq.FileMetaData:
    """The end of a file as its footer. Raises pyarrow's errors where it is none."""
    return pq.read_metadata(pa.BufferReader(content))


def cut(metadata: pq.FileMetaData, size: int, wanted: Sequence[str]) -> Footer:
    """What is kept of a footer: the columns `wanted` that are there once, the first of which holds text."""
    schema = metadata.schema.to_arrow_schema().remove_metadata()
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    counts = np.zeros((2, len(groups)), np.int64)
    counts[0] = [group.num_rows for group in groups]
    if wanted[0] in paths:
        text = paths.index(wanted[0])
        counts[1] = [group.column(text).total_uncompressed_size for group in groups]
    names = [name for name in wanted if schema.names.count(name) == 1]
    try:
        columns, chunks = _columns(metadata, groups, [paths.index(name) for name in names])
        footer = Footer(schema, size, counts, metadata.created_by, columns, chunks)
        fits = not groups or all(_gives_field(footer, name) for name in names)
    except (KeyError, ValueError, pa.ArrowException):  # a kind of column or file that this does not know
        fits = False
    if fits:
        return footer
    whole = io.BytesIO()
    metadata.write_metadata_file(whole)
    no_chunks = np.zeros((0, len(groups), len(_Chunk._fields)), np.int64)
    return Footer(schema, size, counts, metadata.created_by, (), no_chunks, whole.getvalue())


def _gives_field(footer: Footer, name: str) -> bool:
    """Whether pyarrow takes a column for the same with a cut footer."""
    schema = footer.of_chunk(0, name)[0].schema.to_arrow_schema()
    return schema.equals(pa.schema([footer.schema.field(name).remove_metadata()]))


def _columns(
    metadata: pq.FileMetaData, groups: Sequence[pq.RowGroupMetaData], numbers: Sequence[int]
) -> tuple[tuple[_Column, ...], np.ndarray]:
    """Raises KeyError for what has no number here, ValueError for a column within another or another file."""
    columns = []
    chunks = np.zeros((len(numbers), len(groups), len(_Chunk._fields)), np.int64)
    for place, number in enumerate(numbers):
        about = metadata.schema.column(number)
        if about.max_repetition_level > 0 or about.max_definition_level > 1 or about.path != about.name:
            raise ValueError(f"{about.path} is nested")
        encodings: set[str] = set()
        for group, row_group in enumerate(groups):
            chunk = row_group.column(number)
            if chunk.file_path:
                raise ValueError(f"{about.path} lies in {chunk.file_path}")
            encodings.update(chunk.encodings)
            chunks[place, group] = _Chunk(
                _CODECS[chunk.compression],
                chunk.num_values,
                chunk.total_uncompressed_size,
                chunk.total_compressed_size,
                chunk.data_page_offset,
                chunk.dictionary_page_offset or 0,
            )
        columns.append(
            _Column(
                about.name,
                _KINDS[about.physical_type],
                _MEANINGS[about.converted_type],
                about.max_definition_level == 0,
                sorted(_ENCODINGS[encoding] for encoding in encodings),
            )
        )
    return tuple(columns), chunks


@functools.lru_cache(WHOLE_FOOTERS_KEPT)
def _parsed(whole: bytes) -> pq.FileMetaData:
    return parse(whole)


def _as_array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)
