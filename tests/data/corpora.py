"""A source in memory for tests of the lanes, and the reference order that everything is compared with."""

import itertools
from collections.abc import Sequence

import numpy as np

from data import Corpus, DataConfig, Shard, Source, gpt2_encoding, open_tokenizer
from data.overlap.copies import Copies

EOT = 50256
ROWS_IN_GROUP = {5: 3, 6: 3, 7: 3}  # shards 5, 6 and 7 are one large row group


class MemorySource(Source):
    """Documents in a list of lists, one list per shard; counts what is read."""

    def __init__(self, texts: list[list[str | None]], config: DataConfig | None = None) -> None:
        self.texts = texts
        self.reads: list[int] = []
        shards = []
        for index, rows in enumerate(texts):
            group = 5 if index in ROWS_IN_GROUP else index
            shards.append(Shard(index, "memory", group, 0 if index == group else index, len(rows)))
        config = config or DataConfig(source="memory")
        super().__init__(config, {"memory": 0}, shards, versions={"memory": "of a test"})

    def _rows(self, shard: Shard) -> Sequence[str | None]:
        self.reads.append(shard.index)
        return self.texts[shard.index]


def make_texts(shards: int = 13, longest: int = 30) -> list[list[str | None]]:
    """Shards of 1 to 6 short documents and two bad ones; shard 3 holds only bad ones."""
    generator = np.random.default_rng(0)
    texts: list[list[str | None]] = []
    for shard in range(shards):
        rows: list[str | None] = []
        for row in range(0 if shard == 3 else int(generator.integers(1, 7))):
            words = " ".join(
                str(word) for word in generator.integers(0, 1000, size=generator.integers(1, longest))
            )
            rows.append(f"shard {shard} row {row} {words}")
        texts.append([*rows, None, ""])
    return texts


def make_corpus(texts: list[list[str | None]] | None = None, held_out: Sequence[str] = ()) -> Corpus:
    source = MemorySource(make_texts() if texts is None else texts)
    return Corpus(source, open_tokenizer("gpt2"), source.shards, Copies(held_out))


def reference(
    texts: list[list[str | None]], config: DataConfig, block_size: int, sequences: int
) -> np.ndarray:
    """The first sequences of a run with concatenation, (sequences, block_size + 1), from whole streams."""
    needed = -(-sequences // config.lanes) * (block_size + 1)
    groups = [[shard] for shard in range(5)] + [[5, 6, 7]] + [[shard] for shard in range(8, len(texts))]
    longest = len(texts) // config.lanes
    groups = [group[at : at + longest] for group in groups for at in range(0, len(group), longest)]
    streams: list[list[int]] = [[] for _ in range(config.lanes)]
    for lane, stream in enumerate(streams):
        for epoch in itertools.count():
            order = np.random.default_rng([config.seed, epoch]).permutation(len(groups))
            shards = [shard for group in order for shard in groups[group]]
            shards = shards[len(texts) * lane // config.lanes : len(texts) * (lane + 1) // config.lanes]
            for start in range(0, len(shards), config.shuffle_window):
                window = shards[start : start + config.shuffle_window]
                documents = [text for shard in window for text in texts[shard] if text]
                generator = np.random.default_rng([config.seed, epoch, window[0] + 1])
                for row in generator.permutation(len(documents)):
                    stream += [*gpt2_encoding().encode_ordinary(documents[row]), EOT]
            if len(stream) >= needed:
                break
    rows = [(n % config.lanes, n // config.lanes * (block_size + 1)) for n in range(sequences)]
    return np.array([streams[lane][at : at + block_size + 1] for lane, at in rows])
