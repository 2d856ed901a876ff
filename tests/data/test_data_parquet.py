"""Parquet: row groups of any size, in any order, from any process; damage is counted or named."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig
from data.sources import Documents, ParquetSource, Shard, parquet
from model.errors import UserError

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
    assert not source._streams and len(source._files) == 1


def test_lanes_inside_one_row_group_do_not_decode_it_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_at = []
    open_file = ParquetSource._open

    def counted(self, path, **options):  # type: ignore[no-untyped-def]
        opened_at.append(path)
        return open_file(self, path, **options)

    source = opened(write(tmp_path / "a.parquet"), lanes=5)
    monkeypatch.setattr(ParquetSource, "_open", counted)
    for step in range(5):
        for lane in range(5):
            shard = source.shards[5 * lane + step]
            assert source.read(shard) == expected(shard)
    assert len(opened_at) == 1 + 5  # the footer, and a stream a lane
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
    to_child, to_parent = os.pipe(), os.pipe()
    child = os.fork()
    wait, give = (to_child[0], to_parent[1]) if child == 0 else (to_parent[0], to_child[1])
    right = False
    try:
        for shard in source.shards[3 if child == 0 else 4 : 25 : 2]:  # they take turns
            right = source.read(shard) == expected(shard, groups=rows)
            os.write(give, b".")
            if not right:
                break
            os.read(wait, 1)
    finally:
        if child == 0:
            os._exit(0 if right else 1)
    assert right
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_every_kind_of_text_column_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(ROWS[:3000], kind)}), tmp_path / "a.parquet")
    source = opened(str(tmp_path / "a.parquet"))
    assert all(source.read(shard) == expected(shard) for shard in source.shards)
    assert source.ids(source.shards[0]) is None


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
    assert message.endswith("): mend the file, or set data.on_bad_document to skip.") and "\n" not in message


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
        assert message.endswith(").") and "\n" not in message


def test_a_file_that_disappears_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ROWS[:300])
    source = opened(path)
    os.remove(path)
    with pytest.raises(FileNotFoundError, match=r"a\.parquet"):
        source.read(source.shards[0])


def test_an_open_file_may_be_removed_and_many_are_not_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / f"{number}.parquet", ROWS[:100]) for number in range(6)]
    monkeypatch.setattr(parquet, "OPEN_FILES", 3)
    source = opened(*paths)
    for shard in source.shards:
        source.read(shard)
    assert list(source._files) == paths[3:]
    os.remove(paths[5])
    assert source.read(source.shards[5]) == expected(source.shards[0])


def test_a_file_that_has_other_rows_than_when_it_was_opened_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ROWS[:300])
    source = opened(path)
    write(tmp_path / "a.parquet", ROWS[:299])
    assert source.read(source.shards[0]) == Documents([], Counter(unreadable=300))


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
