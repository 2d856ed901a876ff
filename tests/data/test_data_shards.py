"""How rows become shards: large sources as ever, small ones so that all of them can be trained on."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import Corpus, DataConfig, LaneLoader, check_lanes, lanes_of, open_data, open_source, open_tokenizer
from data.sources import Source, jsonl
from data.sources.documents import RowGroup, cut_into_shards
from model.errors import UserError

MIB = 2**20
FINEWEB = Path(__file__).resolve().parents[3] / "shared" / "data" / "fineweb"


def cut(*groups: tuple[int, int]) -> tuple[list[list[int]], int]:
    """The rows of each group's shards, of groups of so many rows and bytes, and how many are a window."""
    of_file = (RowGroup("a", number, *group) for number, group in enumerate(groups))
    shards, per_window = cut_into_shards(of_file, sum(rows for rows, _ in groups))
    assert [shard.index for shard in shards] == list(range(len(shards)))
    sizes: list[list[int]] = [[] for _ in groups]
    for shard in shards:
        assert shard.first_row == sum(sizes[shard.group])
        sizes[shard.group].append(shard.rows)
    assert [sum(rows) for rows in sizes] == [rows for rows, _ in groups]
    return sizes, per_window


def test_a_large_source_has_the_shards_that_it_always_had() -> None:
    fineweb = [(1000, 3 * MIB)] * 1050 + [(412, MIB)]
    assert cut(*fineweb) == ([[1000]] * 1050 + [[412]], 1)
    one_group = [(1_050_300, 3_000 * MIB)]
    assert cut(*one_group) == ([[1000] * 1050 + [300]], 1)
    uneven = [(1500, 3 * MIB), (40, 1000)] * 700
    assert cut(*uneven) == ([[1000, 500], [40]] * 700, 1)


def test_a_small_source_has_a_shard_for_each_document() -> None:
    assert cut((20, 60_000)) == ([[1] * 20], 20)
    assert cut((100, MIB), (28, MIB)) == ([[1] * 100, [1] * 28], 100)
    assert cut((0, 0), (2, 10)) == ([[], [1] * 2], 2)


def test_a_source_between_has_about_a_hundred_shards_of_one_size() -> None:
    sizes, per_window = cut(*[(1000, 3 * MIB)] * 10)  # 79 rows of 10,000 would be 128 shards
    assert sizes == [[77] * 12 + [76]] * 10 and per_window == 12
    sizes, per_window = cut((1024, MIB))
    assert sizes == [[8] * 128] and per_window == 125
    assert cut(*[(64, MIB // 8)] * 98) == ([[64]] * 98, 1), "enough as they are"


def test_long_texts_make_shards_of_about_eight_mebibytes() -> None:
    sizes, per_window = cut(*[(1000, 100 * MIB)] * 2000)
    assert set(map(tuple, sizes)) == {tuple([84] * 11 + [76])} and per_window == 1
    assert cut(*[(1000, 9 * MIB)] * 2000)[0][0] == [1000], "a little more is no reason to cut"
    assert cut((3, 60 * MIB)) == ([[1] * 3], 1), "no document is cut"


def write_lines(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def all_read(source: Source) -> list[object]:
    return [document for shard in source.shards for document in source.read(shard).kept]


@pytest.mark.parametrize("form", ["parquet", "json lines", "csv"])
def test_a_thousand_documents_of_any_form_make_64_lanes(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "JSONL_DIR", tmp_path / "converted")
    texts = [f"document {number}" for number in range(1000)]
    (tmp_path / "in").mkdir()
    if form == "parquet":
        pq.write_table(pa.table({"text": texts}), tmp_path / "in" / "a.parquet")
    elif form == "json lines":
        write_lines(tmp_path / "in" / "a.jsonl", texts)
    else:
        (tmp_path / "in" / "a.csv").write_text("text\n" + "\n".join(texts) + "\n")
    corpus, validation = open_data(DataConfig(source=str(tmp_path / "in"), tokenizer="bytes"))
    assert [shard.rows for shard in corpus.source.shards] == [8] * 125 and all_read(corpus.source) == texts
    assert lanes_of(DataConfig(), corpus) == 64 and corpus.source.notes == []
    assert len(corpus.shards) == 113 and len(validation.bytes) == 96


def test_the_lanes_are_the_largest_power_of_two_that_fits_and_are_said(tmp_path: Path) -> None:
    for documents, lanes, note in (
        (2, 1, "data.lanes: 1, as the source has 1 shard to train on."),
        (20, 16, "data.lanes: 16, as the source has 18 shards to train on."),
        (70, 32, "data.lanes: 32, as the source has 63 shards to train on."),
        (72, 64, None),
    ):
        pq.write_table(pa.table({"text": ["one text"] * documents}), tmp_path / "a.parquet")
        config = DataConfig(source=str(tmp_path / "a.parquet"), tokenizer="bytes")
        corpus, validation = open_data(config)
        assert lanes_of(config, corpus) == lanes
        assert corpus.source.notes == ([note] if note else [])
        assert len(validation.bytes) == max(1, documents // 10)
        assert open_data(DataConfig(source=config.source, tokenizer="bytes", lanes=1))[0].source.notes == []


def test_processes_that_cannot_share_the_lanes_get_a_number(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one text"] * 20}), tmp_path / "a.parquet")
    config = DataConfig(source=str(tmp_path / "a.parquet"), tokenizer="bytes")
    corpus, _ = open_data(config)
    check_lanes(config, corpus, 8)
    with pytest.raises(UserError, match=r"^3 processes cannot share evenly the 16 lanes .* to 18$"):
        check_lanes(config, corpus, 3)
    check_lanes(DataConfig(lanes=18), corpus, 3)
    with pytest.raises(UserError, match=r"18 shards .* too few for 32 processes: start 16 of them"):
        check_lanes(config, corpus, 32)
    with pytest.raises(UserError, match=r"has 18 shards to train on: set data\.lanes to 18 or less"):
        check_lanes(DataConfig(lanes=19), corpus, 1)


def test_lanes_of_one_document_read_each_once_an_epoch(tmp_path: Path) -> None:
    """Epochs are shorter than a block: each lane's tokens are its documents of epoch after epoch."""
    texts = [f"<{number}>" for number in range(20)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    config = DataConfig(source=str(tmp_path / "a.parquet"), tokenizer="bytes", workers=0)
    corpus, _ = open_data(config)
    loader = LaneLoader(corpus, config, block_size=199, micro_batch=16)
    tokens, cursors = next(loader)
    read = Counter(
        document
        for row in tokens.numpy()
        for document in bytes(np.where(row == 256, 10, row).astype(np.uint8)).decode().split("\n")[:-1]
    )
    assert read.keys() == set(texts[:18])
    epochs = [cursor.epoch for cursor in cursors.values()]
    assert min(epochs) >= 20 and min(read.values()) >= min(epochs)
    resumed = LaneLoader(corpus, config, block_size=199, micro_batch=16, first_sequence=16, cursors=cursors)
    assert next(resumed)[0].tolist() == next(loader)[0].tolist()


def test_small_shards_of_a_row_group_decode_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"document {number}" for number in range(1000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=500)
    config = DataConfig(source=str(tmp_path / "a.parquet"), tokenizer="bytes", workers=0, lanes=4)
    source = open_source(config, open_tokenizer("bytes"))
    decoded = []
    read_row_group = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, **options: object) -> pa.Table:
        decoded.append(group)
        return read_row_group(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    assert all_read(source) == texts and len(decoded) == 2
    corpus = Corpus(source, open_tokenizer("bytes"), source.shards)
    loader = LaneLoader(corpus, config, block_size=63, micro_batch=4)
    for _ in range(40):  # one epoch of 250 documents of about 13 bytes in each lane
        next(loader)
    assert len(decoded) <= 2 + 8, "at most twice for each lane's half of a row group"


def test_documents_of_small_shards_are_shuffled(tmp_path: Path) -> None:
    texts = [f"{number:03}" for number in range(200)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    config = DataConfig(source=str(tmp_path / "a.parquet"), tokenizer="bytes", workers=0, lanes=2)
    source = open_source(config, open_tokenizer("bytes"))
    corpus = Corpus(source, open_tokenizer("bytes"), source.shards)
    tokens, _ = next(LaneLoader(corpus, config, block_size=399, micro_batch=2))
    for row in tokens.numpy():
        order = [int(bytes(row[at : at + 3].astype(np.uint8))) for at in range(0, 400, 4)]
        assert len(set(order)) == 100
        assert sum(after == before + 1 for before, after in pairwise(order)) < 10


def test_the_reserved_documents_are_the_last_that_the_tokens_allow(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(100, 200)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    tokens_each = len(open_tokenizer("gpt2").encode_document(texts[0]))
    config = DataConfig(source=str(tmp_path / "a.parquet"), validation_tokens=5 * tokens_each)
    corpus, validation = open_data(config)
    assert len(validation.bytes) == 5 and sum(shard.rows for shard in corpus.shards) == 95
    one, held_out = open_data(DataConfig(source=write_lines(tmp_path / "two.jsonl", ["a", "b"])))
    assert all_read(one.source)[: len(one.shards)] == ["a"] and held_out.bytes.tolist() == [1]


@pytest.mark.skipif(not FINEWEB.is_dir(), reason="needs the 20 rows of FineWeb")
def test_twenty_rows_of_fineweb_are_trained_on_and_held_out() -> None:
    corpus, validation = open_data(config := DataConfig(source=str(FINEWEB)))
    assert len(corpus.source.shards) == 20 and len(corpus.shards) == 18 and len(validation.bytes) == 2
    assert lanes_of(config, corpus) == 16
