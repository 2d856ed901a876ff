"""A document that its tokenizer fails on is a bad one, wherever it is read: counted or named by its place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import DataConfig, LaneLoader, open_data, open_source, open_tokenizer
from data.stats import main as stats
from data.stats import measure
from data.tokenize_source import tokenize_source
from data.tokenizer import ByteTokenizer
from model.errors import UserError
from tests.data.test_data_validation import write_documents

TEXTS = [f"Document number {number}." for number in range(40)]
TEXTS[17] = "Here is an unspeakable one."
PLACE = (
    r"document 1 of part 4 of .*a\.parquet makes the tokenizer fail: mend it, or set data\.on_bad_document"
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A source of which the tokenizer fails on one document, in training."""
    encode = ByteTokenizer._encode

    def fail(self: ByteTokenizer, text: str) -> np.ndarray:
        if "unspeakable" in text:
            raise RuntimeError("it fails")
        return encode(self, text)

    monkeypatch.setattr(ByteTokenizer, "_encode", fail)
    write_documents(tmp_path / "in" / "a.parquet", TEXTS, 4)
    return DataConfig(source=str(tmp_path / "in"), tokenizer="bytes", validation_tokens=1, lanes=1, workers=0)


def read_epoch(config: DataConfig) -> tuple[bytes, int]:
    """The text of a little more than an epoch, and how often the document was counted."""
    corpus, _ = open_data(config)
    loader = LaneLoader(corpus, config, block_size=63, micro_batch=1)
    tokens = np.concatenate([next(loader)[0].numpy().ravel() for _ in range(16)])
    return tokens[tokens < 256].astype(np.uint8).tobytes(), loader.bad["not_tokenizable"]


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("cached", [False, True])
def test_it_is_skipped_and_counted_or_named(
    config: DataConfig, tmp_path: Path, packing: str, cached: bool
) -> None:
    config = replace(config, packing=packing, cache_dir=str(tmp_path / "cache") if cached else None)  # type: ignore[arg-type]
    for _ in range(2):  # with a cache the second time from there
        text, count = read_epoch(config)
        assert b"Document number 16." in text and b"Document number 18." in text and b"speakable" not in text
        assert count >= 1
    with pytest.raises(UserError, match=PLACE):
        read_epoch(replace(config, on_bad_document="stop"))


def test_its_place_is_that_in_the_file_where_rows_before_it_are_bad(config: DataConfig) -> None:
    texts = [*TEXTS[:16], "", *TEXTS[16:]]
    write_documents(Path(config.source) / "a.parquet", texts, 4)
    with pytest.raises(UserError, match=r"document 0 of part 4 of .* has no text"):
        read_epoch(replace(config, on_bad_document="stop"))
    source = open_source(config, open_tokenizer("bytes"))
    source.config = replace(config, on_bad_document="stop")
    with pytest.raises(UserError, match=r"document 2 of part 4 of .*a\.parquet makes the tokenizer fail"):
        source.leave_out(TEXTS[17], source.shards, "not_tokenizable")


def test_it_is_left_out_of_token_shards_and_counted_there(config: DataConfig, tmp_path: Path) -> None:
    tokenizer = open_tokenizer("bytes")
    manifest = tokenize_source(open_source(config, tokenizer), config, tokenizer, str(tmp_path / "out"), 1)
    assert manifest["documents"] == 39 and manifest["bad"] == {"not_tokenizable": 1}
    assert manifest["text_bytes"] == sum(len(text) for text in TEXTS if "unspeakable" not in text)
    stop = replace(config, on_bad_document="stop")
    with pytest.raises(UserError, match=PLACE):
        tokenize_source(open_source(stop, tokenizer), stop, tokenizer, str(tmp_path / "other"), 1)


def test_statistics_count_it(config: DataConfig, tmp_path: Path) -> None:
    tokenizer = open_tokenizer("bytes")
    figures = measure(open_source(config, tokenizer), tokenizer)
    assert figures["documents"] == 39 and figures["bad_documents"] == {"not_tokenizable": 1}
    stop = replace(config, on_bad_document="stop")
    with pytest.raises(UserError, match=PLACE):
        measure(open_source(stop, tokenizer), tokenizer)


def test_it_cannot_be_held_out(config: DataConfig, tmp_path: Path) -> None:
    write_documents(tmp_path / "held.parquet", ["An unspeakable one.", "Held out."], 2)
    config = replace(config, validation_source=str(tmp_path / "held.parquet"), validation_tokens=1000)
    _, validation = open_data(config)
    assert validation.bytes.tolist() == [len("Held out.")]
    with pytest.raises(UserError, match=r"document 0 of part 0 of .*held\.parquet makes the tokenizer fail"):
        open_data(replace(config, on_bad_document="stop"))


def test_a_million_spaces_are_read_like_any_document(tmp_path: Path) -> None:
    """The whole way, which ended at this document at every restart."""
    texts = [f"document {number} says something short about the weather. " * 5 for number in range(40)]
    texts[3] = "a table that lost its borders:" + " " * 1_000_000 + "end"
    write_documents(tmp_path / "a.parquet", texts, 5)
    config = DataConfig(source=str(tmp_path / "a.parquet"), validation_tokens=100, lanes=1, workers=0)
    source = open_source(config, open_tokenizer("gpt2"))
    figures = measure(source, open_tokenizer("gpt2"))
    assert figures["documents"] == 40 and figures["bad_documents"] == {}
    assert figures["longest_run"]["length"] == 999_999
    assert stats([config.source]) == 0
