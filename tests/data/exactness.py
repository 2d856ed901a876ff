"""The loader against tiktoken alone, over every kind of source.

    python -m tests.data.exactness [--source FOLDER_OF_PARQUET] [--documents N] [--ways N] [--chains N]

Three checks, each of which ends with an AssertionError that says where:

- In each of two epochs every document comes out once, whole, as tiktoken's tokens and an end of text: read
  off the lanes' streams and their cursors. The documents are known beforehand, not read through the loader.
- Any number of ranks and workers gives the same sequences in the same order.
- So does a run that is stopped and resumed at random places, each time on other ranks and workers and from
  a source that is opened anew.

Without `--source` the documents are made up, with what trips tokenizers. The short form is a test.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq

from data import Corpus, Cursor, DataConfig, LaneLoader, gpt2_encoding, open_data, open_tokenizer
from data.tokenize_source import tokenize_source
from tests.data.forms import FORMS, lines, parquet
from tests.data.servers import serving
from tests.data.token_files import llm_c_file, nanogpt_file

EOT = 50256
BLOCK_SIZE = 15  # below the tokens of any document, so that no block passes over an epoch of a lane
WORLDS, WORKERS = (1, 2, 4), (0, 1, 2, 3)
MOST_LANES = 60
STEP = 24  # sequences; any reading comes to such a place
HELD_OUT = "a document of validation that is nowhere else"
PIECES = [
    "plain words of a sentence that goes on for a while, as most of them do in prose. ",
    "one<|endoftext|>two<|endoftext|> ",
    "\U0001f469\u200d\U0001f680 e\u0301 \u202eright to left ",
    "nul \x00 and \x7f, byte order mark \ufeff, last \U0010ffff ",
    "one\r\ntwo\rthree\n\nfour\u2028five\u0085six\x0bseven ",
    "     spaces   \t\t\n\n\n   ",
    'quotes " and \\" and \' and , and \\n and \\u0041 ',
    "12345678901234567890 0x10 1e-3 ",
]


class Reading(NamedTuple):
    """How the sequences of a run are read."""

    world_size: int = 1
    workers: int = 0
    micro_batch: int = 1


class Place(NamedTuple):
    """Where a run has come to: its next sequence, and the cursors of the lanes that have moved."""

    sequence: int
    cursors: dict[int, Cursor]


START = Place(0, {})


def made_up(count: int, seed: int) -> list[str]:
    """Documents of 15 to 300 tokens, no two of them equal."""
    choose = random.Random(seed)
    return [
        f"document {number} of {count} begins here, and then it goes on: "
        + "".join(choose.choices(PIECES, k=choose.choice([1, 1, 2, 3, 8])))
        for number in range(count)
    ]


def sources(folder: Path, texts: list[str], stack: ExitStack) -> Iterator[tuple[str, DataConfig]]:
    """The texts as every kind of source; a document apart is held out for validation."""
    held_out = parquet(folder / "held out", [HELD_OUT])
    for cache in ("data.sources.jsonl.JSONL_DIR", "datasets.config.HF_DATASETS_CACHE"):
        stack.enter_context(patch(cache, folder / cache))

    def of(source: str | Path, cache_dir: str | None = None) -> DataConfig:
        return DataConfig(source=str(source), validation_source=held_out, cache_dir=cache_dir)

    for form, write in FORMS.items():
        place = folder / form
        place.mkdir()
        yield form, of(write(place, texts))
    (folder / "bins").mkdir()
    for name, write_tokens in (("nanoGPT's .bin", nanogpt_file), ("llm.c's .bin", llm_c_file)):
        path = folder / "bins" / f"{name.split(chr(39))[0]}.bin"
        write_tokens(path, texts)
        yield name, of(path)
    server = stack.enter_context(serving())
    server.files["/a.parquet"] = Path(parquet(folder / "remote", texts, 100)).read_bytes()
    server.files["/a.jsonl"] = lines(texts)
    yield "parquet at a URL", of(f"{server.url}/a.parquet")
    yield "jsonl at a URL", of(f"{server.url}/a.jsonl")
    plain = parquet(folder / "tokenized", texts, 50)
    yield "parquet with a cache", of(plain, cache_dir=str(folder / "cache"))
    tokenizer = open_tokenizer("gpt2")
    source = open_data(of(plain))[0].source
    tokenize_source(source, source.config, tokenizer, str(folder / "token shards"), workers=1)
    yield "token shards", of(folder / "token shards")


def steps(
    corpus: Corpus, config: DataConfig, reading: Reading, place: Place
) -> Iterator[tuple[np.ndarray, dict[int, Cursor]]]:
    """The sequences of a run from `place` on, those of all ranks' next micro-batches at a time, and the
    cursors of the lanes that they moved."""
    world_size, workers, micro_batch = reading
    ranks = [
        LaneLoader(
            corpus,
            replace(config, workers=workers),
            block_size=BLOCK_SIZE,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
            first_sequence=place.sequence,
            cursors=place.cursors,
        )
        for rank in range(world_size)
    ]
    while True:
        sequences = np.empty((world_size * micro_batch, BLOCK_SIZE + 1), np.int64)
        moved: dict[int, Cursor] = {}
        for rank, loader in enumerate(ranks):
            blocks, of_rank = next(loader)
            sequences[rank::world_size] = blocks.numpy()
            moved |= of_rank
        yield sequences, moved


def read(
    corpus: Corpus, config: DataConfig, reading: Reading, count: int, place: Place = START
) -> tuple[np.ndarray, Place]:
    """`count` sequences of a run from `place` on, (count, BLOCK_SIZE + 1), and where the run has come to."""
    parts, cursors = [], dict(place.cursors)
    wanted = count // (reading.world_size * reading.micro_batch)
    for sequences, moved in islice(steps(corpus, config, reading, place), wanted):
        parts.append(sequences)
        cursors |= moved
    return np.concatenate(parts), Place(place.sequence + count, cursors)


def check_epochs(corpus: Corpus, config: DataConfig, texts: Iterable[str]) -> int:
    """Every document once in each of two epochs; gives the number of sequences that they take."""
    expected = Counter(tuple(gpt2_encoding().encode_ordinary(text)) for text in texts)
    streams: list[list[int]] = [[] for _ in range(config.lanes)]
    # by epoch: the documents of a lane before it
    begins: list[dict[int, int]] = [{0: 0} for _ in range(config.lanes)]
    count = 0
    for sequences, moved in steps(corpus, config, Reading(micro_batch=config.lanes), START):
        count += config.lanes
        for lane, sequence in enumerate(sequences.tolist()):
            streams[lane] += sequence
            cursor = moved[lane]
            if cursor.epoch not in begins[lane]:
                assert cursor.window == 0, "a block was longer than a window"
                # of the epoch that begins, so many whole documents are in the stream already
                begins[lane][cursor.epoch] = streams[lane].count(EOT) - cursor.row
        if all(2 in of_lane for of_lane in begins):
            break
    documents = [_documents(stream) for stream in streams]
    for epoch in (0, 1):
        found: Counter[tuple[int, ...]] = Counter()
        for of_lane, begin in zip(documents, begins, strict=True):
            found.update(of_lane[begin[epoch] : begin[epoch + 1]])
        missing, more = (expected - found).total(), (found - expected).total()
        assert not missing and not more, f"epoch {epoch}: {missing} documents are missing, {more} too many"
    return count


def _documents(stream: Sequence[int]) -> list[tuple[int, ...]]:
    """The documents of a stream of tokens that have their end of text."""
    found, begin = [], 0
    for at, token in enumerate(stream):
        if token == EOT:
            found.append(tuple(stream[begin:at]))
            begin = at + 1
    return found


def readings(lanes: int, choose: random.Random) -> list[Reading]:
    """All numbers of ranks that divide the lanes with all numbers of workers; micro-batches are drawn."""
    worlds = [world for world in WORLDS if lanes % world == 0]
    return [Reading(world, workers, choose.choice([1, 2, 3])) for world in worlds for workers in WORKERS]


def check_order(corpus: Corpus, config: DataConfig, count: int, ways: Iterable[Reading]) -> None:
    """The same sequences, `count` at least, in the same order, however they are read."""
    count = -(-count // STEP) * STEP
    expected, _ = read(corpus, config, Reading(), count)
    for way in ways:
        found, _ = read(corpus, config, way, count)
        assert np.array_equal(found, expected), f"{way} gives other sequences"


def check_chain(config: DataConfig, count: int, stops: int, choose: random.Random) -> None:
    """A run of about `count` sequences that is stopped `stops` times and goes on in another way each time."""
    ways = readings(config.lanes, choose)
    place, parts = START, []
    for _ in range(stops + 1):
        length = choose.randint(1, max(1, 2 * count // (stops + 1) // STEP)) * STEP
        sequences, place = read(open_data(config)[0], config, choose.choice(ways), length, place)
        parts.append(sequences)
    expected, _ = read(open_data(config)[0], config, Reading(), place.sequence)
    assert np.array_equal(np.concatenate(parts), expected), f"a run of {stops + 1} parts is another one"


def check(
    texts: list[str], *, lanes: Sequence[int], ways: int, chains: int, seed: int = 0, progress: bool = False
) -> Counter[str]:
    """All checks over every kind of source; gives how many were made.

    Args:
        texts: The documents, no two of them equal, each of more than BLOCK_SIZE tokens.
        lanes: Numbers of lanes to read with, where a source has so many shards.
        ways: So many ways of reading with each number of lanes, drawn at random; all where there are fewer.
        chains: Stopped and resumed runs per kind of source.
        seed: Of what is drawn.
        progress: Whether to print a line per kind of source.

    Raises:
        AssertionError: a check failed; the message says for which source and how many lanes.
    """
    choose = random.Random(seed)
    made: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name, config in sources(Path(folder), texts, stack):
            begin = time.perf_counter()
            corpus, _ = open_data(config)
            possible = [count for count in lanes if count <= len(corpus.shards)]
            for count in possible:
                config = replace(config, lanes=count, seed=choose.randrange(1000))
                try:
                    sequences = check_epochs(corpus, config, texts)
                    drawn = readings(count, choose)
                    drawn = choose.sample(drawn, min(ways, len(drawn)))
                    check_order(corpus, config, sequences, drawn)
                except AssertionError as error:
                    raise AssertionError(f"{name}, {count} lanes: {error}") from error
                made.update({"sources with a number of lanes": 1, "ways of reading": len(drawn)})
            for _ in range(chains if possible else 0):
                config = replace(config, lanes=choose.choice(possible))
                try:
                    check_chain(config, sequences, choose.randint(2, 6), choose)
                except AssertionError as error:
                    raise AssertionError(f"{name}, {config.lanes} lanes: {error}") from error
                made["stopped and resumed runs"] += 1
            made["kinds of source"] += 1
            if progress:
                seconds = time.perf_counter() - begin
                print(f"{name}: exact with {len(possible)} numbers of lanes ({seconds:.0f} s)", flush=True)
    return made


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="a folder of parquet files with a text column")
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--ways", type=int, default=12, help="ranks and workers per number of lanes, drawn")
    parser.add_argument("--chains", type=int, default=6, help="stopped and resumed runs per kind of source")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.source:
        files = sorted(Path(given.source).glob("*.parquet"))
        texts = [text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]
        long_enough = (text for text in dict.fromkeys(texts) if text and len(text) > 200)
        texts = list(islice(long_enough, given.documents))
    else:
        texts = made_up(given.documents, given.seed)
    begin = time.perf_counter()
    made = check(
        texts,
        lanes=range(1, MOST_LANES + 1),
        ways=given.ways,
        chains=given.chains,
        seed=given.seed,
        progress=True,
    )
    print(f"{len(texts)} documents: all exact in {time.perf_counter() - begin:.0f} s")
    print(", ".join(f"{count:,} {what}" for what, count in made.items()))


if __name__ == "__main__":
    main()
