"""How much of VALIDATION stands in SOURCE too: `python -m data.stats SOURCE --overlap VALIDATION`.

By 13-grams of words, as Brown et al. 2020 do, "Language models are few-shot learners", arXiv:2005.14165,
appendix C: in lower case and without punctuation, and those that more than 10 documents of SOURCE have do not
count, as they are common to texts of all kinds. Here apostrophes and quotes are left out of words, any other
punctuation divides them, and letters are in their NFKC form.

A text without spaces between its words, as Chinese is written, has few words: look at its copies instead.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from model.errors import UserError

from ..parallel import in_processes
from ..sources import Document, Shard, Source
from ..tokenizer import Tokenizer
from .copies import Copies, hashes_of

NGRAM = 13
COMMON = 10
"""An n-gram that more documents of SOURCE have than this is common, and counts for nothing."""

_BASE = np.uint64(0x9E3779B97F4A7C15)
_IN_WORDS = re.compile("['\"`´‘’“”]")  # noqa: RUF001
_BETWEEN_WORDS = re.compile(r"[\W_]+")


def words(text: str) -> list[str]:
    """The words of a text, as n-grams are made of them."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _BETWEEN_WORDS.sub(" ", _IN_WORDS.sub("", text.lower())).split()


def ngrams(text: str) -> np.ndarray:
    """64-bit hashes of a text's n-grams in their order, (n,) uint64; forked processes have the same."""
    of_words = np.fromiter(map(hash, words(text)), np.int64).view(np.uint64)
    count = max(0, len(of_words) - NGRAM + 1)
    hashes = np.zeros(count, np.uint64)
    for at in range(NGRAM):
        hashes = hashes * _BASE + of_words[at : at + count]
    return hashes


class _Found(NamedTuple):
    """What some documents of SOURCE have in common with VALIDATION.

    Attributes:
        documents: How many they are.
        ngrams: Numbers of VALIDATION's n-grams that are in any of them.
        occurrences: In how many of them each is.
        exact: Hashes of the texts that are copied.
        near: Hashes of the normalised texts that are copied.
    """

    documents: int
    ngrams: np.ndarray
    occurrences: np.ndarray
    exact: set[bytes]
    near: set[bytes]


def overlap(
    source: Source,
    validation: Source,
    tokenizer: Tokenizer,
    parts: Sequence[tuple[list[Shard], int]],
    workers: int,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """The figures of the overlap, as `--json` writes them.

    Memory is VALIDATION's texts while they are read and 8 bytes for each of its n-grams, in every process;
    SOURCE is read a shard at a time.

    Args:
        source: SOURCE.
        validation: VALIDATION.
        tokenizer: Decodes documents that are tokens.
        parts: Runs of SOURCE's shards, and how many documents to take from the beginning of each.
        workers: Processes.
        progress: Whether to show a bar.

    Raises:
        UserError: VALIDATION holds no document, or one is bad and `data.on_bad_document` is `stop`.
        OSError: one of them cannot be read.
    """
    texts = [_text(one, tokenizer) for shard in validation.shards for one in validation.read(shard).kept]
    if not texts:
        raise UserError(f"--overlap: {validation.name} holds no document that is not bad")
    of_documents = [np.unique(ngrams(text)) for text in texts]
    known = np.unique(np.concatenate(of_documents))
    hashes = [hashes_of(text) for text in texts]
    copies = Copies(texts)
    del texts

    def search(part: tuple[list[Shard], int]) -> Iterator[_Found]:
        run, left = part
        found = _Found(0, np.zeros(0, np.int64), np.zeros(len(known), np.int64), set(), set())
        documents = 0
        for shard in run:
            for document in source.read(shard).kept[: left - documents]:
                text = _text(document, tokenizer)
                found.occurrences[_places(np.unique(ngrams(text)), known)] += 1
                if copy := copies.find(text, tokenizer):
                    found.exact.add(copy.text)
                    found.near.add(copy.normalised)
                documents += 1
            if documents == left:
                break
        there = np.flatnonzero(found.occurrences)
        yield found._replace(documents=documents, ngrams=there, occurrences=found.occurrences[there])

    documents, exact, near = 0, set[bytes](), set[bytes]()
    occurrences = np.zeros(len(known), np.int64)
    interval = 0.2 if sys.stderr.isatty() else 5.0
    results = in_processes(search, parts, workers)
    for found in tqdm(results, "overlap", len(parts), disable=not progress, mininterval=interval):
        documents += found.documents
        occurrences[found.ngrams] += found.occurrences
        exact |= found.exact
        near |= found.near
    are_shared = (occurrences > 0) & (occurrences <= COMMON)
    shared = [bool(are_shared[_places(of_document, known)].any()) for of_document in of_documents]
    is_exact = [text in exact for text, _ in hashes]
    is_near = [normal in near and text not in exact for text, normal in hashes]
    return {
        "source": source.name,
        "source_documents": documents,
        "validation": validation.name,
        "documents": len(hashes),
        "exact_copies": _share(is_exact),
        "near_copies": _share(is_near),
        "ngram": NGRAM,
        "documents_with_overlap": _share(shared),
        "documents_of_fewer_words": _share([len(of_document) == 0 for of_document in of_documents]),
        "ngrams": len(known),
        "ngrams_with_overlap": _share(are_shared),
        "ngrams_too_common": _share(occurrences > COMMON),
    }


def to_text(figures: dict[str, Any]) -> str:
    """The figures as lines for people."""

    def of(key: str, what: str) -> str:
        return f"{figures[key]['count']:,} {what}, {figures[key]['share']:.2%}"

    lines = {
        "source": f"{figures['source_documents']:,} documents of {figures['source']}",
        "validation": f"{figures['documents']:,} documents of {figures['validation']}",
        "exact copies": of("exact_copies", "validation documents"),
        "near copies": of("near_copies", "validation documents")
        + " (other spaces, quotes, dashes or Unicode forms)",
        f"any {NGRAM}-gram": of("documents_with_overlap", "validation documents"),
        "too short for one": of("documents_of_fewer_words", "validation documents"),
        f"shared {NGRAM}-grams": of("ngrams_with_overlap", f"of {figures['ngrams']:,}"),
        "left out as common": of("ngrams_too_common", f"in more than {COMMON} documents of the source"),
    }
    return "".join(f"{name:<21}{line}\n" for name, line in lines.items())


def _text(document: Document, tokenizer: Tokenizer) -> str:
    return document if isinstance(document, str) else tokenizer.decode(document[:-1])


def _places(some: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Where those of `some` that are among `known` stand there; both are sorted."""
    at = np.searchsorted(known, some)
    at = at[at < len(known)]
    return at[known[at] == some[: len(at)]]


def _share(is_counted: Sequence[bool] | np.ndarray) -> dict[str, float]:
    count = int(np.sum(is_counted))
    return {"count": count, "share": count / len(is_counted) if len(is_counted) else 0.0}
