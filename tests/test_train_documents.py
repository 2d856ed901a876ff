"""The main job's documents: bad ones, packed ones, and tokens that do not fit the model or the run."""

import itertools
import json
import re
import signal
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

import train
from data import LaneLoader, open_data
from data.lanes import deal
from tests.jobs import arguments, lines_of, make_job, run, run_until, steps_of, summary_of
from tests.short_lines import (
    LANES,
    ROWS,
    STEPS,
    TEXTS,
    assert_interrupted,
    config_of,
    damage,
    error_in,
    first_shards,
    train_as_large,
)

BAD = {1: "empty", 2: "empty", 3: "not_utf8", 4: "too_long", 5: "unreadable"}
"""Shards of the bad corpus, and what is wrong with their document 1, or with all of them."""
IN_WORDS = {
    "empty": "has no text",
    "not_utf8": "is not valid UTF-8",
    "too_long": "is longer than data.max_document_bytes",
    "unreadable": "is damaged in part 5, from row 0 on",
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of short lines, a recipe that reads it as bytes, and a DeepSpeed config."""
    return make_job(tmp_path_factory.mktemp("job"), TEXTS, STEPS, "bytes")


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
@pytest.mark.usefixtures("large_shards")
def test_bad_documents_are_skipped_and_counted_or_stop_the_run_there(bad_job: Path) -> None:
    job, lanes = bad_job, range(LANES)
    late = next(seed for seed in range(99) if not BAD.keys() & first_shards(job, lanes, seed, 2))
    early = next(seed for seed in range(99) if BAD.keys() & first_shards(job, lanes, seed, 1))

    def bad(run_dir: Path, policy: str, seed: int = late) -> list[str]:
        options = ["--data.on_bad_document", policy, "--data.seed", str(seed)]
        return arguments(job, run_dir, *options, "--data.max_document_bytes", "400")

    whole, killed, stopped, stopped_at_once = (
        job / name for name in ("whole", "killed", "stopped", "stopped_at_once")
    )
    skipped, stop = (
        run(bad(whole, "skip"), main=train_as_large),
        run(bad(stopped, "stop"), main=train_as_large),
    )
    stop_at_once = run(bad(stopped_at_once, "stop", early), main=train_as_large)

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
    assert summary_of(stopped_at_once)["status"] == "failed"
    assert summary_of(stopped_at_once)["error"] == error_in(stop_at_once.stderr)
    assert summary_of(stopped_at_once)["step"] == 0 and "saved" not in stop_at_once.stderr
    step = assert_interrupted(stopped, error_in(stop.stderr))
    assert f"has failed: the same command goes on from checkpoints/step_{step:08d}" in stop.stderr

    run_until(bad(killed, "skip"), 24, signal.SIGKILL, main=train_as_large)
    assert any("bad_documents" in line for line in lines_of(killed))
    for run_dir in (killed, stopped):
        result = run(bad(run_dir, "skip"), main=train_as_large)
        assert result.returncode == 0, result.stderr
    for run_dir in (killed, stopped):
        assert steps_of(run_dir) == steps_of(whole)
        again = [line.get("bad_documents", {}) for line in lines_of(run_dir) if line["kind"] == "train"]
        assert again == counts


def test_a_vocabulary_that_does_not_fit_the_tokenizer_is_refused(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(job, tmp_path / "run", "--model.vocab_size", "256")) == 2
    assert capsys.readouterr().err == (
        "error: model.vocab_size is 256: data.tokenizer bytes needs at least 257\n"
    )


@pytest.mark.slow
def test_packed_documents_under_a_mask_count_the_targets_that_are_learnt(job: Path) -> None:
    run_dir = job / "packed"
    result = run(arguments(job, run_dir, "--data.packing", "best_fit", "--data.document_mask", "true"))
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
    result = run(arguments(job, tmp_path / "run", *block))
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
    words = arguments(job, run_dir, "--schedule.steps", "3")
    result = run([*words, "--train.steps", "1"])
    assert result.returncode == 0, result.stderr
    before = (run_dir / "summary.json").read_text()

    def append_a_file() -> None:
        pq.write_table(pa.table({"text": TEXTS[:4]}), appended)

    def change_the_tokenizer() -> None:
        appended.unlink()
        write_tokenizer(tmp_path / "tokenizer.json", string.printable[::-1])

    for change, what in ((append_a_file, "data"), (change_the_tokenizer, "tokenizer files")):
        change()
        result = run([*words, "--train.steps", "2"])
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 2  # what is held out, and that
        assert f"{run_dir} began on other {what} than its recipe finds now (" in error_in(result.stderr)
        assert (run_dir / "summary.json").read_text() == before
