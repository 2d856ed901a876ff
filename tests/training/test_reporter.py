"""What a run says and writes: derived numbers, steps, validations, checkpoints and its end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tqdm import tqdm

from data import DataConfig, open_data
from model import GPT, GPTConfig
from model.errors import DIVERGED, FAILED, INTERRUPTED
from tests.distributed import run_on_ranks
from tests.training.steps import step_result
from tests.training.test_run_reader import write_checkpoint
from training.config.deepspeed import DeepSpeedConfig
from training.config.evaluation import EvalConfig
from training.config.recipe import Recipe, TrainConfig
from training.config.tracking import VARIABLES, TrackingConfig
from training.divergence.policy import Verdict
from training.engine.ranks import Ranks
from training.run.folder import RunFolder
from training.run.reporter import Reporter
from training.schedule import ScheduleConfig
from training.state import TrainState
from training.timing.profiling import StartUp

DS = DeepSpeedConfig(
    {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    }
)
ONE_RANK = Ranks(0, 1, torch.device("cpu"))


class Terminal:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.say = self.said.append

    def fail(self, sentence: object) -> int:
        self.say(f"error: {sentence}")
        return 2

    def bar(self, title: str, **options: Any) -> Any:
        return tqdm(desc=title, disable=True, **options)


def recipe(folder: Path, **train: Any) -> Recipe:
    texts = [f"document {number} of the corpus, which is short" for number in range(40)]
    pq.write_table(pa.table({"text": texts}), folder / "corpus.parquet", row_group_size=4)
    data = DataConfig(
        source=str(folder / "corpus.parquet"), tokenizer="bytes", lanes=2, validation_tokens=100, workers=0
    )
    return Recipe(
        model=GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=320),
        data=data,
        train=TrainConfig(**({"steps": 3} | train)),
        schedule=ScheduleConfig(steps=3, warmup=1),
        eval=EvalConfig(),
        tracking=TrackingConfig(),
    )


def begun(folder: Path, state: TrainState, **train: Any) -> tuple[Reporter, Terminal]:
    """A reporter whose run in `folder` has begun, and its terminal."""
    terminal, of_run = Terminal(), recipe(folder, **train)
    gpt = GPT(of_run.model)
    report = Reporter(of_run, DS, RunFolder(folder / "run", 0), terminal, ONE_RANK, gpt)  # type: ignore[arg-type]
    report.begin(state, None, *open_data(of_run.data), StartUp())
    return report, terminal


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "summary.json").read_text())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def after_step(state: TrainState, report: Reporter, **facts: Any) -> None:
    result = step_result(**facts)
    state.advance(result)
    report.step(state, result, lr=1e-3)


@pytest.fixture(autouse=True)
def without_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_a_run_begins_with_its_derived_numbers(tmp_path: Path) -> None:
    _, terminal = begun(tmp_path, TrainState())
    assert terminal.said[0].endswith("vanilla, GPT-2 1L 1H 8d, 3,576 parameters, fp32, ZeRO-0, 1 rank(s)")
    assert terminal.said[1] == (
        "each step: 2 sequences x 4 accumulation steps x 1 rank(s) x 16 tokens = 128 tokens; "
        "3 steps = 384 tokens"
    )
    written = summary(tmp_path)
    assert written["status"] == "running" and written["tokens_per_step"] == 128
    floors = written["floors"]
    assert floors["uniform"] == pytest.approx(np.log(257)) and 0 < floors["unigram"] < floors["uniform"]
    assert f"a unigram model {floors['unigram']:.2f}" in terminal.said[2]


def test_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    report, _ = begun(tmp_path, TrainState())
    state = TrainState()
    for _ in range(3):
        after_step(state, report)
    begun(tmp_path, TrainState(step=2, tokens=256))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_step_is_one_line_with_its_rate_and_its_times(tmp_path: Path) -> None:
    state = TrainState()
    report, terminal = begun(tmp_path, state)
    with report.phase("forward"):
        pass
    after_step(state, report, data_wait=0.25, bad_documents={"empty": 2})
    after_step(state, report, bad_documents={"empty": 3})
    first, second = lines(tmp_path)
    assert (first["kind"], first["step"], first["tokens"], first["loss"]) == ("train", 1, 128, 2.0)
    assert (first["grad_norm"], first["lr"], first["data_wait"]) == (0.5, 1e-3, 0.25)
    assert first["tokens_per_s"] == 128 and first["step_s"] == 1.0 and "forward_s" in first
    assert "skipped" not in first and first["bad_documents"] == {"empty": 2}
    assert second["step"] == 2 and second["tokens"] == 256
    told = [sentence for sentence in terminal.said if "is left out" in sentence]
    assert told == ["a document has no text: it is left out, and metrics.jsonl counts them"]
    assert summary(tmp_path)["start_up_s"]["first step"] >= 0


def test_a_skipped_step_is_marked_and_said(tmp_path: Path) -> None:
    state = TrainState()
    report, terminal = begun(tmp_path, state)
    after_step(state, report, applied=False, loss=float("nan"), grad_norm=float("inf"))
    (line,) = lines(tmp_path)
    assert line["skipped"] is True and line["loss"] is None and line["grad_norm"] is None
    assert terminal.said[-1] == "step 1 is skipped: its gradients are not finite (loss nan)"


def test_a_validation_leaves_losses_by_document(tmp_path: Path) -> None:
    state = TrainState(step=2, tokens=256)
    report, terminal = begun(tmp_path, state)
    validation = open_data(report.recipe.data)[1]
    losses = np.linspace(1, 3, len(validation.tokens) - 1)
    state.note_validation(float(losses.mean()), 0.5)
    report.validation(state, losses, validation)
    written = pq.read_table(tmp_path / "run" / "eval" / "step_00000002" / "validation.parquet").to_pandas()
    assert written["loss"].sum() == pytest.approx(losses.sum())
    assert lines(tmp_path)[-1] | {"tokens": 0} == {
        "kind": "val", "step": 2, "tokens": 0, "loss": 2.0, "bits_per_byte": 0.5,
    }  # fmt: skip
    assert terminal.said[-1].startswith("step 2: validation loss 2.0000 nats per token")


def test_a_checkpoint_that_cannot_be_written_is_how_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    report, terminal = begun(tmp_path, TrainState(step=2))
    assert report.end(TrainState(step=2), None, "there is no room") == 1
    assert (summary(tmp_path)["status"], summary(tmp_path)["error"]) == ("failed", "there is no room")
    assert terminal.said[-1].endswith(" has failed: the same command goes on from its beginning")


def test_a_checkpoint_is_named_with_the_best_that_is_still_there(tmp_path: Path) -> None:
    state = TrainState(step=2, tokens=256, best_step=1, wall_time_s=4.0)
    report, _ = begun(tmp_path, state)
    last = write_checkpoint(tmp_path / "run", 2)
    report.checkpoint(state, last, {"written": 1})
    assert named(tmp_path) == ("checkpoints/step_00000002", None)
    assert summary(tmp_path)["tokens_per_s"] == 64.0
    write_checkpoint(tmp_path / "run", 1)
    report.checkpoint(state, last, {"written": 1})
    assert named(tmp_path) == ("checkpoints/step_00000002", "checkpoints/step_00000001")


def named(folder: Path) -> tuple[str | None, str | None]:
    """The last and the best checkpoint by summary.json."""
    written = summary(folder)
    return written["last_checkpoint"], written["best_checkpoint"]


def test_no_checkpoint_is_named_that_was_found_damaged_or_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    run_dir = tmp_path / "run"
    state = TrainState(step=3, tokens=384, best_step=3, wall_time_s=4.0)
    report, _ = begun(tmp_path, state)
    for step in (1, 2):
        write_checkpoint(run_dir, step)
    last = write_checkpoint(run_dir, 3)
    report.checkpoint(state, last, {"written": 1})
    assert named(tmp_path) == ("checkpoints/step_00000003",) * 2
    last.rename(last.with_name(f"damaged_{last.name}"))
    report, terminal = begun(tmp_path, TrainState(step=2, best_step=1))
    assert named(tmp_path) == ("checkpoints/step_00000002", "checkpoints/step_00000001")
    shutil.rmtree(run_dir / "checkpoints" / "step_00000002")
    report.rolled_back(TrainState(step=1, best_step=1))
    assert named(tmp_path) == ("checkpoints/step_00000001",) * 2
    shutil.rmtree(run_dir / "checkpoints")
    report.end(TrainState(step=1, best_step=1), None, "the data ended")
    assert named(tmp_path) == (None, None)
    assert terminal.said[-1].endswith(" has failed: the same command goes on from its beginning")


def advice(folder: Path, waits: list[float]) -> list[str]:
    """What is said of data in steps of a second that wait so long."""
    state = TrainState()
    report, terminal = begun(folder, state, steps=200)
    for wait in waits:
        terminal.say(str(state.step))
        after_step(state, report, data_wait=wait)
    return terminal.said


def test_waiting_for_data_is_named_once_with_its_remedy(tmp_path: Path) -> None:
    said = advice(tmp_path, [0.06] * 50)
    sentence = (
        "the last 20 steps waited for data 6% of their time: raise data.workers (now 0), set data.cache_dir, "
        "or make token shards with scripts/tokenize_data.py"
    )
    assert said.count(sentence) == 1 and said[said.index(sentence) - 1] == "19"


@pytest.mark.parametrize("waits", [[0.049] * 50, [0.9] + [0.0] * 50], ids=["little", "in one step"])
def test_less_waiting_for_data_is_not_named(tmp_path: Path, waits: list[float]) -> None:
    assert not any("waited for data" in sentence for sentence in advice(tmp_path, waits))


def test_later_waiting_is_named_when_it_fills_the_window(tmp_path: Path) -> None:
    said = advice(tmp_path, [0.0] * 30 + [0.06] * 50)
    at = next(number for number, sentence in enumerate(said) if "waited for data" in sentence)
    assert said[at - 1] == str(30 + 16)  # 17 of 20 steps with 6 % each


def ends(rank: int, folder: Path) -> None:
    """Each way to end: its exit status, its status in the summary, and its words."""
    verdict = Verdict(False, 1, 2, "the gradients of the last 2 steps were not finite", True)
    cases = {
        "finished": (TrainState(step=3, val_loss=2.0, val_bits_per_byte=0.5), None, None, 0),
        "interrupted": (TrainState(step=2), None, None, INTERRUPTED),
        "not begun": (TrainState(), None, None, INTERRUPTED),
        "diverged": (TrainState(step=2, skipped_steps=2, skipped_in_a_row=2), verdict, None, DIVERGED),
        "out of data": (TrainState(step=2), None, "data.source: gone", FAILED),
    }
    sentences = {
        "finished": "is finished: validation loss 2.0000 nats per token, 0.5000 bits per byte",
        "interrupted": "is stopped and saved at step 2: the same command goes on from there",
        "not begun": "is stopped before its first step: the same command begins again",
        "diverged": "diverged at step 2: the gradients of the last 2 steps were not finite; 2 step(s) were "
        "skipped",
        "out of data": "has failed: the same command goes on from its beginning",
    }
    statuses = {"not begun": "interrupted", "out of data": "failed"}
    for name, (state, diverged, data_error, exit_status) in cases.items():
        place = folder / name
        place.mkdir()
        report, terminal = begun(place, replace(state))
        assert report.end(state, diverged, data_error) == exit_status, name
        written = summary(place)
        assert written["status"] == statuses.get(name, name)
        assert written["step"] == state.step and written["val_loss"] == state.val_loss
        assert written.get("error") == data_error
        assert terminal.said[-1] == f"{place / 'run'} {sentences[name]}", terminal.said
        assert (f"error: {data_error}" in terminal.said) == (data_error is not None)


def test_each_way_to_end_has_its_status_and_its_words(tmp_path: Path) -> None:
    run_on_ranks(ends, 1, tmp_path)


def test_what_wandb_was_told_is_recorded_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    begun(tmp_path, TrainState())
    recorded = json.loads((tmp_path / "run" / "summary.json").read_text())["wandb"]
    assert recorded == {
        "project": "theirs", "name": "run", "job_type": "train", "tags": ["vanilla", "1x8", "fp32"],
        "id": recorded["id"], "mode": "disabled",
    }  # fmt: skip
    monkeypatch.delenv("WANDB_PROJECT")
    begun(tmp_path, TrainState(wandb_id=recorded["id"]))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["wandb"] == recorded
