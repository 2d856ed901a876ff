"""The order of the lanes, against a reference that builds every lane's whole token stream."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data import EOT, Cursor, LaneLoader, Shard, Source, gpt2_encoding

LANES = 8
BLOCK_SIZE = 16
SEED = 7


class MemorySource(Source):
    """Documents in a list of lists, one list a shard; counts what is read."""

    def __init__(self, texts: list[list[str | None]]) -> None:
        self.texts = texts
        self.reads: list[int] = []
        shards = [Shard(index, "memory", index, len(rows)) for index, rows in enumerate(texts)]
        super().__init__("memory", "text", {"memory": 0}, shards)

    def _column(self, shard: Shard) -> list[str | None]:
        self.reads.append(shard.index)
        return self.texts[shard.index]


def make_source(shards: int = 13) -> MemorySource:
    """Shards of 0 to 6 short documents, some null or empty; shard 3 holds none."""
    generator = np.random.default_rng(0)
    texts: list[list[str | None]] = []
    for shard in range(shards):
        rows: list[str | None] = []
        for row in range(0 if shard == 3 else int(generator.integers(1, 7))):
            words = " ".join(
                str(word) for word in generator.integers(0, 1000, size=generator.integers(1, 30))
            )
            rows.append(f"shard {shard} row {row} {words}")
        texts.append([*rows, None, ""])
    return MemorySource(texts)


def reference(source: MemorySource, sequences: int, lanes: int = LANES) -> np.ndarray:
    """The first sequences of a run, (sequences, BLOCK_SIZE + 1), from whole streams: slow and plain."""
    needed = -(-sequences // lanes) * (BLOCK_SIZE + 1)
    streams: list[list[int]] = [[] for _ in range(lanes)]
    for lane, stream in enumerate(streams):
        for epoch in itertools.count():
            order = np.random.default_rng(np.random.SeedSequence([SEED, epoch])).permutation(
                len(source.texts)
            )
            for shard in order[lane::lanes]:
                documents = [text for text in source.texts[shard] if text]
                entropy = np.random.SeedSequence([SEED, epoch, shard + 1])
                for row in np.random.default_rng(entropy).permutation(len(documents)):
                    stream += [*gpt2_encoding().encode_ordinary(documents[row]), EOT]
            if len(stream) >= needed:
                break
    result = []
    for sequence in range(sequences):
        start = sequence // lanes * (BLOCK_SIZE + 1)
        result.append(streams[sequence % lanes][start : start + BLOCK_SIZE + 1])
    return np.array(result)


def run(
    source: Source,
    steps: int,
    world_size: int = 1,
    micro_batch: int = 8,
    first_sequence: int = 0,
    cursors: dict[int, Cursor] | None = None,
) -> tuple[np.ndarray, dict[int, Cursor]]:
    """All sequences of `steps` micro-batches in the run's order, and the cursors of all ranks after them."""
    loaders = [
        LaneLoader(
            source,
            source.shards,
            block_size=BLOCK_SIZE,
            micro_batch=micro_batch,
            lanes=LANES,
            seed=SEED,
            rank=rank,
            world_size=world_size,
            first_sequence=first_sequence,
            cursors=cursors,
        )
        for rank in range(world_size)
    ]
    after = dict(cursors or {})
    batches = []
    for _ in range(steps):
        of_ranks = []
        for loader in loaders:
            blocks, moved = next(loader)
            of_ranks.append(blocks.numpy())
            after.update(moved)
        batches.append(np.stack(of_ranks, axis=1).reshape(-1, BLOCK_SIZE + 1))
    return np.concatenate(batches), after


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_every_world_size_sees_the_reference_order(world_size: int) -> None:
    source = make_source()
    sequences, cursors = run(source, 96 // world_size, world_size)
    assert np.array_equal(sequences, reference(source, 768))
    assert min(cursor.epoch for cursor in cursors.values()) >= 2, "the test must cross epochs"


@settings(deadline=None, max_examples=40)
@given(
    stop=st.integers(0, 60),
    worlds=st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8])),
    micro_batch=st.integers(1, 5),
)
def test_a_run_continues_exactly_on_any_world_size(
    stop: int, worlds: tuple[int, int], micro_batch: int
) -> None:
    source = make_source()
    before, cursors = (
        run(source, stop, worlds[0], micro_batch) if stop else (np.empty((0, BLOCK_SIZE + 1)), {})
    )
    start = len(before)
    assume(start % worlds[1] == 0)
    after, end = run(source, 16, worlds[1], 1, start, cursors)
    assert np.array_equal(np.concatenate([before, after]), reference(source, start + len(after)))
    _, uninterrupted = run(source, start + len(after), 1, 1)
    assert end == uninterrupted


def test_resume_reads_one_shard_a_lane() -> None:
    source = make_source()
    _, cursors = run(source, 40)
    source.reads.clear()
    run(source, 1, first_sequence=320, cursors=cursors)
    assert len(source.reads) <= 2 * LANES  # a block may end one shard and begin the next


def test_only_moved_lanes_report_cursors() -> None:
    source = make_source()
    loader = LaneLoader(source, source.shards, block_size=4, micro_batch=3, lanes=8, seed=0)
    assert [sorted(next(loader)[1]) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [0, 6, 7]]


def test_every_document_is_read_once_an_epoch() -> None:
    source = make_source()
    texts = [text for rows in source.texts for text in rows if text]
    tokens = sum(len(gpt2_encoding().encode_ordinary(text)) + 1 for text in texts)
    loader = LaneLoader(source, source.shards, block_size=1, micro_batch=1, lanes=1, seed=3)
    stream = np.concatenate([next(loader)[0].numpy().ravel() for _ in range(-(-tokens // 2))])[:tokens]
    read = gpt2_encoding().decode(stream.tolist()).split("<|endoftext|>")[:-1]
    assert sorted(read) == sorted(texts) and read != texts


def test_seed_and_epoch_change_the_order() -> None:
    source = make_source()
    first = LaneLoader(source, source.shards, block_size=64, micro_batch=4, lanes=1, seed=0)
    second = LaneLoader(source, source.shards, block_size=64, micro_batch=4, lanes=1, seed=1)
    again = LaneLoader(source, source.shards, block_size=64, micro_batch=4, lanes=1, seed=0)
    next_epoch = LaneLoader(
        source, source.shards, block_size=64, micro_batch=4, lanes=1, seed=0, cursors={0: Cursor(epoch=1)}
    )
    blocks = [next(loader)[0].tolist() for loader in (first, second, again, next_epoch)]
    assert blocks[0] == blocks[2]
    assert blocks[0] != blocks[1] and blocks[0] != blocks[3]


def loader_error(shards: int = 13, **changes: object) -> str:
    source = make_source(shards)
    options = {"block_size": 4, "micro_batch": 2, "lanes": 8, "seed": 0, **changes}
    with pytest.raises(ValueError) as caught:
        next(LaneLoader(source, source.shards, **options))
    return str(caught.value)


def test_impossible_numbers_are_refused_in_a_sentence() -> None:
    assert loader_error(shards=5) == (
        "data.lanes is 8, but memory has 5 shards to train on: set data.lanes to 5 or less."
    )
    assert "world sizes that divide it are 1, 2, 4, 8." in loader_error(world_size=3)
    assert "first_sequence is 3: it must be a multiple of the world size 2." in loader_error(
        world_size=2, first_sequence=3
    )
    assert "rank is 2" in loader_error(world_size=2, rank=2)
    assert "block_size 0" in loader_error(block_size=0)


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        (Cursor(0, 99, 0, 0), "the lane has 2 shards"),
        (Cursor(0, 0, 99, 0), "the shard has"),
        (Cursor(0, 0, 0, 9999), "the document has"),
    ],
)
def test_a_cursor_of_another_source_is_refused(cursor: Cursor, reason: str) -> None:
    message = loader_error(cursors={0: cursor})
    assert reason in message and "data.source is not what the run began with" in message


def test_a_source_without_text_ends_instead_of_looping() -> None:
    source = MemorySource([[None, ""], [""], [None]])
    loader = LaneLoader(source, source.shards, block_size=4, micro_batch=1, lanes=2, seed=0)
    with pytest.raises(ValueError, match=r"data\.source: memory holds no text"):
        next(loader)
