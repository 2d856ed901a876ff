"""Sequences of several lanes in turn, and how they go from one process to another."""

import pickle
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

from ..config import DataConfig
from ..corpus import Corpus
from ..lanes import Cursor, Lane, open_lanes

_LENGTH = struct.Struct("!Q")  # of a message, in front of it


class LaneSequence(NamedTuple):
    """T + 1 tokens, the lane that they come from, its cursor after them, and the documents that were left out
    on the way."""

    tokens: np.ndarray
    lane: int
    cursor: Cursor
    bad: Counter[str] | None


class Place(NamedTuple):
    """Where some lanes stand: the cursor of each, and whose turn it is, round and round."""

    cursors: dict[int, Cursor]
    turn: list[int]

    def after(self, sequences: Sequence[LaneSequence]) -> "Place":
        """The place behind the next sequences."""
        moved = {sequence.lane: sequence.cursor for sequence in sequences}
        passed = len(sequences) % len(self.turn)
        return Place(self.cursors | moved, self.turn[passed:] + self.turn[:passed])


class Maker(NamedTuple):
    """What sequences are made of, at whatever place."""

    corpus: Corpus
    config: DataConfig
    block_size: int

    def sequences(self, place: Place) -> Iterator[LaneSequence]:
        """Endless sequences from `place` on. The lanes are opened when the first is asked for."""
        lanes = {
            lane: Lane(self.corpus, self.config, lane, self.block_size, cursor)
            for lane, cursor in place.cursors.items()
        }
        return self._filled(lanes, place.turn)

    def _filled(self, lanes: Mapping[int, Lane], turn: Sequence[int]) -> Iterator[LaneSequence]:
        open_lanes(list(lanes.values()))
        for number in cycle(turn):
            lane = lanes[number]
            block = np.empty(self.block_size + 1, dtype=self.corpus.tokenizer.dtype)
            cursor = lane.fill(block)
            bad = None
            if lane.bad:
                bad, lane.bad = lane.bad, Counter()
            yield LaneSequence(block, number, cursor, bad)


class Chunk(NamedTuple):
    """Sequences as few large arrays, which go between processes several times faster than many small ones."""

    blocks: np.ndarray
    places: np.ndarray
    bad: list[Counter[str] | None]

    @classmethod
    def of(cls, sequences: Sequence[LaneSequence]) -> "Chunk":
        places = np.array([(sequence.lane, *sequence.cursor) for sequence in sequences])
        return cls(np.stack([s.tokens for s in sequences]), places, [s.bad for s in sequences])

    def sequences(self) -> list[LaneSequence]:
        return [
            LaneSequence(block, lane, Cursor(*cursor), bad)
            for block, (lane, *cursor), bad in zip(self.blocks, self.places.tolist(), self.bad, strict=True)
        ]


def send(connection: socket.socket, message: Any) -> None:
    """Send a message, and wait until the other end has room for it. Raises OSError where there is none."""
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    connection.sendall(_LENGTH.pack(len(content)) + content)


class Inbox:
    """Messages as they come in, in pieces: one that is cut off never counts as a message."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, piece: bytes) -> None:
        self._bytes += piece

    def next(self) -> Any:
        """The next message that is whole, taken out; None where there is none."""
        if len(self._bytes) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._bytes)[0]
        if len(self._bytes) < end:
            return None
        message = pickle.loads(memoryview(self._bytes)[_LENGTH.size : end])
        self._bytes = self._bytes[end:]
        return message
