"""What tests of sources share."""

import pytest


@pytest.fixture
def large_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts a tiny source as a large one is cut: a shard is a row group, or a thousand rows of one."""
    monkeypatch.setattr("data.sources.documents.SHARDS", 1e-3)
