"""`data.stats --overlap`: corpora of which it is known what they share, against sets of words."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data import open_tokenizer
from data.overlap.ngrams import ngrams, words
from data.stats import main
from tests.data.test_data_validation import write_documents

RANDOM = random.Random(0)
VOCABULARY = ["".join(RANDOM.choices("abcdefghijklmnop", k=5)) for _ in range(400)]


def some_words(count: int) -> str:
    return " ".join(RANDOM.choices(VOCABULARY, k=count))


SHARED_13, SHARED_12, COMMON, RARE, SPELT = (some_words(count) for count in (13, 12, 13, 13, 20))
COPIED, NEARLY, SHORT = some_words(40), f'He said "{some_words(30)}" and left.', some_words(12)
VALIDATION = [
    some_words(60),
    f"{some_words(20)} {SHARED_13} {some_words(20)}",
    f"{some_words(20)} {SHARED_12} {some_words(20)}",
    COPIED,
    NEARLY,
    SHORT,
    f"{some_words(20)} {COMMON} {some_words(20)}",
    f"{some_words(20)} {RARE} {some_words(20)}",
    f"{some_words(5)} {SPELT} {some_words(5)}",
]
SOURCE = [
    *[some_words(80) for _ in range(30)],
    f"{some_words(9)} {SHARED_13} {some_words(9)}",
    f"{some_words(9)} {SHARED_12} {some_words(9)}",
    COPIED,
    NEARLY.replace('"', "\u201d").replace(" and", "\nand"),
    SHORT,
    *[f"{some_words(4)} {COMMON} {some_words(4)}" for _ in range(11)],
    *[f"{some_words(4)} {RARE} {some_words(4)}" for _ in range(10)],
    f"{some_words(4)}. {SPELT.upper().replace(' ', ', ')}! {some_words(4)}",
]


def tuples(text: str) -> set[tuple[str, ...]]:
    plain = re.sub(r"[^a-z ]", " ", text.lower().replace('"', "").replace("\u201d", "")).split()
    return {tuple(plain[at : at + 13]) for at in range(len(plain) - 12)}


def expected() -> dict[str, object]:
    of_source = Counter(ngram for text in SOURCE for ngram in tuples(text))
    of_validation = [tuples(text) for text in VALIDATION]
    every = set().union(*of_validation)
    shared = {ngram for ngram in every if 0 < of_source[ngram] <= 10}
    common = {ngram for ngram in every if of_source[ngram] > 10}
    any_shared = [bool(of_document & shared) for of_document in of_validation]
    assert any_shared == [False, True, False, True, True, False, False, True, True] and len(common) == 1
    return {
        "source_documents": len(SOURCE),
        "documents": 9,
        "exact_copies": {"count": 2, "share": 2 / 9},
        "near_copies": {"count": 1, "share": 1 / 9},
        "ngram": 13,
        "documents_with_overlap": {"count": 5, "share": 5 / 9},
        "documents_of_fewer_words": {"count": 1, "share": 1 / 9},
        "ngrams": len(every),
        "ngrams_with_overlap": {"count": len(shared), "share": len(shared) / len(every)},
        "ngrams_too_common": {"count": 1, "share": 1 / len(every)},
    }


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[Path, Path]:
    write_documents(tmp_path / "source" / "a.parquet", SOURCE, 7)
    write_documents(tmp_path / "validation.parquet", VALIDATION, 4)
    return tmp_path / "source", tmp_path / "validation.parquet"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_two_corpora_share_is_found(
    corpora: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    source, validation = map(str, corpora)
    file = tmp_path / "figures.json"
    assert main([source, "--overlap", validation, "--workers", workers, "--json", str(file)]) == 0
    names = {"source": source, "validation": validation}
    assert json.loads(file.read_text()) == expected() | names
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["exact copies"] == "2 validation documents, 22.22%"
    assert lines["any 13-gram"] == "5 validation documents, 55.56%"
    assert lines["left out as common"].startswith("1 in more than 10 documents of the source")


def test_tokens_share_what_their_text_shares(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    encode, found = open_tokenizer("gpt2").encode_document, []
    for name, texts in (("source", SOURCE), ("held", VALIDATION)):
        np.concatenate([encode(text) for text in texts]).tofile(tmp_path / f"{name}.bin")
    for source, held in (corpora, (tmp_path / "source.bin", tmp_path / "held.bin")):
        assert main([str(source), "--overlap", str(held), "--json", str(tmp_path / "figures.json")]) == 0
        found.append(json.loads((tmp_path / "figures.json").read_text()))
    assert all(found[0][key] == value == found[1][key] for key, value in expected().items())


def test_words_are_those_of_the_paper() -> None:
    """Lower case and no punctuation, arXiv:2005.14165, appendix C."""
    text = "The captain's “Own” words--2,048 of_them: ﬁnd\nCAFE\u0301!"
    assert words(text) == ["the", "captains", "own", "words", "2", "048", "of", "them", "find", "café"]
    assert len(ngrams(some_words(12))) == 0 and len(ngrams(some_words(15))) == 3
    assert (ngrams(f"first {SHARED_13} last")[1] == ngrams(SHARED_13)).all()


def test_an_overlap_with_nothing_is_one_sentence(
    corpora: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_documents(tmp_path / "empty.parquet", ["", ""])
    assert main([str(corpora[0]), "--overlap", str(tmp_path / "empty.parquet")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: --overlap: {tmp_path / 'empty.parquet'} holds no document that is not bad"
    assert main([str(corpora[0]), "--overlap", str(tmp_path / "gone.parquet")]) == 2
    assert "gone.parquet does not exist" in capsys.readouterr().err.splitlines()[-1]
