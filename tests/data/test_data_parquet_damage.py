"""Damaged parquet: what can be read is read, the rest is counted or named."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.sources import Documents
from model.errors import UserError
from tests.data.parquet_files import ROWS, expected, opened, write

pytestmark = pytest.mark.usefixtures("large_shards")


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (pa.string(), pa.binary()),
        (pa.large_string(), pa.large_binary()),
        (pa.string_view(), pa.binary_view()),
    ],
    ids=str,
)
def test_a_text_that_is_not_utf8_is_left_out_alone(
    tmp_path: Path, kind: pa.DataType, stored: pa.DataType
) -> None:
    text = pa.array([b"one", b"tw\xff\xfeo", None, b"three"], stored).view(kind)
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": text}), path)
    assert pq.read_schema(path).field("text").type == kind
    source = opened(path)
    assert source.read(source.shards[0]) == Documents(["one", "three"], Counter(not_utf8=1, empty=1))
    with pytest.raises(UserError, match=r"document 1 of part 0 of .* is not valid UTF-8: mend it, or set"):
        stop = opened(path, on_bad_document="stop")
        stop.read(stop.shards[0])


def rot(path: str, group: int, size: int = 64) -> None:
    """Overwrite bytes in the middle of the text of a row group."""
    column = pq.read_metadata(path).row_group(group).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    with open(path, "r+b") as file:
        file.seek(begin + column.total_compressed_size // 2)
        file.write(b"\xa5" * size)


def test_a_rotten_row_group_is_left_out_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", group=700)
    rot(path, group=3)
    source = opened(path)
    for shard in source.shards:
        found = source.read(shard)
        assert found == (
            expected(shard, groups=700) if shard.group != 3 else Documents([], Counter(unreadable=700))
        )
    stop = opened(path, on_bad_document="stop")
    with pytest.raises(UserError) as caught:
        stop.read(stop.shards[3])
    message = str(caught.value)
    assert message.startswith(f"data.source: {path} is damaged in part 3, from row 0 on (")
    assert message.endswith("): mend the file, or set data.on_bad_document to skip") and "\n" not in message


def test_what_follows_rot_in_a_large_row_group_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", data_page_size=8192, use_dictionary=False)
    rot(path, group=0, size=16)
    source = opened(path)
    found = [source.read(shard) for shard in source.shards]
    broken = found.index(Documents([], Counter(unreadable=1000)))
    assert 5 < broken < 20
    assert found[:broken] == [expected(shard) for shard in source.shards[:broken]]
    assert found[broken:] == [Documents([], Counter(unreadable=1000))] * (25 - broken)
    monkeypatch.setattr(source, "_open", None)
    assert source.read(source.shards[-1]) == found[-1]
    monkeypatch.undo()
    assert source.read(source.shards[0]) == expected(source.shards[0])
    assert source.ids(source.shards[-1]) == [f"id-{row}" for row in range(24_000, 25_000)]


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_no_rot_ends_a_run_or_shifts_rows(tmp_path: Path, compression: str, version: str) -> None:
    path = write(tmp_path / "a.parquet", ROWS[:900], 300, compression=compression, data_page_version=version)
    whole = Path(path).read_bytes()
    column = pq.read_metadata(path).row_group(1).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    generator = np.random.default_rng(0)
    for trial in range(60):
        broken = bytearray(whole)
        span = 30 if trial % 2 else column.total_compressed_size  # page headers fail in their own ways
        at = begin + int(generator.integers(span))
        broken[at : at + 4] = generator.bytes(4)
        Path(path).write_bytes(broken)
        source = opened(path)
        for shard in source.shards:
            kept, bad = source.read(shard)
            assert len(kept) + bad.total() == 300
            assert shard.group == 1 or (kept, bad) == expected(shard, groups=300)


def test_checksums_are_verified_where_a_file_has_them(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet", ROWS[:300], compression="none", use_dictionary=False, write_page_checksum=True
    )
    broken = Path(path).read_bytes().replace(b"Text 42 ", b"Text 43 ", 1)
    Path(path).write_bytes(broken)
    source = opened(path)
    assert source.read(source.shards[0]) == Documents([], Counter(unreadable=300))


@pytest.mark.parametrize("size", [0, 3, 400, -1])
def test_a_truncated_file_is_left_out_with_a_note_or_named(tmp_path: Path, size: int) -> None:
    good = write(tmp_path / "a.parquet", ROWS[:300])
    bad = write(tmp_path / "b.parquet", ROWS[:300])
    os.truncate(bad, size % os.path.getsize(bad))
    source = opened(good, bad)
    assert [shard.path for shard in source.shards] == [good] and list(source.file_sizes) == [good]
    assert len(source.notes) == 1
    assert source.notes[0].startswith(f"data.source: {bad} is not a readable parquet file (")
    assert source.notes[0].endswith("): it is left out.")
    assert source.fingerprint == opened(good).fingerprint
    for paths, options in ((good, bad), {"on_bad_document": "stop"}), ((bad,), {}):
        with pytest.raises(UserError) as caught:
            opened(*paths, **options)
        message = str(caught.value)
        assert message.startswith(f"data.source: {bad} is not a readable parquet file (")
        assert message.endswith(")") and "\n" not in message


def test_a_file_that_disappears_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ROWS[:300])
    source = opened(path)
    os.remove(path)
    with pytest.raises(FileNotFoundError, match=r"a\.parquet"):
        source.read(source.shards[0])


def test_a_file_of_another_size_than_when_it_was_opened_ends_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ROWS[:300])
    source = opened(path)
    write(tmp_path / "a.parquet", ROWS[:299])
    with pytest.raises(OSError, match=r"a\.parquet had [\d,]+ bytes when the run began, and has [\d,]+ now"):
        source.read(source.shards[0])
