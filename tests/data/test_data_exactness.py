"""The short form of `tests/data/exactness.py`, and that its checks can fail."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import data.loader
from data import Cursor, DataConfig, open_data
from data.lanes import Lane
from data.sources import Document
from tests.data.exactness import Reading, check, check_chain, check_epochs, check_order, made_up
from tests.data.forms import parquet

TEXTS = made_up(150, seed=1)


def test_every_kind_of_source_is_exact() -> None:
    made = check(TEXTS, lanes=[1, 7, 60], ways=3, chains=1)
    assert made["kinds of source"] == made["stopped and resumed runs"] == 17


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    held_out = parquet(tmp_path / "held out", ["another text"])
    return DataConfig(source=parquet(tmp_path / "source", TEXTS, 10), validation_source=held_out, lanes=4)


def test_a_document_that_is_lost_or_comes_twice_is_found(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Lane._read_window

    def without_the_last(lane: Lane) -> Sequence[Document]:
        return whole(lane)[:-1]

    def with_one_twice(lane: Lane) -> Sequence[Document]:
        documents = whole(lane)
        return [*documents, documents[0]]

    corpus, _ = open_data(config)
    for broken, words in (
        (without_the_last, r"\d+ documents are missing, 0"),
        (with_one_twice, "0 documents"),
    ):
        monkeypatch.setattr(Lane, "_read_window", broken)
        with pytest.raises(AssertionError, match=words):
            check_epochs(corpus, config, TEXTS)


def test_another_order_is_found(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    in_turn = data.loader._in_turn
    monkeypatch.setattr("data.loader._in_turn", lambda workers: in_turn(workers[::-1]))
    corpus, _ = open_data(config)
    check_order(corpus, config, 100, [Reading(2, 0), Reading(1, 0, 3)])
    with pytest.raises(AssertionError, match=r"workers=2, micro_batch=1\) gives other"):
        check_order(corpus, config, 100, [Reading(1, 2)])


def test_a_wrong_resume_is_found(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Lane.fill

    def without_the_document(lane: Lane, block: np.ndarray) -> Cursor:
        cursor = fill(lane, block)
        return Cursor(cursor.epoch, cursor.window)

    monkeypatch.setattr(Lane, "fill", without_the_document)
    with pytest.raises(AssertionError, match="parts is another one"):
        check_chain(config, 500, 5, random.Random(0))
