"""Answers to requests: shared by ranks, kept through a kill, and the end of all ranks when one fails."""

import io
import json
import math
import os
import resource
import shutil
import signal
import struct
import time
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from data import open_tokenizer
from eval.scoring import kept
from eval.scoring.answers import Answers
from eval.scoring.kept import Keep, model_fingerprint
from eval.scoring.peers import Peers
from model import GPT, GPTConfig
from model.errors import UserError
from tests.distributed import run_on_ranks
from tests.own_designs import SCALAR
from tests.processes import ForkedError, run_forked
from tests.tiny import TINY

NUMBERS = [-0.1 - 1e-9 * n for n in range(8)] + [
    math.inf,
    -math.inf,
    math.nan,
    -0.0,
    5e-324,
    1 / 3,
    2.0,
    1e23,
]
BATCHES = [[3, 1, 0], [2, 5, 4], [6, 7], [8, 9], [10], [11, 12], [13], [15, 14]]


def quiet(**options) -> tqdm:
    return tqdm(disable=True)


class Model:
    """Answers request `i` by the number and the text of that index, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def answer(self, batch: list[int]) -> list[tuple[float, bool]]:
        self.asked.append(batch)
        return [(NUMBERS[i], i % 2 == 0) for i in batch]


def bits(answers: list[tuple[float, bool]]) -> list[tuple[bytes, bool]]:
    return [(struct.pack("d", number), flag) for number, flag in answers]


EXPECTED = bits([(number, i % 2 == 0) for i, number in enumerate(NUMBERS)])


def collect(folder: Path | None, model: Model, said: list[str], model_hash: str = "m", requests=NUMBERS):
    keep = Keep(folder, model_hash, said.append) if folder else None
    return Answers(quiet, "a/b", keep).collect(requests, BATCHES, model.answer, " requests")


def killed(folder: Path, after: int) -> None:
    """A process that ends by SIGKILL as it is asked for its batch number `after`."""
    kept.WRITE_EVERY_S = 0.0

    class Mortal(Model):
        def answer(self, batch):
            if len(self.asked) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().answer(batch)

    collect(folder, Mortal(), [])


class Patient(Model):
    """A rank's, which does not answer a second batch before the other rank has answered one."""

    def __init__(self, rank: int, folder: Path) -> None:
        super().__init__()
        self.mine, self.others = (folder / f"asked_{n}" for n in (rank, 1 - rank))

    def answer(self, batch):
        if self.asked:
            self.mine.touch()
        while self.asked and not self.others.exists():
            time.sleep(0.01)
        return super().answer(batch)


def on_ranks(rank: int, folder: Path | None, scratch: Path) -> None:
    model, said = Patient(rank, scratch), []
    assert bits(collect(folder, model, said)) == EXPECTED
    asked = sorted(batch for of_rank in Peers("test").gather(model.asked) for batch in of_rank)
    assert asked == sorted(BATCHES[3:] if folder else BATCHES) and len(model.asked) >= 2
    assert said == (found(3) if folder else [])


@pytest.fixture(scope="module")
def left_over(tmp_path_factory) -> Path:
    """What an evaluation has kept that was killed after three of eight batches."""
    folder = tmp_path_factory.mktemp("left") / "answers"
    with pytest.raises(ForkedError, match="ended with status -9"):
        run_forked(killed, folder, 3)
    return folder


def found(batches: int) -> list[str]:
    """What is said where the answers to so many batches are there."""
    count = sum(map(len, BATCHES[:batches]))
    return [f"a/b: {count} of 16 requests were answered before, and are kept"] * bool(batches)


@pytest.mark.parametrize(("cut", "batches"), [(0, 3), (1, 3), (2, 2), (9, 2), (-3, 0)])
def test_a_killed_evaluation_goes_on_behind_its_last_whole_line(left_over, tmp_path, cut, batches):
    folder = shutil.copytree(left_over, tmp_path / "answers")
    (file,) = (folder / "a%2Fb").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - cut if cut >= 0 else -cut])
    model, said = Model(), []
    assert bits(collect(folder, model, said)) == EXPECTED
    assert model.asked == BATCHES[batches:] and said == found(batches)
    again, said = Model(), []
    assert bits(collect(folder, again, said)) == EXPECTED
    assert not again.asked and said == found(len(BATCHES))


def test_ranks_go_on_with_what_one_process_has_kept(left_over, tmp_path):
    folder = shutil.copytree(left_over, tmp_path / "answers")
    run_on_ranks(on_ranks, 2, folder, tmp_path)
    assert {file.name[-11:] for file in (folder / "a%2Fb").iterdir()} == {"rank0.jsonl", "rank1.jsonl"}
    model, said = Model(), []
    assert bits(collect(folder, model, said)) == EXPECTED
    assert not model.asked and said == found(len(BATCHES))


def test_answers_to_other_questions_and_of_other_models_are_not_taken(left_over, tmp_path):
    folder = shutil.copytree(left_over, tmp_path / "answers")
    for changes in ({"model_hash": "another"}, {"requests": [*NUMBERS[:-1], 1e24]}):
        model, said = Model(), []
        collect(folder, model, said, **changes)
        assert model.asked == BATCHES and not said


def test_a_models_hash_changes_with_what_decides_its_answers(tmp_path):
    def hash_of(change=lambda gpt: None, tokenizer: str = "bytes", **design: str) -> str:
        torch.manual_seed(0)
        gpt = GPT(GPTConfig(**TINY | {"vocab_size": 257}, **design))
        change(gpt)
        return model_fingerprint(gpt, open_tokenizer(tokenizer))

    for name in ("here.py", "there.py"):
        (tmp_path / name).write_text(SCALAR)
    (tmp_path / "other.py").write_text(SCALAR.replace("0.5", "0.6"))
    own, moved, other = (f"{tmp_path}/{name}.py:LayerNorm" for name in ("here", "there", "other"))
    same = hash_of()
    assert hash_of() == same and hash_of(norm=own) == hash_of(norm=moved)
    others = [
        hash_of(lambda gpt: gpt.lm_head.weight.data[0].add_(1e-6)),
        hash_of(lambda gpt: gpt.set_training_step(3)),
        hash_of(lambda gpt: gpt.bfloat16()),
        hash_of(tokenizer="gpt2"),
        hash_of(block="post"),  # with parameters of the same names
        hash_of(norm=own),
        hash_of(norm=other),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_what_is_kept_of_a_task_goes_alone_and_the_folder_with_the_last(left_over, tmp_path):
    folder = shutil.copytree(left_over, tmp_path / "answers")
    keep = Keep(folder, "m", print)
    keep.of_task("a").mkdir()
    keep.forget("a/b")
    assert [place.name for place in folder.iterdir()] == ["a"]
    keep.forget("a")
    keep.forget("a")
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "WRITE_EVERY_S", 0.0)
    (tmp_path / "file").touch()
    model, said = Model(), []
    assert bits(collect(tmp_path / "file" / "answers", model, said)) == EXPECTED
    (sentence,) = said
    assert sentence.startswith("answers are not kept, so a killed evaluation would begin anew: ")


def test_a_full_disk_leaves_what_was_written_before(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "WRITE_EVERY_S", 0.0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    model, said = Model(), []
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, limit[1]))
    try:
        assert bits(collect(tmp_path / "answers", model, said)) == EXPECTED
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(said) == 1 and "File too large" in said[0]
    model, said = Model(), []
    assert bits(collect(tmp_path / "answers", model, said)) == EXPECTED
    assert 0 < len(model.asked) < len(BATCHES) and len(said) == 1


def test_what_is_written_waits_for_more(tmp_path, monkeypatch):
    """A fast GPU is not slowed by a file per batch."""
    monkeypatch.setattr(kept, "WRITE_EVERY_S", math.inf)
    written = []
    real = kept.KeptAnswers.write
    monkeypatch.setattr(kept.KeptAnswers, "write", lambda self: (written.append(1), real(self)))
    collect(tmp_path / "answers", Model(), [])
    assert len(written) == 1
    (file,) = (tmp_path / "answers" / "a%2Fb").iterdir()
    assert [json.loads(line)[0] for line in file.read_text().splitlines() if line] == list(
        range(len(BATCHES))
    )


def test_text_is_kept_as_it_is(tmp_path):
    texts = ["", "a\nb", "\u2028 \x00", "東京 \ud800", '"']
    asked: list[int] = []

    def answer(batch: list[int]) -> list[str]:
        asked.extend(batch)
        return [texts[i] for i in batch]

    for _ in range(2):
        answers = Answers(quiet, "a", Keep(tmp_path, "m", print))
        assert answers.collect(texts, [[n] for n in range(5)], answer, " texts") == texts
        assert asked == [*range(5)]


def fail_on_ranks(rank: int, scratch: Path, kind: type[Exception], sentence: str) -> None:
    """Rank 1 fails at its first batch, and rank 0 does not begin its second."""
    real = Peers.stop_dealing

    def stop_dealing(peers: Peers) -> None:
        real(peers)
        (scratch / "stopped").touch()

    class Broken(Model):
        def answer(self, batch):
            if rank == 1:
                while not (scratch / "begun").exists():
                    time.sleep(0.01)
                raise kind("no room")
            (scratch / "begun").touch()
            while not (scratch / "stopped").exists():
                time.sleep(0.01)
            return super().answer(batch)

    Peers.stop_dealing = stop_dealing  # type: ignore[method-assign]
    model = Broken()
    with pytest.raises(kind if rank == 1 else UserError if kind is UserError else RuntimeError) as caught:
        collect(None, model, [])
    assert str(caught.value) == ("no room" if rank == 1 else sentence)
    assert len(model.asked) == (rank == 0)
    assert bits(collect(None, Model(), [])) == EXPECTED  # as another run's evaluation would


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(UserError, "no room"), (MemoryError, "rank 1 of 2 has failed: MemoryError: no room")],
)
def test_when_a_rank_fails_all_end_with_its_sentence(tmp_path, kind, sentence):
    run_on_ranks(fail_on_ranks, 2, tmp_path, kind, sentence)


def ask_apart(rank: int) -> None:
    with pytest.raises(RuntimeError, match="the ranks ask task 'a/b' different things, and cannot share it"):
        collect(None, Model(), [], requests=[rank, *NUMBERS[1:]])


def test_ranks_that_ask_different_things_do_not_share():
    run_on_ranks(ask_apart, 2)


def test_a_bar_counts_the_batches_of_all_ranks():
    run_on_ranks(count_on_ranks, 2)


def count_on_ranks(rank: int) -> None:
    bars = []

    def bar(**options):
        bars.append(tqdm(file=io.StringIO(), **options))
        return bars[0]

    Answers(bar).collect(NUMBERS, BATCHES, Model().answer, " requests")
    assert bars[0].n == bars[0].total == len(NUMBERS)
