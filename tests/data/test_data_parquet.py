"""Parquet: row groups of any size, in any order, from any process."""

import os
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.sources import Documents, ParquetSource, parquet
from tests.data.parquet_files import ROWS, expected, opened, write
from tests.processes import fork_this, status_of

pytestmark = pytest.mark.usefixtures("large_shards")


@pytest.mark.parametrize("group", [1, 64, 999, 1000, 1001, 2500, 25_000])
def test_shards_cover_every_row_once(tmp_path: Path, group: int) -> None:
    rows = ROWS[:5000] if group > 1 else ROWS[:50]
    source = opened(write(tmp_path / "a.parquet", rows, group))
    assert [shard.index for shard in source.shards] == list(range(len(source.shards)))
    assert all(0 < shard.rows <= 1000 for shard in source.shards)
    assert all(source.read(shard) == expected(shard, rows, group) for shard in source.shards)
    assert sum(shard.rows for shard in source.shards) == len(rows)
    assert [id_ for shard in source.shards for id_ in source.ids(shard) or ()] == [
        f"id-{row}" for row in range(len(rows))
    ]


def test_a_large_row_group_is_decoded_once_when_it_is_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    take = parquet._take

    def counted(batches, rows):  # type: ignore[no-untyped-def]
        decoded.append(rows)
        return take(batches, rows)

    monkeypatch.setattr(parquet, "_take", counted)
    source = opened(write(tmp_path / "a.parquet"))
    for shard in source.shards:
        assert source.read(shard) == expected(shard)
    assert sum(decoded) == len(ROWS)
    assert not source._streams


def test_lanes_inside_one_row_group_do_not_decode_it_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_at = []
    open_file = ParquetSource._open

    def counted(self, path, group, column, **options):  # type: ignore[no-untyped-def]
        opened_at.append(path)
        return open_file(self, path, group, column, **options)

    source = opened(write(tmp_path / "a.parquet"), lanes=5)
    monkeypatch.setattr(ParquetSource, "_open", counted)
    for step in range(5):
        for lane in range(5):
            shard = source.shards[5 * lane + step]
            assert source.read(shard) == expected(shard)
    assert len(opened_at) == 5  # a stream a lane
    for shard in source.shards:  # and those that lanes left are given up
        source.read(shard)
    for index in np.random.default_rng(0).integers(0, 24, 60):
        assert source.read(source.shards[index]) == expected(source.shards[index])
    assert len(source._streams) <= 2 * 5


def test_a_large_row_group_gives_the_same_in_any_order(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.parquet", group=12_500))
    for index in np.random.default_rng(0).integers(0, len(source.shards), 60):
        shard = source.shards[index]
        assert source.read(shard) == expected(shard, groups=12_500)


@pytest.mark.parametrize("rows", [25_000, 500])
def test_a_fork_and_its_parent_read_apart(tmp_path: Path, rows: int) -> None:
    source = opened(write(tmp_path / "a.parquet", group=rows))
    for shard in source.shards[:3]:
        source.read(shard)
    ours, theirs = socket.socketpair()

    def read_in_turn(first: int, mine: socket.socket, other: socket.socket) -> None:
        other.close()  # so that the end of the other process is seen
        with mine:
            for shard in source.shards[first:25:2]:
                assert source.read(shard) == expected(shard, groups=rows)
                mine.send(b".")
                assert mine.recv(1)

    child = fork_this(read_in_turn, 3, theirs, ours)
    read_in_turn(4, ours, theirs)
    assert status_of(child) == 0


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_every_kind_of_text_column_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(ROWS[:3000], kind)}), tmp_path / "a.parquet")
    source = opened(str(tmp_path / "a.parquet"))
    assert all(source.read(shard) == expected(shard) for shard in source.shards)
    assert source.ids(source.shards[0]) is None


def test_no_file_stays_open(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.parquet", ROWS[:100]) for number in range(6)]
    before = len(os.listdir("/proc/self/fd"))
    source = opened(*paths)
    for shard in source.shards:
        source.read(shard)
    assert len(os.listdir("/proc/self/fd")) == before


def test_ids_of_any_type_are_texts_and_null_ones_are_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": [1, None, 3]}), tmp_path / "a.parquet")
    source = opened(str(tmp_path / "a.parquet"))
    assert source.ids(source.shards[0]) == ["1", "3"]
    with_ids = write(tmp_path / "b.parquet", ROWS[:3])
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "c.parquet")
    source = opened(with_ids, str(tmp_path / "c.parquet"))
    assert source.ids(source.shards[0]) is None


def test_too_long_and_empty_documents_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ["é" * 5, "é" * 6, "", None])
    source = opened(path, max_document_bytes=10)
    assert source.read(source.shards[0]) == Documents(["é" * 5], Counter(too_long=1, empty=2))


def test_a_large_row_group_does_not_stay_in_memory(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [generator.bytes(1000).hex() for _ in range(25_000)]  # a column chunk of 50 MB
    path = write(tmp_path / "a.parquet", rows, compression="none", use_dictionary=False)
    source = opened(path)
    before = pa.total_allocated_bytes()
    most = 0
    for shard in source.shards:
        assert len(source.read(shard).kept) == 1000
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 12_000_000
