"""Measure the data loader side by side with what people use instead.

    python scripts/bench_data.py [--source FOLDER_OR_FILE_OF_PARQUET] [--tokens 8000000] [--rounds 3]

Every contender runs in a process of its own, in turn, `rounds` times over; the table gives medians. A token
of the rate is one that reaches the loop as an integer that a model can embed.
"""

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

from data import SAMPLE_DIR, Cursor, DataConfig, LaneLoader, gpt2_encoding, open_data

if TYPE_CHECKING:
    import torch

BLOCK_SIZE, MICRO_BATCH, EOT = 1024, 16, 50256

Batches = Iterator["torch.Tensor"]


def ours(config: DataConfig) -> Batches:
    """Our loader, as train.py uses it."""
    corpus, _ = open_data(config)
    config = replace(config, lanes=min(64, len(corpus.shards)))
    loader = LaneLoader(corpus, config, block_size=BLOCK_SIZE, micro_batch=MICRO_BATCH)
    return (tokens.long() for tokens, _ in loader)


def files_of(source: str) -> list[str]:
    path = Path(source)
    return [source] if path.is_file() else sorted(map(str, path.glob("*.parquet")))


def texts(source: str) -> Iterator[str]:
    """The documents of parquet files through `datasets`, streamed, again and again."""
    import datasets

    while True:
        stream = datasets.load_dataset(
            "parquet", data_files=[*map(glob.escape, files_of(source))], split="train", streaming=True
        )
        yield from (row["text"] for row in stream)


def bare_tiktoken(source: str) -> Batches:
    """Encoding alone, of documents that are in memory; nothing is packed."""
    documents, size = [], 0
    for text in texts(source):
        documents.append(text)
        size += len(text)
        if size > 20_000_000:
            break
    encode = gpt2_encoding().encode_ordinary
    while True:
        for document in documents:
            yield encode(document)  # type: ignore[misc]


def blocks(documents: Iterator[str]) -> Iterator[np.ndarray]:
    """A plain loop: encode, close with EOT, cut."""
    buffer: list[int] = []
    encode = gpt2_encoding().encode_ordinary
    for document in documents:
        buffer += encode(document)
        buffer.append(EOT)
        while len(buffer) > BLOCK_SIZE:
            yield np.array(buffer[: BLOCK_SIZE + 1])
            del buffer[: BLOCK_SIZE + 1]


def datasets_loop(source: str) -> Batches:
    """`datasets` streaming and tiktoken in a plain loop."""
    import torch

    made = blocks(texts(source))
    while True:
        yield torch.from_numpy(np.stack([next(made) for _ in range(MICRO_BATCH)]))


def data_loader(source: str) -> Batches:
    """torch's DataLoader over the same; `datasets` deals its files to the workers."""

    import torch

    class Blocks(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[np.ndarray]:
            return blocks(texts(source))

    workers = min(2, len(files_of(source)))
    return iter(torch.utils.data.DataLoader(Blocks(), batch_size=MICRO_BATCH, num_workers=workers))


def nanogpt_memmap(path: str) -> Batches:
    """nanoGPT's get_batch: random places of a memory-mapped file, mapped anew each time."""
    import torch

    while True:
        data = np.memmap(path, dtype=np.uint16, mode="r")
        places = torch.randint(len(data) - BLOCK_SIZE, (MICRO_BATCH,))
        x = torch.stack([torch.from_numpy(data[i : i + BLOCK_SIZE].astype(np.int64)) for i in places])
        torch.stack([torch.from_numpy(data[i + 1 : i + 1 + BLOCK_SIZE].astype(np.int64)) for i in places])
        yield x


def parquet(workers: int) -> Callable[[argparse.Namespace], Batches]:
    return lambda arguments: ours(DataConfig(source=arguments.source, workers=workers))


def shards(workers: int) -> Callable[[argparse.Namespace], Batches]:
    return lambda arguments: ours(DataConfig(source=arguments.shards, workers=workers))


CONTENDERS: dict[str, tuple[str, Callable[[argparse.Namespace], Batches]]] = {
    "bare": ("bare tiktoken, one core, texts in memory", lambda a: bare_tiktoken(a.source)),
    "parquet0": ("NormLab from parquet, in the loop", parquet(workers=0)),
    "parquet1": ("NormLab from parquet, 1 worker", parquet(workers=1)),
    "parquet2": ("NormLab from parquet, 2 workers", parquet(workers=2)),
    "datasets": ("datasets streaming + tiktoken, plain loop", lambda a: datasets_loop(a.source)),
    "dataloader": (
        "the same in torch's DataLoader, one worker per file, 2 at most",
        lambda a: data_loader(a.source),
    ),
    "shards0": ("NormLab from token shards, in the loop", shards(workers=0)),
    "shards1": ("NormLab from token shards, 1 worker", shards(workers=1)),
    "memmap": ("nanoGPT's memmap sampling", lambda a: nanogpt_memmap(a.bin)),
}
FROM_TOKENS = ("shards0", "shards1", "memmap")


def memory_mb() -> float:
    """The proportional memory of this process and its children."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes) / 1e6


def cpu_seconds() -> float:
    """CPU time of this process and its children so far."""
    times = (p.cpu_times() for p in (psutil.Process(), *psutil.Process().children(recursive=True)))
    return sum(t.user + t.system for t in times)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One contender in this process."""
    import torch

    gpt2_encoding()
    before = memory_mb()
    goal = arguments.tokens * (10 if name in FROM_TOKENS else 1)
    started = time.perf_counter()
    batches = CONTENDERS[name][1](arguments)
    next(batches)
    first = time.perf_counter() - started
    for _ in range(64 // MICRO_BATCH):  # until every lane has been opened
        next(batches)
    wall, cpu, tokens = time.perf_counter(), cpu_seconds(), 0
    while tokens < goal:
        batch = next(batches)
        tokens += MICRO_BATCH * BLOCK_SIZE if isinstance(batch, torch.Tensor) else len(batch)
    wall, cpu, memory = time.perf_counter() - wall, cpu_seconds() - cpu, memory_mb() - before
    return {"rate": tokens / wall, "per_cpu": tokens / cpu, "first": first, "memory": memory}


def resume(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds from cursors to the first block of each of 64 lanes, at 10, 50 and 90 % of the corpus."""
    config = DataConfig(source=arguments.source, workers=0)
    corpus, _ = open_data(config)
    lanes = min(64, len(corpus.shards))
    config = replace(config, lanes=lanes)
    open_at = partial(LaneLoader, corpus, config, block_size=BLOCK_SIZE, micro_batch=lanes)
    loader = open_at()
    places: list[dict[int, Cursor]] = [{}]
    while not any(cursor.epoch for cursor in places[-1].values()):
        places.append(next(loader)[1])
    found = {}
    for percent in (10, 50, 90):
        step = len(places) * percent // 100
        times = []
        for _ in range(9):
            started = time.perf_counter()
            next(open_at(first_sequence=step * lanes, cursors=places[step]))
            times.append(time.perf_counter() - started)
        found[f"{percent} %"] = statistics.median(times)
    return found


def in_a_process(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    options = [f"--{key}={value}" for key, value in vars(arguments).items() if key != "only"]
    command = [sys.executable, __file__, *options, f"--only={name}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default=str(SAMPLE_DIR / "train.parquet"), help="parquet to read")
    parser.add_argument("--tokens", type=int, default=8_000_000, help="tokens per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    for hidden in ("shards", "bin", "only"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        result = resume(arguments) if arguments.only == "resume" else measure(arguments.only, arguments)
        print(json.dumps(result), flush=True)
        os._exit(0)  # a partly read stream of `datasets` can hang the exit

    if Path(arguments.source).parent == SAMPLE_DIR:
        from data import build_sample

        build_sample(SAMPLE_DIR, progress=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments.shards, arguments.bin = f"{folder}/shards", f"{folder}/train.bin"
        tokenize = [
            sys.executable,
            str(Path(__file__).with_name("tokenize_data.py")),
            arguments.source,
            "--out",
            arguments.shards,
        ]
        subprocess.run(tokenize, check=True, capture_output=True)
        documents = (
            np.array([*gpt2_encoding().encode_ordinary(text), EOT], np.uint16)
            for text in once(arguments.source)
        )
        np.concatenate(list(documents)).tofile(arguments.bin)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for number in range(arguments.rounds):
            for name, found in results.items():
                print(f"round {number + 1} of {arguments.rounds}: {CONTENDERS[name][0]}", file=sys.stderr)
                found.append(in_a_process(name, arguments))
        resumed = in_a_process("resume", arguments)

    def median(name: str, key: str) -> float:
        return statistics.median(found[key] for found in results[name])

    print("| loader | Mtok/s | Mtok per CPU second | against bare tiktoken | first batch | memory |")
    print("|---|---|---|---|---|---|")
    for name, (title, _) in CONTENDERS.items():
        pairs = zip(results[name], results["bare"], strict=True)
        ratio = statistics.median(found["per_cpu"] / bare["per_cpu"] for found, bare in pairs)
        rate, per_cpu = median(name, "rate") / 1e6, median(name, "per_cpu") / 1e6
        first, memory = median(name, "first"), median(name, "memory")
        print(f"| {title} | {rate:.2f} | {per_cpu:.2f} | {ratio:.2f} | {first:.2f} s | {memory:.0f} MB |")
    places = ", ".join(f"{seconds * 1000:.0f} ms at {place}" for place, seconds in resumed.items())
    print(f"\nresume of 64 lanes: {places} of the corpus")


def once(source: str) -> Iterator[str]:
    """The documents of parquet files, once."""
    import pyarrow.parquet as pq

    yield from pq.read_table(source, columns=["text"]).column("text").to_pylist()


if __name__ == "__main__":
    main()
