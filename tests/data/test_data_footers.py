"""Footers: cut to what is read, kept once for all processes of a machine, and right all the same."""

import io
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig, LaneLoader, open_data
from data.sources import ParquetSource
from data.sources.remote import footer_store
from data.sources.remote.footers import Footer, cut, footer_from, parse
from tests.data.servers import Server, serving, texts

pytestmark = pytest.mark.usefixtures("large_shards")

FILES, GROUPS, ROWS_OF_GROUP = 40, 3, 20


def rows_of(file: int) -> list[str]:
    return [f"File {file} has the text {row}, some words long." for row in range(GROUPS * ROWS_OF_GROUP)]


def parquet_file(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def wide_table(kind: pa.DataType = pa.string(), ids: Any = None) -> pa.Table:  # noqa: B008
    """Columns of every form beside the text, with statistics, dictionaries and nulls."""
    rows = [None if row % 7 == 3 else f"Text {row % 50} é" for row in range(500)]
    return pa.table(
        {
            "list": [[1, 2, row] for row in range(500)],
            "struct": [{"text": "no", "deep": [{"id": row}]} for row in range(500)],
            "text": pa.array(rows, kind),
            "date": pa.array(range(500), pa.timestamp("us")),
            "number": np.arange(500.0),
            "id": ids if ids is not None else [f"id-{row}" for row in range(500)],
        }
    )


FORMS: dict[str, tuple[pa.Table, dict[str, Any]]] = {
    "plain": (wide_table(), {}),
    "no compression, no dictionaries": (wide_table(), {"compression": "none", "use_dictionary": False}),
    "gzip": (wide_table(), {"compression": "gzip"}),
    "brotli": (wide_table(), {"compression": "brotli"}),
    "zstd, pages of the second kind": (wide_table(), {"compression": "zstd", "data_page_version": "2.0"}),
    "checksums and small pages": (wide_table(), {"write_page_checksum": True, "data_page_size": 64}),
    "an index": (wide_table(), {"write_page_index": True}),
    "no statistics, an old version": (wide_table(), {"write_statistics": False, "version": "1.0"}),
    "without Arrow's schema": (wide_table(), {"store_schema": False}),
    "large texts": (wide_table(pa.large_string()), {}),
    "views": (wide_table(pa.string_view()), {}),
    "deltas": (
        wide_table(),
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "id": "PLAIN"}},
    ),
    "ids that are numbers": (wide_table(ids=pa.array(range(500), pa.int64())), {}),
    "no ids": (wide_table().drop_columns("id"), {}),
    "bytes": (wide_table(pa.binary()), {}),
    "a column twice": (wide_table().append_column("id", pa.array(range(500))), {}),
    "dictionaries": (wide_table().set_column(2, "text", wide_table()["text"].dictionary_encode()), {}),
}
LEFT_WHOLE: dict[str, tuple[pa.Table, dict[str, Any]]] = {
    "lz4": (wide_table(), {"compression": "lz4"}),
    "ids in a struct": (wide_table(ids=[{"a": row} for row in range(500)]), {}),
    "ids that are dates": (wide_table(ids=pa.array(range(500), pa.timestamp("ms"))), {}),
}


def footer_of(content: bytes, columns: tuple[str, ...] = ("text", "id")) -> Footer:
    """As it is once it was kept."""
    return footer_from(cut(parse(content), len(content), columns).to_bytes())


@pytest.mark.parametrize("form", [*FORMS, *LEFT_WHOLE])
def test_a_row_group_is_the_same_with_a_footer_that_was_cut(form: str) -> None:
    table, options = (FORMS | LEFT_WHOLE)[form]
    content = parquet_file(table, row_group_size=120, **options)
    whole = pq.ParquetFile(io.BytesIO(content))
    footer = footer_of(content)
    assert bool(footer.whole) == (form in LEFT_WHOLE)
    assert footer.schema == whole.schema_arrow.remove_metadata() and footer.size == len(content)
    assert footer.rows == [120, 120, 120, 120, 20]
    assert footer.text_bytes == [
        sum(
            column.total_uncompressed_size
            for column in map(whole.metadata.row_group(group).column, range(whole.metadata.num_columns))
            if column.path_in_schema == "text"
        )
        for group in range(5)
    ]
    for group in range(5):
        for column in [name for name in ("text", "id") if table.column_names.count(name) == 1]:
            metadata, number = footer.of_chunk(group, column)
            file = pq.ParquetFile(io.BytesIO(content), metadata=metadata, page_checksum_verification=True)
            read = file.read_row_group(number, columns=[column]).column(0)
            right = whole.read_row_group(group, columns=[column]).column(0)
            assert read.type == right.type and read.to_pylist() == right.to_pylist()
            batches = list(file.iter_batches(50, [number], columns=[column]))
            assert [value for batch in batches for value in batch.column(0).to_pylist()] == right.to_pylist()


def test_a_required_column_and_an_empty_file() -> None:
    schema = pa.schema([pa.field("text", pa.string(), nullable=False)])
    content = parquet_file(pa.table({"text": ["a", "b"]}, schema))
    metadata, number = footer_of(content).of_chunk(0, "text")
    assert pq.ParquetFile(io.BytesIO(content), metadata=metadata).read_row_group(number).schema == schema
    assert footer_of(parquet_file(pa.table({"text": pa.array([], pa.string())}))).rows in ([], [0])


def test_little_of_a_large_footer_is_kept() -> None:
    table = pa.table({name: ["x" * 1000, "y" * 1000] * 100 for name in ("text", "id", "url", "file_path")})
    content = parquet_file(table, row_group_size=2)
    metadata = parse(content)
    assert metadata.serialized_size > 800_000
    footer = cut(metadata, len(content), ("text", "id"))
    assert footer.chunks.nbytes + footer.counts.nbytes < 15_000
    assert footer.of_chunk(7, "text")[0].serialized_size < 1000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(footer_store, "FOOTERS_DIR", tmp_path / "footers")
    with serving() as server:
        for file in range(FILES):
            table = pa.table({"text": rows_of(file), "more": ["not fetched " * 9] * len(rows_of(file))})
            server.files[f"/{file}.parquet"] = parquet_file(table, row_group_size=ROWS_OF_GROUP)
        yield server


def urls(server: Server) -> list[str]:
    return [f"{server.url}/{file}.parquet" for file in range(FILES)]


def opened(server: Server) -> ParquetSource:
    return ParquetSource(DataConfig(source="u"), urls(server))


def gets(server: Server) -> list[str]:
    """The path of each request since this was asked before that is not about a file's size alone."""
    found = [request.path for request in server.requests if request.method == "GET"]
    server.requests.clear()
    return found


def test_each_footer_is_read_once_and_each_row_group_is_a_request(server: Server) -> None:
    source = opened(server)
    assert sorted(gets(server)) == sorted(f"/{file}.parquet" for file in range(FILES))
    order = np.random.default_rng(0).permutation(len(source.shards))
    found = {int(index): source.read(source.shards[index]).kept for index in order}
    asked = [request for request in server.requests if request.method == "GET"]
    assert len(asked) == len(server.requests) == FILES * GROUPS
    metadata = [pq.read_metadata(io.BytesIO(content)) for content in server.files.values()]
    columns = [one.row_group(group).column(0) for one in metadata for group in range(GROUPS)]
    assert sum(request.sent for request in asked) == sum(one.total_compressed_size for one in columns)
    assert [text for index in sorted(found) for text in found[index]] == [
        text for file in range(FILES) for text in rows_of(file)
    ]


def test_a_second_start_fetches_no_footer(server: Server) -> None:
    first = opened(server)
    gets(server)
    second = opened(server)
    assert not gets(server)
    assert second.fingerprint == first.fingerprint and texts(second) == texts(first)


def start(server: Server, barrier: Any) -> None:
    barrier.wait()
    os._exit(0 if len(opened(server).shards) == FILES * GROUPS else 1)


def test_processes_that_start_together_fetch_each_footer_once(server: Server) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=start, args=(server, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(gets(server)) == sorted(f"/{file}.parquet" for file in range(FILES))


def test_a_file_that_changed_is_fetched_anew(server: Server) -> None:
    opened(server)
    gets(server)
    server.files["/7.parquet"] = parquet_file(pa.table({"text": ["another"] * 5}))
    assert [shard.rows for shard in opened(server).shards if shard.path.endswith("/7.parquet")] == [5]
    assert gets(server) == ["/7.parquet"]


def test_a_footer_that_was_damaged_on_the_disk_is_fetched_anew(server: Server) -> None:
    first = opened(server)
    kept = sorted(footer_store.FOOTERS_DIR.glob("*/*.npz"))
    assert len(kept) == FILES
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    kept[1].write_bytes(b"")
    kept[2].write_bytes(kept[2].read_bytes().replace(b"counts", b"c0unts"))
    kept[3].unlink()
    gets(server)
    assert opened(server).fingerprint == first.fingerprint
    assert len(gets(server)) == 4


def test_a_folder_that_cannot_be_written_is_done_without(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(footer_store, "FOOTERS_DIR", tmp_path / "file" / "footers")
    assert len(opened(server).shards) == FILES * GROUPS
    assert len(gets(server)) == FILES


@pytest.mark.parametrize("workers", [0, 2])
def test_lanes_that_are_opened_side_by_side_give_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    for name, content in server.files.items():
        (tmp_path / "local" / name[1:]).parent.mkdir(exist_ok=True)
        (tmp_path / "local" / name[1:]).write_bytes(content)
    names = "{0..39}.parquet"
    made = []
    read, together, reads = ParquetSource.read, threading.Barrier(4), itertools.count()

    def read_with_others(self: ParquetSource, shard: Any) -> Any:
        beside = threading.current_thread() is not threading.main_thread()
        if beside and shard.path.startswith("http") and next(reads) < 4:
            together.wait(60)  # it needs three others, and no thread comes twice
        return read(self, shard)

    for source in str(tmp_path / "local"), server.url:
        config = DataConfig(source=source, files=names, tokenizer="bytes", lanes=9, workers=workers, seed=5)
        corpus, _ = open_data(config)
        if workers == 0:
            monkeypatch.setattr(ParquetSource, "read", read_with_others)
        loader = LaneLoader(corpus, config, block_size=100, micro_batch=9)
        made.append([next(loader)[0].tolist() for _ in range(40)])
    assert made[0] == made[1]
