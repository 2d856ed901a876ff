"""What lanes and the loader refuse, in a sentence."""

from dataclasses import replace

import pytest

from data import (
    Corpus,
    Cursor,
    DataConfig,
    LaneLoader,
)
from model.errors import UserError
from tests.data.corpora import make_corpus, make_texts

CONFIG = DataConfig(source="memory", lanes=8, seed=7, workers=0)


def loader_error(corpus: Corpus | None = None, **changes: object) -> str:
    options = {"block_size": 4, "micro_batch": 2, **changes}
    with pytest.raises(ValueError) as caught:
        next(LaneLoader(corpus or make_corpus(), CONFIG, **options))
    return str(caught.value)


def test_impossible_numbers_are_refused_in_a_sentence() -> None:
    assert loader_error(make_corpus(make_texts(5))) == (
        "data.lanes is 8, but memory has 5 shards to train on: set data.lanes to 5 or less, or leave it out"
    )
    assert "world sizes that divide it are 1, 2, 4, 8" in loader_error(world_size=3)
    assert "first_sequence is 3: it must be a multiple of the world size 2" in loader_error(
        world_size=2, first_sequence=3
    )
    assert "rank is 2" in loader_error(world_size=2, rank=2)
    assert "block_size 0" in loader_error(block_size=0)


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        (Cursor(0, 99, 0, 0), "the lane has"),
        (Cursor(0, 0, 99, 0), "the window has"),
        (Cursor(0, 0, 0, 9999), "the document has"),
    ],
)
def test_a_cursor_of_another_source_is_refused(cursor: Cursor, reason: str) -> None:
    message = loader_error(cursors={0: cursor})
    assert reason in message and "data.source is not what the run began with" in message


@pytest.mark.parametrize("held_out", [False, True])
def test_a_source_without_text_ends_instead_of_looping(held_out: bool) -> None:
    texts: list[list[str | None]] = [[None, ""], ["held out" if held_out else ""], [None]]
    corpus = make_corpus(texts, ["held out"])
    loader = LaneLoader(corpus, replace(CONFIG, lanes=2), block_size=4, micro_batch=1)
    with pytest.raises(UserError, match=r"data\.source: memory holds no text"):
        next(loader)
