"""JSON lines, plain or compressed, here or remote: turned into parquet once and then read as that.

A line becomes a row, in order; one that holds no text becomes a row that says why. Blank lines are left out.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from model.errors import UserError, did_you_mean
from model.files import write_whole

from ..config import DataConfig
from ..parallel import default_workers, in_processes, side_by_side
from .content import content_of, late_bar
from .documents import BAD_REASONS, ROWS_PER_SHARD, BadRow, Document, Shard
from .network import filesystem_of, is_damage, version_of, with_retries
from .parquet import ParquetSource
from .remote import Footer, read_footers

JSONL_DIR = Path(
    os.environ.get("NORMLAB_JSONL_DIR") or Path(__file__).resolve().parents[2] / ".cache" / "jsonl"
)

FORMAT = 1  # of the converted files: a file of another is converted again
REQUESTS_AT_ONCE = 16
LONGEST_LINE_BYTES = 2**28
LARGEST_GROUP_CHARACTERS = 2**28
# names that no text column has
_PROBLEM, _LINE = "normlab_problem", "normlab_line"


class JsonlSource(ParquetSource):
    """A `ParquetSource` of converted files, which `JSONL_DIR` keeps; paths and sizes are the originals'.

    Raises:
        UserError: a file does not hold JSON lines with the text column, or `JSONL_DIR` cannot be written.
    """

    def __init__(
        self,
        config: DataConfig,
        paths: Sequence[str],
        storage_options: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        self._jobs = _convert_all(config, paths, storage_options or {})
        super().__init__(config, paths, storage_options, revision)

    def _location(self, path: str) -> str:
        return str(self._jobs[path].target)

    def _read_footers(self, paths: Sequence[str]) -> list[Footer | str]:
        columns = (self.config.text_column, "id", _PROBLEM, _LINE)
        footers = read_footers([self._location(path) for path in paths], {}, columns, self.config.timeout_s)
        sizes = [self._jobs[path].size for path in paths]
        return [
            footer if isinstance(footer, str) else footer.with_size(size)
            for footer, size in zip(footers, sizes, strict=True)
        ]

    def _rows(self, shard: Shard) -> list[Document | BadRow | None]:
        rows = super()._rows(shard)
        for number, problem in enumerate(self._read(shard, _PROBLEM).to_pylist()):
            if problem is not None and self.config.on_bad_document == "stop":
                line = self._read(shard, _LINE)[number]
                raise UserError(
                    f"data.source: line {line} of {shard.path} {BAD_REASONS[problem]}: "
                    "mend it, or set data.on_bad_document to skip"
                )
            if problem is not None:
                rows[number] = BadRow(problem)
        return rows


class _Job(NamedTuple):
    """A file to convert."""

    path: str
    storage_options: dict[str, Any]
    text_column: str
    timeout_s: float
    size: int
    target: Path


class _Row(NamedTuple):
    """A line of a file as a row of the converted file."""

    text: str | None
    id: str | None
    problem: str | None
    line: int


def _convert_all(
    config: DataConfig, paths: Sequence[str], storage_options: dict[str, Any]
) -> dict[str, "_Job"]:
    """What was done for each path. One process converts at a time, the others find what it made."""
    jobs = side_by_side(lambda path: _job(path, storage_options, config), paths, REQUESTS_AT_ONCE)
    if not all(job.target.exists() for job in jobs):
        try:
            JSONL_DIR.mkdir(parents=True, exist_ok=True)
            with FileLock(JSONL_DIR / "lock"):
                try:
                    _run([job for job in jobs if not job.target.exists()])
                finally:
                    for partial in JSONL_DIR.glob(".*.partial"):  # of a process that was killed
                        partial.unlink()
        except ConnectionError:
            raise
        except OSError as error:
            raise UserError(
                f"data.source: JSON lines cannot be converted in {JSONL_DIR} ({error}): free some space "
                "there, or set NORMLAB_JSONL_DIR to another folder"
            ) from error
    return {job.path: job for job in jobs}


def _job(path: str, storage_options: dict[str, Any], config: DataConfig) -> _Job:
    filesystem, location = filesystem_of(path, storage_options)
    info = with_retries(lambda: filesystem.info(location), path, config.timeout_s, opening=True)
    if info["size"] is None:
        raise UserError(f"data.source: the server of {path} does not say its size: download the file")
    version = version_of(info)
    key = hashlib.sha256(json.dumps([FORMAT, path, version, config.text_column]).encode()).hexdigest()
    name = os.path.basename(path).partition("?")[0][:100]
    target = JSONL_DIR / f"{name}-{key[:16]}.parquet"
    return _Job(path, storage_options, config.text_column, config.timeout_s, info["size"], target)


def _run(jobs: Sequence[_Job]) -> None:
    if len(jobs) == 1:
        _convert(jobs[0], bar=True)
        return
    done = in_processes(lambda job: [_convert(job)], jobs, default_workers())
    for _ in late_bar(done, "JSON lines", len(jobs), unit="file"):
        pass


def _convert(job: _Job, bar: bool = False) -> Path:
    """Writes `job.target`, which is complete or absent, and gives it."""
    write_whole(job.target, lambda partial: _write_rows(_rows(job, bar), job.text_column, partial))
    return job.target


def _write_rows(rows: Iterable[_Row], text_column: str, path: Path) -> None:
    columns = {"id": pa.string()} | {text_column: pa.string(), _PROBLEM: pa.string(), _LINE: pa.int64()}
    schema = pa.schema(columns)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for group in _groups(rows):
            texts, ids, problems, lines = map(list, zip(*group, strict=True))
            values = {"id": ids} | {text_column: texts, _PROBLEM: problems, _LINE: lines}
            writer.write_table(pa.table(values, schema))


def _groups(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """Row groups: a shard each, or less where the texts are so long that they would fill the memory."""
    group: list[_Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.text or "")
        if len(group) == ROWS_PER_SHARD or size > LARGEST_GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _rows(job: _Job, bar: bool) -> Iterator[_Row]:
    """A row for each line that is not blank, and a last one where damage ends the file."""
    columns: list[str] = []  # of the first object
    kinds: set[str] = set()  # of what stands in the text column
    number, beginning = 0, ""
    content = content_of(job.path, job.storage_options, job.size, bar, job.timeout_s)
    try:
        for number, line in enumerate(_lines(job.path, content), start=1):
            if not line.strip():
                continue
            beginning = beginning or repr(line[:40])[1:]
            value = _parsed(line)
            if isinstance(value, dict):
                columns = columns or list(value)
                if job.text_column in value:
                    kinds.add(type(value[job.text_column]).__name__)
            yield _row(value, job.text_column, number)
    except Exception as error:
        if not is_damage(error):
            raise
        yield _Row(None, None, "unreadable", number + 1)
        return
    if beginning and not columns:
        raise UserError(
            f"data.source: {job.path} does not hold one JSON object per line: it begins with {beginning}"
        )
    if columns and not kinds:
        raise UserError(
            f"data.text_column is {job.text_column!r}, but {job.path} has the columns "
            f"{', '.join(columns)}{did_you_mean(job.text_column, columns)}"
        )
    if kinds and kinds.isdisjoint({"str", "NoneType"}):
        raise UserError(
            f"data.text_column is {job.text_column!r}, but that column of {job.path} holds "
            f"{', '.join(sorted(kinds))}, not text"
        )


def _row(value: Any, text_column: str, line: int) -> _Row:
    if isinstance(value, BadRow):
        return _Row(None, None, value.reason, line)
    if not isinstance(value, dict) or not isinstance(value.get(text_column, 0), str | None):
        return _Row(None, None, "not_json", line)
    text, id_ = value[text_column], value.get("id")
    id_ = None if id_ is None or not _is_utf8(str(id_)) else str(id_)
    if text is not None and not _is_utf8(text):
        return _Row(None, id_, "not_utf8", line)
    return _Row(text, id_, None, line)


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


def _lines(path: str, content: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends.

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
            yield b"".join((*parts, end))
            parts, size = [], 0
        if size <= LONGEST_LINE_BYTES:
            parts.append(rest)
            size += len(rest)
    if size:
        yield b"".join(parts)
