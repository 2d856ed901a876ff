"""The cache: what was read once is not tokenised again, and no damage or full disk shows in the documents."""

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig, open_tokenizer
from data.cache import CachedSource
from data.parallel import in_processes
from data.sources import BadRow, DamagedShard, Document, ParquetSource, Shard, Source
from model.errors import UserError

ROWS: list[list[Document | BadRow | None]] = [
    ["One text.", None, "Another.", BadRow("not_utf8")],
    ["A third text, which is longer."],
    [None, ""],
]


class Texts(Source):
    """Shards of given rows that count how often each is read."""

    def __init__(self, rows: list[list[Document | BadRow | None]] = ROWS, **options: object) -> None:
        self.rows = rows
        self.reads: Counter[int] = Counter()
        self.is_damaged = False
        shards = [Shard(index, "texts", index, 0, len(part)) for index, part in enumerate(rows)]
        config = DataConfig(source="texts", **options)  # type: ignore[arg-type]
        super().__init__(config, {}, shards, versions={"texts": "of a test"})

    def ids(self, shard: Shard) -> list[str] | None:
        return [f"{shard.index} {row}" for row in range(shard.rows)]

    def _rows(self, shard: Shard) -> list[Document | BadRow | None]:
        self.reads[shard.index] += 1
        if self.is_damaged:
            raise DamagedShard("rotten")
        return self.rows[shard.index]


def cached(source: Source, cache_dir: Path | str, tokenizer: str = "bytes") -> CachedSource:
    return CachedSource(source, open_tokenizer(tokenizer), str(cache_dir))


def read(source: Source) -> list[tuple[list[str], Counter[str]]]:
    found = []
    for shard in source.shards:
        kept, bad = source.read(shard)
        assert all(isinstance(one, np.ndarray) and one[-1] == 256 for one in kept)
        found.append(([open_tokenizer("bytes").decode(one[:-1]) for one in kept], bad))
    return found


EXPECTED = [
    (["One text.", "Another."], Counter(empty=1, not_utf8=1)),
    (["A third text, which is longer."], Counter()),
    ([], Counter(empty=2)),
]


def test_a_shard_is_read_from_the_source_once(tmp_path: Path) -> None:
    source = Texts()
    first = cached(source, tmp_path)
    assert read(first) == EXPECTED and read(first) == EXPECTED
    assert read(cached(source, tmp_path)) == EXPECTED
    assert source.reads == {0: 1, 1: 1, 2: 1}
    assert (first.name, first.shards, first.file_sizes) == (source.name, source.shards, source.file_sizes)
    assert first.fingerprint == source.fingerprint and first.ids(source.shards[0]) == [
        "0 0",
        "0 1",
        "0 2",
        "0 3",
    ]
    assert sorted(os.listdir(first.folder)) == [f"shard_0000000{n}.bin" for n in range(3)]
    assert Path(first.folder).parent == tmp_path


def test_a_damaged_or_foreign_shard_is_made_again(tmp_path: Path) -> None:
    source = Texts()
    read(cached(source, tmp_path))
    shards = sorted(Path(cached(source, tmp_path).folder).iterdir())
    whole = [path.read_bytes() for path in shards]
    shards[0].write_bytes(whole[0][:-1])
    shards[1].write_bytes(whole[1][:1030] + b"!" + whole[1][1031:])
    assert read(cached(source, tmp_path)) == EXPECTED
    assert source.reads == {0: 2, 1: 2, 2: 1}
    assert [path.read_bytes() for path in shards] == whole


def test_what_changes_the_tokens_changes_the_folder(tmp_path: Path) -> None:
    folders = {
        cached(Texts(), tmp_path).folder,
        cached(Texts(), tmp_path, "gpt2").folder,
        cached(Texts(max_document_bytes=10), tmp_path).folder,
        cached(Texts(text_column="page"), tmp_path).folder,
    }
    assert len(folders) == 4
    assert cached(Texts(seed=5, on_bad_document="stop"), tmp_path).folder in folders


def test_a_shard_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    source = Texts()
    source.is_damaged = True
    unreadable = [([], Counter(unreadable=rows)) for rows in (4, 1, 2)]
    assert read(cached(source, tmp_path)) == unreadable
    source.is_damaged = False
    assert read(cached(source, tmp_path)) == EXPECTED


def test_a_bad_document_stops_the_run_from_the_cache_too(tmp_path: Path) -> None:
    read(cached(Texts(), tmp_path))
    source = cached(Texts(on_bad_document="stop"), tmp_path)
    with pytest.raises(UserError, match="document 1 of part 0 of texts has no text"):
        source.read(source.shards[0])
    assert len(source.read(source.shards[1]).kept) == 1


def test_a_full_disk_is_said_once_and_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = cached(Texts(), tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with caplog.at_level(logging.WARNING):
        assert read(source) == EXPECTED
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text and os.listdir(source.folder) == []


def test_a_folder_that_cannot_be_made_is_a_mistake_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        cached(Texts(), tmp_path / "file")
    message = str(caught.value)
    assert (
        message.startswith("data.cache_dir is '") and "cannot be written" in message and "\n" not in message
    )


def test_a_file_that_is_edited_at_its_old_size_is_read_again(tmp_path: Path) -> None:
    def opened() -> CachedSource:
        path = str(tmp_path / "a.parquet")
        source = ParquetSource(DataConfig(source=path), [path])
        return cached(source, tmp_path / "cache")

    for text in ("one", "two"):
        pq.write_table(pa.table({"text": [text]}), tmp_path / "a.parquet", compression="none")
        assert read(opened()) == [([text], Counter())]
    assert opened().folder == opened().folder and len(os.listdir(tmp_path / "cache")) == 2


def test_the_notes_of_a_source_and_its_place_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Texts()
    source.notes.append("A note.")
    monkeypatch.chdir(tmp_path)
    by_cache = cached(source, "cache")
    monkeypatch.chdir("/")
    assert read(by_cache) == EXPECTED and by_cache.notes == ["A note."]
    assert len(list((tmp_path / "cache").glob("*/*.bin"))) == 3


def test_several_processes_may_fill_one_folder(tmp_path: Path) -> None:
    source = cached(Texts([[f"Text {n}. " * 200] for n in range(20)]), tmp_path)

    def read_all(_: int) -> list[list[str]]:
        return [[document.tobytes().hex() for document in source.read(shard).kept] for shard in source.shards]  # type: ignore[union-attr]

    found = list(in_processes(read_all, [0, 1, 2, 3], 4))
    assert len(found) == 80 and len({tuple(one) for one in found}) == 20
    assert len(os.listdir(source.folder)) == 20
