"""Parquet files for tests, and what is expected of them."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data import DataConfig
from data.sources import Documents, ParquetSource, Shard

ROWS: list[str | None] = [
    None if row % 500 == 7 else "" if row % 500 == 8 else f"Text {row} é." for row in range(25_000)
]


def write(path: Path, rows: list[str | None] = ROWS, group: int = 25_000, **options: object) -> str:
    table = pa.table({"text": pa.array(rows, pa.string()), "id": [f"id-{row}" for row in range(len(rows))]})
    pq.write_table(table, path, row_group_size=group, **options)
    return str(path)


def opened(*paths: str, **options: object) -> ParquetSource:
    return ParquetSource(DataConfig(source=paths[0], **options), paths)  # type: ignore[arg-type]


def expected(shard: Shard, rows: list[str | None] = ROWS, groups: int = 25_000) -> Documents:
    begin = shard.group * groups + shard.first_row
    part = rows[begin : begin + shard.rows]
    empty = sum(not text for text in part)
    return Documents([text for text in part if text], Counter(empty=empty) if empty else Counter())
