"""The main job's data: however it is read, and whatever ends it on the way, the same run comes out."""

import itertools
import json
import math
import os
import pydoc_data.topics
import re
import shutil
import signal
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

import train
from data import SAMPLE_DIR, DataConfig, LaneLoader, open_data
from data.lanes import deal
from data.sample.build import is_complete
from tests.data.servers import serving
from tests.jobs import (
    ENVIRONMENT,
    command,
    lines_of,
    make_job,
    run,
    run_until,
    start_until,
    steps_of,
    summary_of,
)
from training.engine.weights import load_model

STEPS = 32
SHARDS, RESERVED, LANES, SEED = 30, 3, 4, 1234
ROWS = 4
"""Of a shard: the run reads each of its lanes' six or seven shards, and some of them again."""
LINES = "\n".join(pydoc_data.topics.topics.values()).split("\n")
TEXTS = list(dict.fromkeys(line for line in LINES if len(line) > 50))[: SHARDS * ROWS]
BAD = {1: "empty", 2: "empty", 3: "not_utf8", 4: "too_long", 5: "unreadable"}
"""Shards of the bad corpus, and what is wrong with their document 1, or with all of them."""
IN_WORDS = {
    "empty": "has no text",
    "not_utf8": "is not valid UTF-8",
    "too_long": "is longer than data.max_document_bytes",
    "unreadable": "is damaged in part 5, from row 0 on",
}


@pytest.fixture(scope="module", autouse=True)
def without_tracking() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "WANDB_MODE", "disabled")  # a second of every start
        yield


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of short lines, a recipe that reads it as bytes, and a DeepSpeed config."""
    return make_job(tmp_path_factory.mktemp("job"), TEXTS, STEPS, "bytes")


@pytest.fixture(scope="module")
def uninterrupted(job: Path) -> Path:
    run_dir = job / "uninterrupted"
    result = run(command(job, run_dir, "--data.workers", "0"))
    assert result.returncode == 0, result.stderr
    return run_dir


def run_together(*commands: list[str]) -> list[subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(run, commands))


def damage(file: Path, groups: Sequence[int]) -> None:
    """Overwrite the texts of some row groups, as a failing disk does: the file's size and time stay."""
    stat, content, metadata = file.stat(), bytearray(file.read_bytes()), pq.read_metadata(file)
    for group in groups:
        column = metadata.row_group(group).column(0)
        start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
        content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def copy_of_corpus(job: Path, folder: Path, damaged: Sequence[int]) -> Path:
    shutil.copytree(job / "corpus", folder)
    damage(folder / "topics.parquet", damaged)
    return folder


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    main = psutil.Process(process.pid)
    return [child for child in main.children() if child.cmdline() == main.cmdline()]


def assert_end(processes: Sequence[psutil.Process], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while any(map(is_alive, processes)):
        assert time.monotonic() < end, processes
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def output_of(process: subprocess.Popen[str]) -> str:
    """What it has printed when it ends, which it does by itself."""
    try:
        return process.communicate(timeout=60)[1]
    finally:
        process.kill()


def error_in(printed: str) -> str:
    """The one sentence about what went wrong."""
    assert "raceback" not in printed, printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, printed
    return errors[0].removeprefix("error: ")


def assert_interrupted(run_dir: Path, sentence: str) -> int:
    """Stopped by its data, with a checkpoint of the last step, which is given."""
    summary = summary_of(run_dir)
    assert (summary["status"], summary["error"]) == ("interrupted", sentence)
    steps = [line["step"] for line in lines_of(run_dir) if line["kind"] == "train"]
    assert summary["step"] == steps[-1] < STEPS
    assert summary["last_checkpoint"] == f"checkpoints/step_{steps[-1]:08d}"
    return steps[-1]


@pytest.mark.slow
def test_the_numbers_are_the_same_however_the_data_is_read(job: Path, uninterrupted: Path) -> None:
    cache, shards = ["--data.cache_dir", str(job / "cache")], str(job / "shards")
    tokenize = [sys.executable, "scripts/tokenize.py", str(job / "corpus"), "--out", shards]
    unreadable = copy_of_corpus(job, job / "unreadable", damaged=range(SHARDS - RESERVED))
    with pytest.raises(OSError):
        pq.ParquetFile(unreadable / "topics.parquet").read_row_group(0)

    def reading(name: str, *options: str) -> list[str]:
        return command(job, job / name, *options)

    results = run_together(
        reading("one_worker", "--data.workers", "1", "--data.prefetch", "1"),
        reading("fills_the_cache", "--data.workers", "3", "--data.prefetch", "4096", *cache),
        [*tokenize, "--data.tokenizer", "bytes"],
    ) + run_together(
        # its source's texts are gone, but for those of validation: all that it trains on is in the cache
        reading("reads_the_cache", "--data.source", str(unreadable), *cache),
        reading("token_shards", "--data.source", shards),
    )
    assert [result.returncode for result in results] == [0] * 5, [result.stderr for result in results]
    for name in ("one_worker", "fills_the_cache", "reads_the_cache", "token_shards"):
        assert steps_of(job / name) == steps_of(uninterrupted), name
        assert summary_of(job / name)["data_fingerprint"] == summary_of(uninterrupted)["data_fingerprint"]


@pytest.mark.slow
def test_killed_and_stopped_with_any_workers_a_run_is_the_uninterrupted_one_and_leaves_no_process(
    job: Path, uninterrupted: Path
) -> None:
    run_dir = job / "stopped"
    stops: list[tuple[int, int, Callable[[int, int], None], signal.Signals]] = [
        (2, 6, os.kill, signal.SIGKILL),
        (0, 15, os.killpg, signal.SIGKILL),
        (2, 24, os.killpg, signal.SIGTERM),
    ]
    for workers, lines, send, signum in stops:
        process = start_until(command(job, run_dir, "--data.workers", str(workers)), run_dir, lines)
        processes = workers_of(process)
        assert len(processes) == workers
        send(process.pid, signum)
        assert process.wait(timeout=60) == (0 if signum == signal.SIGTERM else -signum)
        assert_end(processes)
        expected = "interrupted" if signum == signal.SIGTERM else "running"
        assert summary_of(run_dir)["status"] == expected
    process = start_until(command(job, run_dir, "--data.workers", "2"), run_dir, 34)
    processes = workers_of(process)
    assert len(processes) == 2
    assert process.wait(timeout=60) == 0
    assert_end(processes)
    assert steps_of(run_dir) == steps_of(uninterrupted)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_with_a_sentence_and_the_same_command_goes_on(
    job: Path, uninterrupted: Path
) -> None:
    run_dir = job / "worker_killed"
    words = command(job, run_dir, "--data.workers", "2", "--data.prefetch", "16")
    process = start_until(words, run_dir, 6, stderr=subprocess.PIPE)
    workers_of(process)[-1].kill()
    printed = output_of(process)
    assert process.returncode == 1
    sentence = error_in(printed)
    assert sentence.startswith("a process that reads the data was killed (exit code -9)")
    assert_interrupted(run_dir, sentence)
    assert run(words).returncode == 0
    assert steps_of(run_dir) == steps_of(uninterrupted)
    assert "error" not in summary_of(run_dir)


@pytest.fixture(scope="module")
def bad_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts: list[bytes | None] = [text.encode() for text in TEXTS]
    at = {shard: shard * ROWS + 1 for shard in BAD}
    texts[at[1]], texts[at[2]], texts[at[3]], texts[at[4]] = None, b"", b"caf\xe9", b"long " * 100
    job = make_job(
        tmp_path_factory.mktemp("bad"), pa.array(texts, pa.binary()).view(pa.string()), STEPS, "bytes"
    )
    damage(job / "corpus" / "topics.parquet", [5])
    return job


def first_shards(job: Path, lanes: Sequence[int], seed: int, count: int) -> list[int]:
    """The numbers of those that some lanes read first."""
    corpus, _ = open_data(config_of(job))
    return [shard.index for lane in lanes for shard in deal(corpus, LANES, lane, seed, 0)[:count]]


def config_of(job: Path, **settings: Any) -> DataConfig:
    settings = {"tokenizer": "bytes", "lanes": LANES, "validation_tokens": 4000} | settings
    return DataConfig(source=str(job / "corpus"), **settings)


def bad_documents_passed(job: Path, run_dir: Path, seed: int) -> dict[str, int]:
    """Those of the shards that lie behind the cursors of the last checkpoint."""
    checkpoint = run_dir / summary_of(run_dir)["last_checkpoint"]
    cursors = json.loads((checkpoint / "trainer_state.json").read_text())["cursors"]
    corpus, _ = open_data(config_of(job))
    passed: Counter[str] = Counter()
    for lane, (epochs, window, *_) in cursors.items():
        for epoch in range(epochs + 1):
            shards = deal(corpus, LANES, int(lane), seed, epoch)
            for shard in shards[: window if epoch == epochs else None]:
                if reason := BAD.get(shard.index):
                    passed[reason] += ROWS if reason == "unreadable" else 1
    return dict(passed)


@pytest.mark.slow
def test_bad_documents_are_skipped_and_counted_or_stop_the_run_where_they_stand(bad_job: Path) -> None:
    job, lanes = bad_job, range(LANES)
    late = next(seed for seed in range(99) if not BAD.keys() & first_shards(job, lanes, seed, 2))
    early = next(seed for seed in range(99) if BAD.keys() & first_shards(job, lanes, seed, 1))

    def bad(run_dir: Path, policy: str, seed: int = late) -> list[str]:
        options = ["--data.on_bad_document", policy, "--data.seed", str(seed)]
        return command(job, run_dir, *options, "--data.max_document_bytes", "400")

    whole, killed, stopped, stopped_at_once = (
        job / name for name in ("whole", "killed", "stopped", "stopped_at_once")
    )
    skipped, stop, stop_at_once = run_together(
        bad(whole, "skip"), bad(stopped, "stop"), bad(stopped_at_once, "stop", early)
    )

    assert skipped.returncode == 0, skipped.stderr
    counts = [line.get("bad_documents", {}) for line in lines_of(whole) if line["kind"] == "train"]
    assert counts[0] == {} and counts[-1] == bad_documents_passed(job, whole, late)
    assert counts[-1].keys() == set(BAD.values())
    for reason in ("empty", "not_utf8", "too_long"):
        assert skipped.stderr.count(f"a document {IN_WORDS[reason]}: it is left out") == 1

    for result in (stop, stop_at_once):
        assert result.returncode == 1
        sentence, file = error_in(result.stderr), f"{job}/corpus/topics.parquet"
        where = re.match(rf"data.source: document 1 of part (\d) of {file} ", sentence)
        part = int(where[1]) if where else 5
        start = where[0] if where else f"data.source: {file} "
        assert sentence.removeprefix(start).startswith(IN_WORDS[BAD[part]])
    assert summary_of(stopped_at_once)["status"] == "interrupted"
    assert summary_of(stopped_at_once)["error"] == error_in(stop_at_once.stderr)
    assert summary_of(stopped_at_once)["step"] == 0 and "saved" not in stop_at_once.stderr
    step = assert_interrupted(stopped, error_in(stop.stderr))
    assert f"is stopped and saved at step {step}: the same command goes on from there" in stop.stderr

    run_until(bad(killed, "skip"), killed, 24, signal.SIGKILL)
    assert any("bad_documents" in line for line in lines_of(killed))
    for result in run_together(bad(killed, "skip"), bad(stopped, "skip")):
        assert result.returncode == 0, result.stderr
    for run_dir in (killed, stopped):
        assert steps_of(run_dir) == steps_of(whole)
        again = [line.get("bad_documents", {}) for line in lines_of(run_dir) if line["kind"] == "train"]
        assert again == counts


@pytest.mark.slow
def test_when_the_data_of_one_rank_ends_both_ranks_stop_at_the_same_step(job: Path) -> None:
    source, run_dir = job / "damaged", job / "two_ranks"
    *whole, damaged = first_shards(job, [1], SEED, 3)  # lanes 1 and 3 are rank 1's
    copy_of_corpus(job, source, [damaged])
    options = ["--data.source", str(source), "--data.on_bad_document", "stop"]
    result = run(command(job, run_dir, *options, ranks=2), timeout=120)
    assert result.returncode == 1
    sentence = error_in(result.stderr)
    assert f"is damaged in part {damaged}, from row 0 on" in sentence
    step = assert_interrupted(run_dir, sentence)
    tokens = sum(len(text.encode()) + 1 for shard in whole for text in TEXTS[shard * ROWS :][:ROWS])
    assert step == tokens // (2 * 33)  # each step takes two blocks of each lane
    state = json.loads((run_dir / "checkpoints" / f"step_{step:08d}" / "trainer_state.json").read_text())
    assert state["step"] == step and state["world_size"] == 2


IMPATIENT = """
import sys
from functools import partial
import train
from data import retry
retry.RETRY_SECONDS = (0, 0)
train.unigram_loss = partial(train.unigram_loss, sample=1000)  # which reads a small source again and again
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_server_that_dies_ends_the_run_with_a_sentence_and_the_same_command_goes_on(
    job: Path, uninterrupted: Path
) -> None:
    run_dir = job / "remote"
    with serving() as server:
        server.files["/topics.parquet"] = (job / "corpus" / "topics.parquet").read_bytes()
        url = f"{server.url}/topics.parquet"
        words = command(job, run_dir, "--data.source", url, "--data.prefetch", "16")
        words[1:2] = ["-c", IMPATIENT]
        process = start_until(words, run_dir, 6, stderr=subprocess.PIPE)
        server.faults = [503] * 10_000
        printed = output_of(process)
        assert process.returncode == 1
        sentence = error_in(printed)
        assert sentence.startswith(f"{url} cannot be read (") and "tried 3 times" in sentence
        assert_interrupted(run_dir, sentence)
        server.faults = []
        result = run(words)
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


@pytest.mark.skipif(not is_complete(SAMPLE_DIR), reason="the embedded sample is not built")
def test_a_model_of_bytes_is_evaluated(uninterrupted: Path) -> None:
    evaluation = [sys.executable, "-m", "eval", str(uninterrupted), "--tasks", "sample_lastword"]
    result = run([*evaluation, "--limit", "2"])
    assert result.returncode == 0, result.stderr
    results = json.loads(next(uninterrupted.glob("eval/*/results.json")).read_text())
    assert "sample_lastword" in results["results"]


def test_a_vocabulary_that_does_not_fit_the_tokenizer_is_refused(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(command(job, tmp_path / "run", "--model.vocab_size", "256")[2:]) == 2
    assert capsys.readouterr().err == (
        "error: model.vocab_size is 256: data.tokenizer bytes needs at least 257\n"
    )


@pytest.mark.slow
def test_packed_documents_under_a_mask_count_the_targets_that_are_learnt(job: Path) -> None:
    run_dir = job / "packed"
    result = run(command(job, run_dir, "--data.packing", "best_fit", "--data.document_mask", "true"))
    assert result.returncode == 0, result.stderr
    config = config_of(job, packing="best_fit", workers=0)
    corpus, _ = open_data(config)
    loader = LaneLoader(corpus, config, block_size=32, micro_batch=8)
    blocks = [tokens.numpy() for tokens, _ in itertools.islice(loader, STEPS)]
    # an end of text stands after a document, or as filling
    filling = [int(((block[:, 1:] == 256) & (block[:, :-1] == 256)).sum()) for block in blocks]
    assert sum(filling) > 100
    lines = [line for line in lines_of(run_dir) if line["kind"] == "train"]
    assert [line["tokens"] for line in lines] == np.cumsum([8 * 32 - free for free in filling]).tolist()
    assert all(line["loss"] is not None for line in lines)
    assert summary_of(run_dir)["packing"] == "best_fit masked"


def test_a_block_that_cannot_mask_documents_is_refused(job: Path, tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(
        "import torch\n"
        "class Block(torch.nn.Linear):\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config.n_embd, config.n_embd)\n"
    )
    block = ["--model.block", f"{tmp_path / 'block.py'}:Block", "--data.document_mask", "true"]
    result = run(command(job, tmp_path / "run", *block))
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert error_in(result.stderr).startswith("data.document_mask is true, but block 0 of model.block")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def write_tokenizer(file: Path, characters: str) -> None:
    vocabulary = {character: number for number, character in enumerate(["<|endoftext|>", *characters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.save(str(file))


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_data_or_another_tokenizer(job: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    job = make_job(tmp_path / "other", TEXTS, STEPS, str(tmp_path / "tokenizer.json"))
    run_dir, appended = tmp_path / "run", job / "corpus" / "zzz.parquet"
    write_tokenizer(tmp_path / "tokenizer.json", string.printable)
    words = command(job, run_dir, "--schedule.steps", "3")
    result = run([*words, "--train.steps", "1"])
    assert result.returncode == 0, result.stderr
    before = (run_dir / "summary.json").read_text()

    def append_a_file() -> None:
        pq.write_table(pa.table({"text": TEXTS[:4]}), appended)

    def change_the_tokenizer() -> None:
        appended.unlink()
        write_tokenizer(tmp_path / "tokenizer.json", string.printable[::-1])

    for change in (append_a_file, change_the_tokenizer):
        change()
        result = run([*words, "--train.steps", "2"])
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert f"{run_dir} began on other data than its recipe finds now (" in error_in(result.stderr)
        assert (run_dir / "summary.json").read_text() == before
