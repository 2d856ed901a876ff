"""scripts/tokenize_data.py on a folder that is there already."""

import json
from pathlib import Path

import pytest

from data import open_tokenizer
from data.corpus import Corpus
from data.sources import DamagedShard, ParquetSource, Shard
from model.errors import UserError

from .test_tokenize import assert_same, opened, tokenized, write_parquet


@pytest.mark.usefixtures("large_shards")
def test_what_was_unreadable_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", 0, 300, 100)
    rows = ParquetSource._rows

    def failing(source: ParquetSource, shard: Shard) -> object:
        if shard.index == 1:
            raise DamagedShard("a failing disk")
        return rows(source, shard)

    with monkeypatch.context() as patch:
        patch.setattr(ParquetSource, "_rows", failing)
        out = tokenized(tmp_path / "in", tmp_path / "out")
        assert_same(opened(tmp_path / "in"), opened(out))
    assert json.loads((out / "manifest.json").read_text())["bad"] == {"empty": 12, "unreadable": 100}
    tokenized(tmp_path / "in", out)
    assert json.loads((out / "manifest.json").read_text())["bad"] == {"empty": 16}
    assert_same(opened(tmp_path / "in"), opened(out))


def test_a_folder_of_an_older_normlab_is_trained_on_but_not_written_to(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", 0, 300, 100)
    out = tokenized(tmp_path / "in", tmp_path / "out")
    source = opened(tmp_path / "in")
    for name in ("manifest.json", "source.json"):
        content = json.loads((out / name).read_text()) | {"fingerprint": source.older_fingerprint}
        del content["older_fingerprint"], content["shards_per_window"]
        (out / name).write_text(json.dumps(content))
    tokens = opened(out)
    assert_same(source, tokens)
    assert (
        Corpus(tokens, open_tokenizer("bytes"), tokens.shards).fingerprints[1]
        == (Corpus(source, open_tokenizer("bytes"), source.shards).fingerprints[1])
    ), "so that runs that began on it go on"
    with pytest.raises(UserError, match=r"^--out: .* was made by an older NormLab, which did not note"):
        tokenized(tmp_path / "in", out)
    assert opened(out).shards == tokens.shards
