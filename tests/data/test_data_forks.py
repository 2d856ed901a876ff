"""A source at a URL in two processes, one forked from the other as data workers are: neither disturbs the
other's connections."""

import gc
import logging
from pathlib import Path

import pytest

from data import DataConfig
from data.sources import ParquetSource
from data.sources.remote import footer_store
from tests.data.servers import ROWS, parquet_bytes, serving
from tests.processes import fork_this, status_of


def test_a_connection_goes_on_when_a_fork_collects_its_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(footer_store, "FOOTERS_DIR", tmp_path)
    with serving() as server, caplog.at_level(logging.WARNING):
        url = f"{server.url}/rows.parquet"
        server.files["/rows.parquet"] = parquet_bytes(500)
        source = ParquetSource(DataConfig(source=url, timeout_s=8), [url])

        def read(number: int) -> None:
            shard = source.shards[number]
            begin = shard.group * 500 + shard.first_row
            assert source.read(shard).kept == ROWS[begin : begin + shard.rows]

        def read_on() -> None:
            read(2)
            gc.collect()  # as it comes by itself, sooner or later
            read(3)

        read(1)
        assert status_of(fork_this(read_on)) == 0
        read(4)  # over the connection that the fork has a copy of
    assert not caplog.records  # a try that failed says so
