"""Copies of validation documents: exact and near ones, as text and as tokens, and what is none."""

import itertools
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Corpus, DataConfig, LaneLoader, Tokenizer, open_data, open_source, open_tokenizer
from data.overlap.copies import Copies, normalised
from data.sources import BadRow, Documents, read_shard, write_shard
from data.tokenize_source import tokenize_source
from model.errors import UserError
from tests.data.test_data_validation import decode, write_documents

HELD_OUT = (
    "“Naïve” readers—the captain's own words—find 2,048 ships at café ﬁve;\nnone turned back before dawn.\n\n"
    "It\u2019s said that they   were patient…"
)
NEAR = {
    "line ends": HELD_OUT.replace("\n", "\r\n"),
    "spaces": "  " + HELD_OUT.replace(" ", "  ").replace("\n\n", "\n") + "\n",
    "other spaces": HELD_OUT.replace(" ", "\u00a0"),
    "quotes": HELD_OUT.replace("“", '"').replace("”", '"').replace("\u2019", "'"),
    "doubled quotes": HELD_OUT.replace("“", "``").replace("”", "''"),
    "dashes": HELD_OUT.replace("—", "--"),
    "decomposed": unicodedata.normalize("NFD", HELD_OUT),
    "compatible": unicodedata.normalize("NFKC", HELD_OUT),
    "invisible": "\ufeff" + HELD_OUT.replace("captain", "cap\u00adtain"),
}
OTHER = {
    "case": HELD_OUT.lower(),
    "a word": HELD_OUT.replace("dawn", "dusk"),
    "the last word": HELD_OUT.replace("patient", "patients"),
    "more": HELD_OUT + " More.",
    "less": HELD_OUT[:-20],
    "punctuation": HELD_OUT.replace(",", ""),
}


def both_ways(copies: Copies, text: str, tokenizer: Tokenizer) -> list[str | None]:
    """How a text is a copy, as text and as tokens."""
    documents = (text, tokenizer.encode_document(text))
    found = [dict(copies.find_among([document], tokenizer)).get(0) for document in documents]
    return [copy and copy.reason for copy in found]


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_near_copies_are_found_as_text_and_as_tokens(name: str) -> None:
    tokenizer = open_tokenizer(name)
    copies = Copies(["Another text that is held out.", HELD_OUT, "short"])
    assert both_ways(copies, HELD_OUT, tokenizer) == ["held_out"] * 2
    for what, text in NEAR.items():
        assert text != HELD_OUT, what
        assert both_ways(copies, text, tokenizer) == ["held_out_near"] * 2, what
    for what, text in OTHER.items():
        assert both_ways(copies, text, tokenizer) == [None] * 2, what
    assert both_ways(copies, " short\n", tokenizer) == ["held_out_near"] * 2
    assert both_ways(copies, "short of it", tokenizer) == [None] * 2
    assert both_ways(Copies([]), HELD_OUT, tokenizer) == [None] * 2


def test_documents_are_found_wherever_they_stand_in_memory() -> None:
    tokenizer = open_tokenizer("gpt2")
    copies = Copies(["Another text that is held out.", HELD_OUT])
    texts = [f"Document {number} is about the number {number * 7}." for number in range(20)]
    texts[0], texts[7], texts[13], texts[19] = NEAR["quotes"], "Short.", HELD_OUT, NEAR["dashes"]
    apart = [tokenizer.encode_document(text) for text in texts]
    begins = np.cumsum([0, *map(len, apart)])
    stream = np.concatenate(apart)
    in_a_row = [stream[begin:end] for begin, end in itertools.pairwise(begins)]
    without_short = [number for number in range(20) if number != 7]
    for documents in (apart, in_a_row, [in_a_row[number] for number in without_short], in_a_row[:1]):
        found = {number: copy.reason for number, copy in copies.find_among(documents, tokenizer)}
        reasons = [copy and copy.reason for copy in (copies.find(one, tokenizer) for one in documents)]
        assert found == {number: reason for number, reason in enumerate(reasons) if reason}
        assert found[0] == "held_out_near" and (len(documents) == 1 or len(found) == 3)


PIECES = st.lists(
    st.sampled_from([
        " ", "  ", "\n", "\r\n", "\t", "'", '"', "“", "”", "\u2019", "``", "-", "—", "--", "\u2013",
        "a", "the", "Zug", "é", "e\u0301", "\u0301", "ﬁ", "fi", "①", "1", "漢", "😀", "…", "...",
        "\uff41", "\u00ad", "\u200b", "\u00b4", "\uff0e", "½", "2,048", "!",
    ]),
    max_size=60,
)  # fmt: skip


@given(pieces=PIECES, spaces=st.lists(st.sampled_from([" ", "\n", "  ", "\u3000"]), min_size=60, max_size=60))
@settings(max_examples=400, deadline=None)
def test_what_has_the_same_normal_form_is_found(pieces: list[str], spaces: list[str]) -> None:
    """Against the definition: whole texts normalised and compared."""
    text = "".join(pieces)
    words = text.split()
    others = [
        "".join(word + space for word, space in zip(words, spaces, strict=False)),
        unicodedata.normalize("NFD", text),
        unicodedata.normalize("NFKC", text),
        text.replace("“", '"').replace("—", "-"),
        text[: len(text) // 2],
        text + "x",
    ]
    copies = Copies([text])
    for tokenizer in (open_tokenizer("gpt2"), open_tokenizer("bytes")):
        for other in others:
            is_near = normalised(other) == normalised(text)
            reason = ("held_out" if other == text else "held_out_near") if is_near else None
            assert both_ways(copies, other, tokenizer) == [reason] * 2, other


def test_the_normal_form_is_its_own() -> None:
    for text in (HELD_OUT, *NEAR.values()):
        assert normalised(text) == normalised(HELD_OUT) == normalised(normalised(text))
    assert normalised(HELD_OUT) == (
        "'Naïve' readers-the captain's own words-find 2,048 ships at café five; none turned back before "
        "dawn. It's said that they were patient..."
    )


def test_a_start_is_refused_for_a_near_copy_too(tmp_path: Path) -> None:
    write_documents(tmp_path / "held.parquet", ["Something else.", HELD_OUT])
    write_documents(tmp_path / "train.parquet", ["One.", NEAR["quotes"], "Two."])
    config = DataConfig(
        source=str(tmp_path / "train.parquet"), validation_source=str(tmp_path / "held.parquet")
    )
    with pytest.raises(
        UserError, match=r"is not held out: the document that begins '\"Naïve.*', with other spa"
    ):
        open_data(config)


def trained_on(corpus: Corpus, config: DataConfig, sequences: int) -> tuple[np.ndarray, dict[str, int]]:
    loader = LaneLoader(corpus, replace(config, lanes=1, workers=0), block_size=64, micro_batch=1)
    blocks = [next(loader)[0].numpy() for _ in range(sequences)]
    return np.concatenate(blocks), dict(loader.bad)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_text_and_its_token_shards_lose_the_same_copies(tmp_path: Path, packing: str) -> None:
    texts = [f"Document {number} is about the number {number * 7}." for number in range(80)]
    texts[3], texts[11], texts[20] = HELD_OUT, NEAR["decomposed"], NEAR["quotes"]
    write_documents(tmp_path / "in" / "a.parquet", [*texts, HELD_OUT], 9)
    config = DataConfig(source=str(tmp_path / "in"), validation_tokens=1, packing=packing)  # type: ignore[arg-type]
    source, tokenizer = open_source(config, open_tokenizer("gpt2")), open_tokenizer("gpt2")
    tokenize_source(source, config, tokenizer, str(tmp_path / "out"), workers=1)
    found = []
    for where, cache in (("in", None), ("out", None), ("in", str(tmp_path / "cache"))):
        of_one = replace(config, source=str(tmp_path / where), cache_dir=cache)
        corpus, validation = open_data(of_one)
        found.append(trained_on(corpus, of_one, 60))
        assert decode(validation)
    # the last row group is held out, and of it the first document fits
    corpus, _ = open_data(replace(config, source=str(tmp_path / "in")))
    assert all((found[0][0] == tokens).all() and found[0][1] == bad for tokens, bad in found[1:])


@pytest.mark.usefixtures("large_shards")
def test_near_copies_of_reserved_documents_are_counted_apart(tmp_path: Path) -> None:
    texts = [f"Document {number} is about the number {number * 7}." for number in range(80)]
    texts[3], texts[11], texts[20], texts[76] = HELD_OUT, NEAR["decomposed"], NEAR["quotes"], HELD_OUT
    write_documents(tmp_path / "a.parquet", texts, 4)
    config = DataConfig(source=str(tmp_path / "a.parquet"), validation_tokens=10)
    corpus, validation = open_data(config)
    assert decode(validation) == [HELD_OUT]
    tokens, bad = trained_on(corpus, config, 60)
    text = open_tokenizer("gpt2").decode(tokens.ravel())
    assert "captain" not in text and "Document 4 is" in text
    assert bad["held_out_near"] == 2 * bad["held_out"] > 0
    assert corpus.tokens(NEAR["spaces"]) == BadRow("held_out_near")


def test_shards_of_an_older_order_of_reasons_still_read(tmp_path: Path) -> None:
    """The reasons that came later stand behind: what was written before them has zeros there."""
    from collections import Counter

    bad = Counter(empty=3, too_long=1, unreadable=2, held_out_near=5, not_tokenizable=4)
    tokens = open_tokenizer("gpt2").encode_document("some text")
    path = str(tmp_path / "shard.bin")
    write_shard(path, Documents([tokens], bad), np.dtype(np.uint16))
    assert read_shard(path, 50256).bad == bad
    header = np.fromfile(path, "<i4", 256)
    assert header[4:12].tolist() == [3, 1, 0, 0, 2, 0, 5, 4]
