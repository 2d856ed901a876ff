"""Lanes: documents in, packed blocks of tokens out, in an order that no number of processes can change.

The shards of a source are permuted by (seed, epoch) and dealt to a fixed number of lanes. A lane reads its
shards in order, permutes the documents inside each, tokenises them, closes each with `EOT`, and cuts the
stream into blocks of `block_size + 1` tokens. Sequence n of a run comes from lane n mod lanes. A lane's whole
position is one `Cursor`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from data.sources import Shard, Source
from data.tokenizer import encode_document


class Cursor(NamedTuple):
    """Where the next token of a lane comes from.

    `shard` counts the lane's shards of this epoch, `row` the documents of that shard in the order they are
    read, and `offset` the tokens of that document.
    """

    epoch: int = 0
    shard: int = 0
    row: int = 0
    offset: int = 0


class LaneLoader(Iterator[tuple[torch.Tensor, dict[int, Cursor]]]):
    """Endless micro-batches of one rank, each with the cursors of the lanes that it moved.

    Rank r takes the sequences `first_sequence` + r, + world_size, ... The cursors that come with a
    micro-batch hold after it: given back as `cursors`, with `first_sequence` advanced by all ranks'
    sequences, they continue the run, also on another world size. A lane holds the texts of one shard at a
    time.

    Args:
        source: The documents.
        shards: The shards to read, at least one a lane.
        block_size: Input tokens a sequence, T; blocks are disjoint and T + 1 tokens long.
        micro_batch: Sequences a micro-batch, B.
        lanes: Into how many lanes the stream is cut.
        seed: Decides the order of shards and documents, together with the epoch.
        rank: This process, from 0.
        world_size: The number of processes; it divides `lanes`.
        first_sequence: The sequence of the run to begin with, a multiple of `world_size`.
        cursors: Where lanes continue; a lane that is not named begins at its beginning.

    Raises:
        ValueError: the numbers do not fit each other (at once); a cursor does not fit the source, or no shard
            holds a document (when the lane is read).
    """

    def __init__(
        self,
        source: Source,
        shards: Sequence[Shard],
        *,
        block_size: int,
        micro_batch: int,
        lanes: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first_sequence: int = 0,
        cursors: Mapping[int, Cursor] | None = None,
    ) -> None:
        if block_size < 1 or micro_batch < 1:
            raise ValueError(f"block_size {block_size} and micro_batch {micro_batch} must both be 1 or more.")
        if lanes > len(shards):
            raise ValueError(
                f"data.lanes is {lanes}, but {source.name} has {len(shards)} shards to train on: "
                f"set data.lanes to {len(shards)} or less."
            )
        if lanes % world_size:
            fitting = ", ".join(str(size) for size in range(1, lanes + 1) if lanes % size == 0)
            raise ValueError(
                f"data.lanes is {lanes}, which {world_size} processes cannot share evenly: "
                f"world sizes that divide it are {fitting}."
            )
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank is {rank}: with a world size of {world_size} it is 0 to {world_size - 1}."
            )
        if first_sequence < 0 or first_sequence % world_size:
            raise ValueError(
                f"first_sequence is {first_sequence}: it must be a multiple of the world size {world_size}."
            )
        self._block_size = block_size
        self._micro_batch = micro_batch
        self._world_size = world_size
        self._next_sequence = first_sequence + rank
        self._lane_count = lanes
        places = cursors or {}
        self._lanes = {
            lane: _Lane(source, shards, lane, lanes, seed, Cursor(*places.get(lane, Cursor())))
            for lane in range(rank, lanes, world_size)
        }

    def __next__(self) -> tuple[torch.Tensor, dict[int, Cursor]]:
        """The next micro-batch: (B, T + 1) uint16, and the cursors of the lanes it moved."""
        blocks = np.empty((self._micro_batch, self._block_size + 1), dtype=np.uint16)
        moved = {}
        for block in blocks:
            lane = self._next_sequence % self._lane_count
            moved[lane] = self._lanes[lane].fill(block)
            self._next_sequence += self._world_size
        return torch.from_numpy(blocks), moved


class _Lane:
    """One lane: the shards `permutation[lane::lanes]` of every epoch, one after the other."""

    def __init__(
        self, source: Source, shards: Sequence[Shard], lane: int, lanes: int, seed: int, cursor: Cursor
    ) -> None:
        self._source = source
        self._shards = shards
        self._lane = lane
        self._lanes = lanes
        self._seed = seed
        self._epoch, self._shard, self._row, self._offset = cursor
        self._order: np.ndarray | None = None  # the lane's shards of this epoch
        self._texts: list[str] | None = None  # the current shard's documents, in the order they are read
        self._document: np.ndarray | None = None  # the current document's tokens

    def fill(self, block: np.ndarray) -> Cursor:
        """Writes the lane's next tokens to `block`, (n,) uint16, and gives the cursor after them."""
        filled = 0
        while filled < len(block):
            document = self._current_document()
            taken = document[self._offset : self._offset + len(block) - filled]
            block[filled : filled + len(taken)] = taken
            filled += len(taken)
            self._offset += len(taken)
            if self._offset == len(document):
                self._end_document()
        return Cursor(self._epoch, self._shard, self._row, self._offset)

    def _current_document(self) -> np.ndarray:
        while self._texts is None:
            self._texts = self._read_shard()
            if not self._texts:
                self._end_shard()
        if self._document is None:
            if self._row >= len(self._texts):
                raise ValueError(self._misfit(f"the shard has {len(self._texts)} documents"))
            self._document = encode_document(self._texts[self._row])
            if self._offset >= len(self._document):
                raise ValueError(self._misfit(f"the document has {len(self._document)} tokens"))
        return self._document

    def _read_shard(self) -> list[str]:
        if self._order is None:
            generator = np.random.default_rng(np.random.SeedSequence([self._seed, self._epoch]))
            self._order = generator.permutation(len(self._shards))[self._lane :: self._lanes]
        if self._shard >= len(self._order):
            raise ValueError(self._misfit(f"the lane has {len(self._order)} shards"))
        shard = self._shards[self._order[self._shard]]
        texts = self._source.read(shard)
        # + 1 because a SeedSequence takes (seed, epoch, 0) for (seed, epoch), which orders the shards
        generator = np.random.default_rng(np.random.SeedSequence([self._seed, self._epoch, shard.index + 1]))
        return [texts[row] for row in generator.permutation(len(texts))]

    def _end_document(self) -> None:
        assert self._texts is not None
        self._document = None
        self._row += 1
        self._offset = 0
        if self._row == len(self._texts):
            self._end_shard()

    def _end_shard(self) -> None:
        assert self._order is not None
        empty_shard = not self._texts
        self._texts = None
        self._row = self._offset = 0
        self._shard += 1
        if self._shard == len(self._order):
            # a lane may draw only empty shards in one epoch and fare better in the next, unless all are empty
            if empty_shard and not any(self._source.read(shard) for shard in self._shards):
                raise ValueError(f"data.source: {self._source.name} holds no text in its training shards.")
            self._order = None
            self._shard = 0
            self._epoch += 1

    def _misfit(self, reason: str) -> str:
        place = Cursor(self._epoch, self._shard, self._row, self._offset)
        return (
            f"Lane {self._lane} cannot continue at {place}: {reason}, "
            "so data.source is not what the run began with."
        )
