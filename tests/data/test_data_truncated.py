"""A file that is cut off while a run reads it ends the run, which would else be on another sequence."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig, LaneLoader, open_data, open_source, open_tokenizer
from data.tokenize_source import tokenize_source
from tests.data.servers import ROWS

CONFIG = DataConfig(tokenizer="bytes", lanes=2, prefetch=1, validation_tokens=1000)


def parquet(folder: Path) -> Path:
    file = folder / "rows.parquet"
    pq.write_table(pa.table({"text": ROWS}), file, row_group_size=100)
    return file


def bin_file(folder: Path) -> Path:
    file = folder / "rows.bin"
    numbers = np.random.default_rng(0).integers(0, 256, 2_000_000, dtype=np.uint16)
    numbers[::500] = 256  # ends of documents
    file.write_bytes(numbers.tobytes())
    return file


def token_shard(folder: Path) -> Path:
    made = folder / "shards"
    (folder / "text").mkdir()
    config = replace(CONFIG, source=str(parquet(folder / "text")))
    tokenizer = open_tokenizer("bytes")
    tokenize_source(open_source(config, tokenizer), config, tokenizer, str(made), 1)
    return sorted(made.glob("**/*.bin"))[5]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [parquet, bin_file, token_shard])
def test_a_file_cut_off_while_it_is_read_ends_in_a_sentence(make, workers: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = make(tmp_path)
    source = file.parent if make is token_shard else file
    config = replace(CONFIG, source=str(source), workers=workers)
    corpus, _ = open_data(config)
    loader = LaneLoader(corpus, config, block_size=64, micro_batch=2)
    next(loader)
    whole = file.read_bytes()
    os.truncate(file, len(whole) // 3)
    words = rf"{file} had {len(whole):,} bytes when the run began, and has {len(whole) // 3:,} now: bring it"
    with pytest.raises(OSError, match=words):
        for _ in range(100_000):
            next(loader)
    assert not loader.bad
