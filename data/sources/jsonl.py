"""JSON lines, plain or compressed, here or remote: turned into parquet once and then read as that.

A line becomes a row, in order; one that holds no text becomes a row that says why. Blank lines are left out.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from model.errors import UserError
from model.files import write_whole

from ..config import DataConfig
from ..files.hashes import content_hashes
from ..files.json_rows import JsonRows, Row
from ..files.versions import remote_version
from ..parallel import default_workers, in_processes, side_by_side
from .content import content_of, late_bar
from .documents import BAD_REASONS, ROWS_PER_SHARD, SHARD_TEXT_BYTES, BadRow, Document, Shard
from .network import filesystem_of, with_retries
from .parquet import ParquetSource
from .places import is_remote
from .remote import Footer, read_footers

JSONL_DIR = Path(
    os.environ.get("NORMLAB_JSONL_DIR") or Path(__file__).resolve().parents[2] / ".cache" / "jsonl"
)

FORMAT = 2  # of the converted files: a file of another is converted again
REQUESTS_AT_ONCE = 16
# names that no text column has
_PROBLEM, _LINE = "normlab_problem", "normlab_line"
_ENDING = b"normlab_ending"


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
        losses = [loss for job in self._jobs.values() if (loss := _loss(job))]
        if losses and config.on_bad_document == "stop":
            raise UserError(f"data.source: {losses[0]}: mend the file, or set data.on_bad_document to skip")
        super().__init__(config, paths, storage_options, revision)
        self.notes += [f"data.source: {loss}." for loss in losses]

    def _location(self, path: str) -> str:
        return str(self._jobs[path].target)

    def _read_footers(self, paths: Sequence[str]) -> list[Footer | str]:
        columns = (self.config.text_column, "id", _PROBLEM, _LINE)
        footers = read_footers([self._location(path) for path in paths], {}, columns, self.config.timeout_s)
        return [
            footer if isinstance(footer, str) else footer.standing_for(job.size, job.version)
            for footer, job in zip(footers, map(self._jobs.__getitem__, paths), strict=True)
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
    version: str
    target: Path


def _convert_all(
    config: DataConfig, paths: Sequence[str], storage_options: dict[str, Any]
) -> dict[str, "_Job"]:
    """What was done for each path. One process converts at a time, the others find what it made."""
    hashes = content_hashes([path for path in paths if not is_remote(path)])
    jobs = side_by_side(
        lambda path: _job(path, storage_options, config, hashes.get(path)), paths, REQUESTS_AT_ONCE
    )
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


def _job(path: str, storage_options: dict[str, Any], config: DataConfig, content_hash: str | None) -> _Job:
    filesystem, location = filesystem_of(path, storage_options)
    info = with_retries(lambda: filesystem.info(location), path, config.timeout_s, opening=True)
    if info["size"] is None:
        raise UserError(f"data.source: the server of {path} does not say its size: download the file")
    version = content_hash or remote_version(path, info)
    assert version is not None
    key = hashlib.sha256(json.dumps([FORMAT, path, version, config.text_column]).encode()).hexdigest()
    name = os.path.basename(path).partition("?")[0][:100]
    target = JSONL_DIR / f"{name}-{key[:16]}.parquet"
    return _Job(path, storage_options, config.text_column, config.timeout_s, info["size"], version, target)


def _run(jobs: Sequence[_Job]) -> None:
    if len(jobs) == 1:
        _convert(jobs[0], bar=True)
        return
    done = in_processes(lambda job: [_convert(job)], jobs, default_workers())
    for _ in late_bar(done, "JSON lines", len(jobs), unit="file"):
        pass


def _convert(job: _Job, bar: bool = False) -> Path:
    """Writes `job.target`, which is complete or absent, and gives it."""
    content = content_of(job.path, job.storage_options, job.size, bar, job.timeout_s)
    rows = JsonRows(job.path, content, job.text_column)
    write_whole(job.target, lambda partial: _write_rows(rows, job.text_column, partial))
    return job.target


def _write_rows(rows: JsonRows, text_column: str, path: Path) -> None:
    columns = {"id": pa.string()} | {text_column: pa.string(), _PROBLEM: pa.string(), _LINE: pa.int64()}
    schema = pa.schema(columns)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for group in _groups(rows):
            texts, ids, problems, lines = map(list, zip(*group, strict=True))
            values = {"id": ids} | {text_column: texts, _PROBLEM: problems, _LINE: lines}
            writer.write_table(pa.table(values, schema))
        ending = {"kept": rows.kept, "damaged_at": rows.damaged_at, "is_cut": rows.is_cut}
        writer.add_key_value_metadata({_ENDING: json.dumps(ending)})


def _loss(job: _Job) -> str | None:
    """A sentence where a file lacks or has lost documents; None where it is whole."""
    ending = json.loads(pq.read_metadata(job.target).metadata[_ENDING])
    kept, damaged_at = ending["kept"], ending["damaged_at"]
    if damaged_at is not None and damaged_at < job.size:
        lost = f"about {round(kept * (job.size - damaged_at) / damaged_at):,}" if damaged_at else "all"
        return (
            f"{job.path} is damaged behind {damaged_at:,} of its {job.size:,} bytes: {kept:,} documents were "
            f"read before, and {lost} behind it are lost"
        )
    if damaged_at is not None or ending["is_cut"]:
        what = "its compressed content" if damaged_at is not None else "a line"
        return (
            f"{job.path} ends in the middle of {what}, as a file does that was not copied whole: "
            f"{kept:,} documents were read from it, and all that followed are lost"
        )
    return None


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Row groups: as many rows as a shard has at most."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.text or "")
        if len(group) == ROWS_PER_SHARD or size >= SHARD_TEXT_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
