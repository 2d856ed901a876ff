"""The main job's data: however it is read, and whatever ends it on the way, the same run comes out."""

import itertools
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from data import build_sample
from data.sources import DamagedShard, ParquetSource, Shard, network
from model.errors import INTERRUPTED
from tests.data.servers import serving
from tests.jobs import (
    arguments,
    make_job,
    run,
    run_command,
    start_until,
    steps_of,
    summary_of,
    train_main,
)
from tests.short_lines import (
    RESERVED,
    ROWS,
    SEED,
    STEPS,
    TEXTS,
    assert_interrupted,
    damage,
    error_in,
    first_shards,
    train_as_large,
)
from training.engine.weights import load_model


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of short lines, a recipe that reads it as bytes, and a DeepSpeed config."""
    return make_job(tmp_path_factory.mktemp("job"), TEXTS, STEPS, "bytes")


@pytest.fixture(scope="module")
def uninterrupted(job: Path) -> Path:
    run_dir = job / "uninterrupted"
    result = run(arguments(job, run_dir, "--data.workers", "0"))
    assert result.returncode == 0, result.stderr
    return run_dir


def copy_of_corpus(job: Path, folder: Path, damaged: Sequence[int]) -> Path:
    shutil.copytree(job / "corpus", folder)
    damage(folder / "topics.parquet", damaged)
    return folder


def workers_of(pid: int) -> list[psutil.Process]:
    main = psutil.Process(pid)
    return [child for child in main.children(recursive=True) if child.name() == "data worker"]


def assert_end(processes: Sequence[psutil.Process]) -> None:
    """That they end; how long a busy machine takes to say so does not matter."""
    end = time.monotonic() + 120
    while any(map(is_alive, processes)):
        assert time.monotonic() < end, processes
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def without_texts(words: list[str]) -> int:
    """train.py that can read no text but that of validation: all that it trains on is in the cache."""
    rows = ParquetSource._rows

    def of_validation(source: ParquetSource, shard: Shard) -> Any:
        if shard.index < len(source.shards) - RESERVED * ROWS:
            raise DamagedShard("its text is gone")
        return rows(source, shard)

    ParquetSource._rows = of_validation  # type: ignore[method-assign]  # in a process of its own
    return train_main(words)


@pytest.mark.slow
def test_the_numbers_are_the_same_however_the_data_is_read(job: Path, uninterrupted: Path) -> None:
    cache, shards = ["--data.cache_dir", str(job / "cache")], str(job / "shards")
    tokenize = ["scripts/tokenize_data.py", str(job / "corpus"), "--out", shards, "--data.tokenizer", "bytes"]
    result = run_command(tokenize)
    assert result.returncode == 0, result.stderr
    ways = {
        "one_worker": ["--data.workers", "1", "--data.prefetch", "1"],
        "fills_the_cache": ["--data.workers", "3", "--data.prefetch", "4096", *cache],
        "reads_the_cache": cache,
        "token_shards": ["--data.source", shards],
    }
    for name, options in ways.items():
        main = without_texts if name == "reads_the_cache" else train_main
        result = run(arguments(job, job / name, *options), main=main)
        assert result.returncode == 0, (name, result.stderr)
        assert steps_of(job / name) == steps_of(uninterrupted), name
        assert summary_of(job / name)["data_fingerprint"] == summary_of(uninterrupted)["data_fingerprint"]


@pytest.mark.slow
def test_stopped_with_any_workers_it_is_the_whole_run_and_leaves_none(job: Path, uninterrupted: Path) -> None:
    run_dir = job / "stopped"
    stops: list[tuple[int, int, Callable[[int, int], None], signal.Signals]] = [
        (2, 6, os.kill, signal.SIGKILL),
        (0, 15, os.killpg, signal.SIGKILL),
        (2, 24, os.killpg, signal.SIGTERM),
    ]
    for workers, lines, send, signum in stops:
        process = start_until(arguments(job, run_dir, "--data.workers", str(workers)), lines)
        processes = workers_of(process.pid)
        assert len(processes) == workers
        send(process.pid, signum)
        assert process.wait() == (INTERRUPTED if signum == signal.SIGTERM else -signum)
        assert_end(processes)
        expected = "interrupted" if signum == signal.SIGTERM else "running"
        assert summary_of(run_dir)["status"] == expected
    process = start_until(arguments(job, run_dir, "--data.workers", "2"), 34)
    processes = workers_of(process.pid)
    assert len(processes) == 2
    assert process.wait() == 0
    assert_end(processes)
    assert steps_of(run_dir) == steps_of(uninterrupted)


def kills_a_worker(words: list[str]) -> int:
    """train.py, one of whose workers is killed as a micro-batch of its third step begins."""
    import training.step

    inputs_and_targets, calls = training.step.inputs_and_targets, itertools.count()

    def killing(*given: Any) -> Any:
        if next(calls) == 9:
            [*_, last] = workers_of(os.getpid())
            last.kill()
        return inputs_and_targets(*given)

    training.step.inputs_and_targets = killing
    return train_main(words)


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_changes_nothing(job: Path, uninterrupted: Path) -> None:
    run_dir = job / "worker_killed"
    words = arguments(job, run_dir, "--data.workers", "2", "--data.prefetch", "16")
    result = run(words, main=kills_a_worker)
    assert result.returncode == 0, result.stderr
    said = "a process that reads the data was killed (SIGKILL), perhaps for want of memory: another goes on"
    assert result.stderr.count(said) == 1
    assert steps_of(run_dir) == steps_of(uninterrupted)
    assert "error" not in summary_of(run_dir)


@pytest.mark.slow
@pytest.mark.usefixtures("large_shards")
def test_when_the_data_of_one_rank_ends_both_ranks_stop_at_the_same_step(job: Path) -> None:
    source, run_dir = job / "damaged", job / "two_ranks"
    *whole, damaged = first_shards(job, [1], SEED, 3)  # lanes 1 and 3 are rank 1's
    copy_of_corpus(job, source, [damaged])
    options = ["--data.source", str(source), "--data.on_bad_document", "stop"]
    result = run(arguments(job, run_dir, *options), ranks=2, main=train_as_large)
    assert result.returncode == 1
    sentence = error_in(result.stderr)
    assert f"is damaged in part {damaged}, from row 0 on" in sentence
    step = assert_interrupted(run_dir, sentence)
    tokens = sum(len(text.encode()) + 1 for shard in whole for text in TEXTS[shard * ROWS :][:ROWS])
    assert step == tokens // (2 * 33)  # each step takes two blocks of each lane
    state = json.loads((run_dir / "checkpoints" / f"step_{step:08d}" / "trainer_state.json").read_text())
    assert state["step"] == step and state["world_size"] == 2


def impatient(words: list[str]) -> int:
    """train.py that does not wait before it asks a server again."""
    network.RETRY_SECONDS = (0, 0)  # in a process of its own
    return train_main(words)


@pytest.mark.slow
def test_a_dead_server_ends_the_run_with_a_sentence_and_it_goes_on(job: Path, uninterrupted: Path) -> None:
    run_dir = job / "remote"
    with serving() as server:
        server.files["/topics.parquet"] = (job / "corpus" / "topics.parquet").read_bytes()
        url = f"{server.url}/topics.parquet"
        words = arguments(
            job, run_dir, "--data.source", url, "--data.prefetch", "16", "--data.timeout_s", "1"
        )
        process = start_until(words, 6, main=impatient)
        server.faults = [503] * 10_000
        assert process.wait() == 1
        sentence = error_in(process.printed()[1])
        assert sentence.startswith(f"{url} cannot be read (") and "; tried for " in sentence
        assert_interrupted(run_dir, sentence)
        server.faults = []
        result = run(words, main=impatient)
    assert result.returncode == 0, result.stderr
    assert steps_of(run_dir) == steps_of(uninterrupted)


def test_bytes_as_tokens_make_a_small_embedding_and_the_same_bits_a_byte(uninterrupted: Path) -> None:
    summary = summary_of(uninterrupted)
    gpt, step = load_model(uninterrupted)
    assert gpt.transformer["wte"].weight.shape[0] == 320  # 257 rounded up to a multiple of 64
    assert summary["tokenizer"] == "bytes"
    held_out = [text.encode() for text in TEXTS[-RESERVED * ROWS :]]
    table = pq.read_table(uninterrupted / "eval" / f"step_{step:08d}" / "validation.parquet").to_pandas()
    assert table["bytes"].tolist() == [len(text) for text in held_out]
    assert table["tokens"].tolist() == [len(text) + 1 for text in held_out]
    in_bits = summary["val_loss"] * table["tokens"].sum() / math.log(2) / table["bytes"].sum()
    assert summary["val_bits_per_byte"] == pytest.approx(in_bits, rel=1e-12)
    assert table["loss"].sum() / math.log(2) / table["bytes"].sum() == pytest.approx(in_bits, rel=1e-12)


@pytest.mark.slow
def test_a_model_of_bytes_is_evaluated(uninterrupted: Path) -> None:
    build_sample()
    evaluation = ["-m", "eval", str(uninterrupted), "--tasks", "sample_lastword"]
    result = run_command([*evaluation, "--limit", "2"])
    assert result.returncode == 0, result.stderr
    results = json.loads(next(uninterrupted.glob("eval/*/results.json")).read_text())
    assert "sample_lastword" in results["results"]
