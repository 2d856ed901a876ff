"""A corpus of short lines in many shards, some of them damaged, for runs that read all of it in 32 steps."""

import os
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data import DataConfig, open_data
from data.lanes import deal
from data.sources import documents
from tests.jobs import lines_of, summary_of, train_main

STEPS = 32
SHARDS, RESERVED, LANES, SEED = 30, 3, 4, 1234
ROWS = 4
"""Of a shard: the run reads each of its lanes' six or seven shards, and some of them again."""
LINES = "\n".join(pydoc_data.topics.topics.values()).split("\n")
TEXTS = list(dict.fromkeys(line for line in LINES if len(line) > 50))[: SHARDS * ROWS]


def config_of(job: Path, **settings: Any) -> DataConfig:
    settings = {"tokenizer": "bytes", "lanes": LANES, "validation_tokens": 4000} | settings
    return DataConfig(source=str(job / "corpus"), **settings)


def train_as_large(words: list[str]) -> int:
    """train.py that takes the corpus for a part of a large one, whose shards are its row groups."""
    documents.SHARDS = 1e-3  # type: ignore[assignment]  # in a process of its own
    return train_main(words)


def first_shards(job: Path, lanes: Sequence[int], seed: int, count: int) -> list[int]:
    """The numbers of those that some lanes read first."""
    corpus, _ = open_data(config_of(job))
    return [shard.index for lane in lanes for shard in deal(corpus, LANES, lane, seed, 0)[:count]]


def damage(file: Path, groups: Sequence[int]) -> None:
    """Overwrite the texts of some row groups, as a failing disk does: the file's size and time stay."""
    stat, content, metadata = file.stat(), bytearray(file.read_bytes()), pq.read_metadata(file)
    for group in groups:
        column = metadata.row_group(group).column(0)
        start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
        content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def error_in(printed: str) -> str:
    """The one sentence about what went wrong."""
    assert "raceback" not in printed, printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, printed
    return errors[0].removeprefix("error: ")


def assert_interrupted(run_dir: Path, sentence: str) -> int:
    """Stopped by its data, with a checkpoint of the last step, which is given."""
    summary = summary_of(run_dir)
    assert (summary["status"], summary["error"]) == ("failed", sentence)
    steps = [line["step"] for line in lines_of(run_dir) if line["kind"] == "train"]
    assert summary["step"] == steps[-1] < STEPS
    assert summary["last_checkpoint"] == f"checkpoints/step_{steps[-1]:08d}"
    return steps[-1]
