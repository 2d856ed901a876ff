"""Lanes: documents in, packed blocks of tokens out, in an order that no number of processes can change.

A source comes in *shards* of up to 1,000 documents, a small one in smaller ones. Each epoch they are
permuted by (seed, epoch), those of one row group staying together where they can, and dealt to the *lanes*:
`data.lanes` streams of tokens that run side by side, a fixed number for the life of a run, each with its
equal part of the shards. A lane reads `data.shuffle_window` of its shards at a time, or as many small ones
as make up so many large ones, a *window*: it permutes the window's documents, tokenises them, closes each
with `eot` and cuts the stream into blocks of `block_size + 1` tokens. How far it has come (epoch, window,
document and token) is its *cursor*: with the seed, nothing else is needed to read on. Sequence n of a run is
the next block of lane n mod `data.lanes`. The ranks divide the lanes among themselves, so a run reads the
same sequences on any number of ranks, with any number of workers.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.errors import UserError

from .config import DataConfig
from .corpus import Corpus, lanes_of
from .packing import best_fit
from .parallel import side_by_side
from .sources import BadRow, Document, Shard, shard_runs

OPENED_AT_ONCE = 8
"""Lanes of a remote source, each of which waits for the network before its first block."""


class Cursor(NamedTuple):
    """Where the next token of a lane comes from.

    `window` counts the lane's windows of this epoch, `row` the documents of that window in the order they are
    read (with best-fit packing its blocks), and `offset` the tokens of that document.
    """

    epoch: int = 0
    window: int = 0
    row: int = 0
    offset: int = 0


def deal(corpus: Corpus, lanes: int, lane: int, seed: int, epoch: int) -> list[Shard]:
    """The shards of one lane in one epoch, in order: its share of all of them.

    A lane that would begin inside a row group begins with a whole one instead, where its share changes by an
    eighth at most: all that stands before in the row group would be decoded too.
    """
    shards, ends = _permuted(corpus, lanes, seed, epoch)

    def cut(before: int) -> int:
        even = len(shards) * before // lanes
        nearest = int(ends[np.abs(ends - even).argmin()])
        return nearest if abs(nearest - even) <= len(shards) // lanes // 16 else even

    return shards[cut(lane) : cut(lane + 1)]


@functools.lru_cache(maxsize=2)  # the lanes of a process pass from one epoch to the next at different times
def _permuted(corpus: Corpus, lanes: int, seed: int, epoch: int) -> tuple[list[Shard], np.ndarray]:
    """All shards, those of a row group in runs of a lane's share at most, and where runs begin and end."""
    in_order = shard_runs(corpus.shards, len(corpus.shards) // lanes)
    order = np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(len(in_order))
    permuted = [in_order[run] for run in order]
    ends = np.cumsum([0, *map(len, permuted)])
    return [shard for run in permuted for shard in run], ends


class Lane:
    """One lane of a corpus, from `cursor` on, for ever.

    Attributes:
        bad: The documents that were left out so far, by reason, as the cursor passed them.
    """

    def __init__(
        self, corpus: Corpus, config: DataConfig, lane: int, block_size: int, cursor: Cursor | None = None
    ) -> None:
        self.bad: Counter[str] = Counter()
        self._corpus = corpus
        self._config = config
        self._lane = lane
        self._lanes = lanes_of(config, corpus)
        self._shards_per_window = config.shuffle_window * corpus.source.shards_per_window
        self._block_length = block_size + 1
        self._epoch, self._window, self._row, self._offset = cursor or Cursor()
        self._shards: list[Shard] | None = None  # the lane's shards of this epoch
        # the window's documents (or blocks), as they are read
        self._rows: Sequence[Document | BadRow] | None = None
        self._bad_in_window: Counter[str] = Counter()
        self._document: np.ndarray | None = None  # the tokens of the current row
        self._any_text = True  # whether this epoch gave a token

    @property
    def is_remote(self) -> bool:
        """Whether its documents come over a network."""
        return self._corpus.source.is_remote

    def open(self) -> None:
        """Read the documents that the next block begins with, as `fill` would. Raises what `fill` raises."""
        if self._rows is None:
            self._rows = self._read_window()

    def fill(self, block: np.ndarray) -> Cursor:
        """Writes the lane's next tokens to `block`, (block_size + 1,), and gives the cursor after them.

        Raises:
            UserError: the cursor does not fit the corpus, which holds no text or a bad document that stops
                the run.
            ConnectionError: a shard cannot be fetched.
        """
        filled, length = 0, len(block)
        while filled < length:
            document = self._document if self._document is not None else self._next_document()
            end = self._offset + length - filled
            taken = document[self._offset : end]
            block[filled : filled + len(taken)] = taken
            filled += len(taken)
            if end < len(document):
                self._offset = end
            else:
                self._end_row()
        return Cursor(self._epoch, self._window, self._row, self._offset)

    def _next_document(self) -> np.ndarray:
        while self._document is None:
            if self._rows is None:
                self._rows = self._read_window()
            if self._row < len(self._rows):
                row = self._rows[self._row]
                made = row if isinstance(row, np.ndarray) else self._corpus.tokens(row)
                if isinstance(made, np.ndarray):
                    self._document = made
                else:
                    self._leave_out(row, made.reason)
                    self.bad[made.reason] += 1
                    self._end_row()
            elif self._row == 0:
                self._end_window()
            else:
                raise UserError(self._misfit(f"the window has {len(self._rows)} documents"))
        if self._offset >= len(self._document):
            raise UserError(self._misfit(f"the document has {len(self._document)} tokens"))
        self._any_text = True
        return self._document

    def _read_window(self) -> Sequence[Document | BadRow]:
        config = self._config
        if self._shards is None:
            self._shards = deal(self._corpus, self._lanes, self._lane, config.seed, self._epoch)
        shards = self._shards_of_window()
        if not shards:
            raise UserError(self._misfit(f"the lane has {len(self._shards)} shards"))
        rows: list[Document | BadRow] = []
        self._bad_in_window = Counter()
        for shard in shards:
            of_shard, bad = self._corpus.rows(shard)
            rows += of_shard
            self._bad_in_window += bad
        # + 1 because a SeedSequence takes (seed, epoch, 0) for (seed, epoch), which orders the shards
        entropy = np.random.SeedSequence([config.seed, self._epoch, shards[0].index + 1])
        generator = np.random.default_rng(entropy)
        rows = [rows[row] for row in generator.permutation(len(rows))]
        return rows if config.packing == "concat" else self._pack(rows, generator)

    def _pack(self, rows: Sequence[Document | BadRow], generator: np.random.Generator) -> list[np.ndarray]:
        tokens: list[np.ndarray] = []
        for row in rows:
            made = self._corpus.tokens(row)
            if isinstance(made, BadRow):
                self._leave_out(row, made.reason)
                self._bad_in_window[made.reason] += 1
            else:
                tokens.append(made)
        return best_fit(tokens, self._block_length, self._corpus.tokenizer.eot, generator)

    def _leave_out(self, row: Document | BadRow, reason: str) -> None:
        # a copy of a validation document is never a reason to stop
        if reason == "not_tokenizable" and isinstance(row, str):
            self._corpus.source.leave_out(row, self._shards_of_window(), reason)

    def _shards_of_window(self) -> list[Shard]:
        assert self._shards is not None
        return self._shards[self._window * self._shards_per_window :][: self._shards_per_window]

    def _end_row(self) -> None:
        assert self._rows is not None
        self._document = None
        self._row += 1
        self._offset = 0
        if self._row == len(self._rows):
            self._end_window()

    def _end_window(self) -> None:
        assert self._shards is not None
        self.bad += self._bad_in_window
        self._rows = None
        self._row = 0
        self._window += 1
        if self._window * self._shards_per_window >= len(self._shards):
            # a lane may draw only empty shards in one epoch and fare better in the next, unless all are empty
            if not self._any_text and not self._corpus_has_text():
                raise UserError(
                    f"data.source: {self._corpus.source.name} holds no text in its training shards that is "
                    "not held out"
                )
            self._any_text = False
            self._shards = None
            self._window = 0
            self._epoch += 1

    def _corpus_has_text(self) -> bool:
        return any(
            not isinstance(self._corpus.tokens(row), BadRow)
            for shard in self._corpus.shards
            for row in self._corpus.rows(shard)[0]
        )

    def _misfit(self, reason: str) -> str:
        place = Cursor(self._epoch, self._window, self._row, self._offset)
        return (
            f"Lane {self._lane} cannot continue at {place}: {reason}, "
            "so data.source is not what the run began with"
        )


def open_lanes(lanes: Sequence[Lane]) -> None:
    """Open lanes that wait for a network side by side; what they give is the same. Raises as `Lane.fill`."""
    if lanes and lanes[0].is_remote:
        lanes[0].open()  # which deals the shards to all of them
        side_by_side(Lane.open, lanes[1:], OPENED_AT_ONCE)
