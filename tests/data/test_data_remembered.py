"""A run that goes on without the network, from what the cache has of its source."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import Cursor, DataConfig, LaneLoader, open_data
from data.sources import network
from data.sources.remote import footer_store
from model.errors import UserError
from tests.data.servers import Server, serving

TEXTS = [f"Document {number} of the test." for number in range(600)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(network, "RETRY_SECONDS", (0,))
    monkeypatch.setattr(footer_store, "FOOTERS_DIR", tmp_path / "footers")
    file = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), file, row_group_size=20)
    with serving() as server:
        server.files["/rows.parquet"] = file.getvalue()
        yield server


def steps(
    config: DataConfig, count: int, start: int = 0, cursors: dict[int, Cursor] | None = None
) -> tuple[list[object], dict[int, Cursor]]:
    corpus, validation = open_data(config)
    loader = LaneLoader(
        corpus, config, block_size=64, micro_batch=8, first_sequence=8 * start, cursors=cursors
    )
    after: dict[int, Cursor] = dict(cursors or {})
    made: list[object] = [corpus.fingerprint, validation.fingerprint]
    for _ in range(count):
        tokens, moved = next(loader)
        made.append(tokens.tolist())
        after |= moved
    return made, after


def test_a_cached_source_is_read_on_when_it_cannot_be_reached(tmp_path: Path, server: Server) -> None:
    config = DataConfig(source=server.url + "/rows.parquet", lanes=4, workers=0, seed=3)
    uncached, _ = steps(config, 30)
    cached = replace(config, cache_dir=str(tmp_path / "cache"))
    first, cursors = steps(cached, 30)
    assert first == uncached
    everything, _ = steps(cached, 60)
    server.faults = ["drop"] * 10_000
    # not before: a machine that has much to do may answer later than this
    config, cached = (replace(one, timeout_s=0.3) for one in (config, cached))
    again, _ = steps(cached, 60)
    assert again == everything
    resumed, _ = steps(cached, 30, start=30, cursors=cursors)
    assert resumed == everything[:2] + everything[32:]
    (note,) = open_data(cached)[0].source.notes
    assert note.endswith("cannot be reached, so what data.cache_dir has of it is read.")
    with pytest.raises(ConnectionError, match="cannot be read"):
        open_data(config)


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("")
    config = DataConfig(source=server.url + "/rows.parquet", lanes=4, cache_dir=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^data\.cache_dir is '.*file', which cannot be written \("):
        open_data(config)


@pytest.mark.usefixtures("large_shards")
def test_what_the_cache_does_not_have_ends_with_a_sentence(tmp_path: Path, server: Server) -> None:
    cache = str(tmp_path / "cache")
    config = DataConfig(source=server.url + "/rows.parquet", lanes=4, workers=0, cache_dir=cache)
    steps(config, 1)
    server.faults = ["drop"] * 10_000
    with pytest.raises(ConnectionError, match=r"data\.cache_dir does not have its shard"):
        steps(replace(config, timeout_s=0.3), 100)
