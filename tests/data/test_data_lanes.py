"""The order of the lanes, against a reference that builds every lane's whole token stream."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import (
    Corpus,
    Cursor,
    DataConfig,
    LaneLoader,
    Shard,
    deal,
    gpt2_encoding,
    open_tokenizer,
)
from tests.data.corpora import EOT, make_corpus, make_texts, reference

CONFIG = DataConfig(source="memory", lanes=8, seed=7, workers=0)


BLOCK_SIZE = 16


def run(
    corpus: Corpus,
    config: DataConfig,
    steps: int,
    world_size: int = 1,
    micro_batch: int = 8,
    first_sequence: int = 0,
    cursors: dict[int, Cursor] | None = None,
) -> tuple[np.ndarray, dict[int, Cursor], dict[str, int]]:
    """All sequences of `steps` micro-batches in the run's order; cursors and bad documents of all ranks."""
    loaders = [
        LaneLoader(
            corpus,
            config,
            block_size=BLOCK_SIZE,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
            first_sequence=first_sequence,
            cursors=cursors,
        )
        for rank in range(world_size)
    ]
    after = dict(cursors or {})
    batches = [np.empty((0, BLOCK_SIZE + 1), dtype=np.uint16)]
    for _ in range(steps):
        of_ranks = []
        for loader in loaders:
            blocks, moved = next(loader)
            of_ranks.append(blocks.numpy())
            after.update(moved)
        batches.append(np.stack(of_ranks, axis=1).reshape(-1, BLOCK_SIZE + 1))
    bad: dict[str, int] = {}
    for loader in loaders:
        for reason, count in loader.bad.items():
            bad[reason] = bad.get(reason, 0) + count
    return np.concatenate(batches), after, bad


@settings(deadline=None, max_examples=60)
@given(
    lanes=st.sampled_from([1, 2, 4, 8, 12]),
    worlds=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=3),
    micro_batches=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    stops=st.lists(st.integers(0, 25), min_size=3, max_size=3),
    window=st.integers(1, 3),
    packing=st.sampled_from(["concat", "concat", "best_fit"]),
)
def test_any_ranks_and_stops_give_the_reference_order(
    lanes: int,
    worlds: list[int],
    micro_batches: list[int],
    stops: list[int],
    window: int,
    packing: str,
) -> None:
    config = replace(CONFIG, lanes=lanes, shuffle_window=window, packing=packing)
    parts, cursors, bad, start = [], {}, {}, 0
    for world_size, micro_batch, steps in zip(worlds, micro_batches, stops, strict=False):
        if lanes % world_size or start % world_size:
            continue
        sequences, cursors, more = run(make_corpus(), config, steps, world_size, micro_batch, start, cursors)
        parts.append(sequences)
        start += len(sequences)
        bad = {reason: bad.get(reason, 0) + more.get(reason, 0) for reason in bad.keys() | more.keys()}
    if not start:
        return
    once, cursors_of_once, bad_of_once = run(make_corpus(), config, start, 1, 1)
    assert np.array_equal(np.concatenate(parts), once)
    assert cursors == cursors_of_once and bad == bad_of_once
    if packing == "concat":
        assert np.array_equal(once, reference(make_texts(), config, BLOCK_SIZE, start))


@settings(deadline=None, max_examples=8)
@given(
    world_size=st.sampled_from([1, 2, 4, 8]),
    workers=st.integers(1, 4),
    micro_batch=st.integers(1, 5),
    stop=st.integers(1, 20),
)
def test_any_workers_give_the_reference_order(
    world_size: int, workers: int, micro_batch: int, stop: int
) -> None:
    config = replace(CONFIG, workers=workers, prefetch=40)
    before, cursors, _ = run(make_corpus(), config, stop, world_size, micro_batch)
    after, end, _ = run(
        make_corpus(), replace(config, workers=workers % 4 + 1), 3, world_size, 8, len(before), cursors
    )
    order = reference(make_texts(), config, BLOCK_SIZE, len(before) + len(after))
    assert np.array_equal(np.concatenate([before, after]), order)
    assert end == run(make_corpus(), CONFIG, len(order), 1, 1)[1]


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_every_world_size_and_worker_count_keeps_the_reference_order(world_size: int, workers: int) -> None:
    config = replace(CONFIG, workers=workers)
    sequences, cursors, bad = run(make_corpus(), config, 96 // world_size, world_size)
    assert np.array_equal(sequences, reference(make_texts(), CONFIG, BLOCK_SIZE, 768))
    assert min(cursor.epoch for cursor in cursors.values()) >= 2, "the test must cross epochs"
    assert bad["empty"] >= 2 * 2 * 13


def test_resume_reads_one_window_per_lane() -> None:
    corpus = make_corpus()
    _, cursors, _ = run(corpus, CONFIG, 40)
    corpus.source.reads.clear()  # type: ignore[attr-defined]
    run(corpus, CONFIG, 1, first_sequence=320, cursors=cursors)
    assert len(corpus.source.reads) <= 2 * 8  # type: ignore[attr-defined]  # a block may cross into the next


def test_only_moved_lanes_report_cursors() -> None:
    loader = LaneLoader(make_corpus(), CONFIG, block_size=4, micro_batch=3)
    assert [sorted(next(loader)[1]) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [0, 6, 7]]


def one_epoch(config: DataConfig, corpus: Corpus, tokens: int) -> list[str]:
    """The documents of a single lane's first epoch, in order."""
    loader = LaneLoader(corpus, replace(config, lanes=1), block_size=1, micro_batch=1)
    stream = np.concatenate([next(loader)[0].numpy().ravel() for _ in range(-(-tokens // 2))])[:tokens]
    return gpt2_encoding().decode(stream.tolist()).split("<|endoftext|>")[:-1]


@pytest.mark.parametrize("window", [1, 4, 100])
def test_every_document_is_read_once_per_epoch(window: int) -> None:
    texts = [text for rows in make_texts() for text in rows if text]
    tokens = sum(len(gpt2_encoding().encode_ordinary(text)) + 1 for text in texts)
    read = one_epoch(replace(CONFIG, shuffle_window=window), make_corpus(), tokens)
    assert sorted(read) == sorted(texts) and read != texts


def test_a_window_mixes_the_documents_of_its_shards() -> None:
    texts = [text for rows in make_texts() for text in rows if text]
    tokens = sum(len(gpt2_encoding().encode_ordinary(text)) + 1 for text in texts)

    def changes_of_shard(window: int) -> int:
        read = one_epoch(replace(CONFIG, shuffle_window=window), make_corpus(), tokens)
        shards = [text.split()[1] for text in read]
        return sum(a != b for a, b in itertools.pairwise(shards))

    assert changes_of_shard(1) == 11  # of the 12 shards that hold text
    assert changes_of_shard(13) > 2 * 11


def test_a_large_row_group_is_read_from_its_beginning_to_its_end() -> None:
    corpus = make_corpus()
    run(corpus, replace(CONFIG, lanes=1), 30, micro_batch=4)
    reads = corpus.source.reads  # type: ignore[attr-defined]
    at = reads.index(5)
    assert reads[at : at + 3] == [5, 6, 7]


def dealt(sizes: list[int], lanes: int, epoch: int = 0) -> list[list[Shard]]:
    """The shards of all lanes; the source has row groups of `sizes` shards."""
    shards = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    made = [Shard(index, "file", group, 1000 * row, 1000) for index, (group, row) in enumerate(shards)]
    corpus = replace(make_corpus(), shards=tuple(made))
    found = [deal(corpus, lanes, lane, 7, epoch) for lane in range(lanes)]
    assert sorted((shard for part in found for shard in part), key=lambda shard: shard.index) == made
    return found


@pytest.mark.parametrize(
    "sizes", [[450], [300] + [1] * 100, [7, 90, 1, 40] * 3, [1] * 65, [1] * 64, [10] * 65, [100, 1] * 40]
)
def test_every_lane_has_its_share_whatever_the_row_groups(sizes: list[int]) -> None:
    share = sum(sizes) / 64
    for epoch in range(3):
        found = dealt(sizes, 64, epoch)
        assert all(int(share * 7 / 8) <= len(part) <= math.ceil(share * 9 / 8) for part in found)
        # long runs, which are cheap to read
        runs = sum(
            one.group != other.group or one.index + 1 != other.index
            for part in found
            for one, other in itertools.pairwise(part)
        )
        assert runs <= len(sizes) + 64
    assert dealt(sizes, 64) == dealt(sizes, 64) and (len(sizes) == 1 or dealt(sizes, 64, 1) != found)


def test_lanes_of_a_large_source_begin_with_a_whole_row_group() -> None:
    found = dealt([25] * 600, 64)
    assert all(part[0].first_row == 0 for part in found)


def test_seed_and_epoch_change_the_order() -> None:
    def first_blocks(seed: int, epoch: int) -> list[list[int]]:
        config = replace(CONFIG, lanes=1, seed=seed)
        loader = LaneLoader(
            make_corpus(), config, block_size=64, micro_batch=4, cursors={0: Cursor(epoch=epoch)}
        )
        return next(loader)[0].tolist()

    assert first_blocks(0, 0) == first_blocks(0, 0)
    assert first_blocks(0, 0) != first_blocks(1, 0) and first_blocks(0, 0) != first_blocks(0, 1)


def test_copies_of_validation_documents_are_left_out_and_counted() -> None:
    texts = make_texts()
    copy = texts[2][0]
    assert copy
    for packing in ("concat", "best_fit"):
        config = replace(CONFIG, lanes=1, packing=packing)
        sequences, cursors, bad = run(make_corpus(held_out=[copy]), config, 200, micro_batch=1)
        text = gpt2_encoding().decode(sequences.ravel().tolist())
        assert "shard 2 row 0" not in text and "shard 2 row 1" in text
        assert bad["held_out"] == cursors[0].epoch >= 1


def test_best_fit_keeps_documents_whole_where_they_fit() -> None:
    texts = make_texts(longest=60)
    config = replace(CONFIG, lanes=1, packing="best_fit")
    loader = LaneLoader(make_corpus(texts), config, block_size=63, micro_batch=1)
    documents = [text for rows in texts for text in rows if text]
    lengths = {text: len(gpt2_encoding().encode_ordinary(text)) + 1 for text in documents}
    whole, pieces = [], 0
    while True:
        (block,), moved = next(loader)
        parts = gpt2_encoding().decode(block.tolist()).split("<|endoftext|>")
        assert len(block) == 64
        whole += [part for part in parts if lengths.get(part, 65) <= 64]
        pieces += sum(bool(part) for part in parts)
        if moved[0].epoch == 1:  # that was the epoch's last block
            break
    assert sorted(whole) == sorted(text for text, length in lengths.items() if length <= 64)
    cut = [length - 1 for length in lengths.values() if length > 64]  # a piece of eot alone has no text
    assert cut and pieces == len(whole) + sum(-(-length // 64) for length in cut)


def test_a_byte_vocabulary_and_a_large_one_keep_their_types() -> None:
    corpus = make_corpus()
    bytes_corpus = replace(corpus, tokenizer=open_tokenizer("bytes"))
    block, _ = next(LaneLoader(bytes_corpus, CONFIG, block_size=64, micro_batch=2))
    assert str(block.dtype) == "torch.uint16" and block.numpy().max() <= 256
    text = bytes(token for token in block[0].tolist() if token < 256).decode()
    assert "shard" in text
    assert (block.numpy() == EOT).sum() == 0
