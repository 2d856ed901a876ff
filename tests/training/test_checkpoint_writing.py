"""Checkpoints that are written beside the loop: what they hold, when they are due, and a full disk."""

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from model.errors import FAILED, UserError
from tests.checkpoints import FileEngine, checkpoints, save_checkpoint
from training.checkpoints.files import HashedFile, write_safetensors
from training.checkpoints.found import damage
from training.checkpoints.host_copy import HostCopies
from training.checkpoints.newest import newest_checkpoint
from training.checkpoints.safe_loading import load_safely, no_code_from_files
from training.config.recipe import TrainConfig
from training.engine.weights import fp32_weights
from training.run.reader import checkpoint_name
from training.state import TrainState


@pytest.fixture(scope="module", autouse=True)
def group_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Gate:
    """Holds what a thread writes until it is opened, or has it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.error, self.after = threading.Event(), None, 0
        write = HashedFile.write

        def gated(file: HashedFile, content: Any) -> int:
            self.open.wait()
            self.after -= 1
            if self.error is not None and self.after < 0:
                raise OSError(self.error, os.strerror(self.error))
            return write(file, content)

        self.error: int | None
        monkeypatch.setattr(HashedFile, "write", gated)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def steps(run_dir: Path) -> list[int]:
    return [int(name.removeprefix("step_")) for name in names(run_dir)]


def test_steps_after_the_copy_do_not_reach_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, engine, said = Gate(monkeypatch), FileEngine(1.0), []
    writer = checkpoints(engine, tmp_path, said)
    state = TrainState(step=1, tokens=10, cursors={0: (0, 0, 0, 5)})
    writer.save(state)
    for parameter in engine.module.parameters():  # the loop goes on, and nothing is written yet
        parameter.data.fill_(7.0)
    engine.moments.fill_(7.0)
    state.step, state.tokens = 2, 20
    state.cursors[0] = (0, 0, 0, 9)
    assert names(tmp_path) == [".step_00000001.partial"] and said == []
    gate.open.set()
    assert writer.wait() is None
    checkpoint = tmp_path / "checkpoints" / checkpoint_name(1)
    assert damage(checkpoint) is None
    assert all(tensor.eq(1).all() for tensor in fp32_weights(checkpoint).values())
    assert load_safely(checkpoint / "optimizer" / "rank0.pt")["moments"].eq(1).all()
    ((written, path, facts),) = said
    assert (written.step, written.tokens, written.cursors[0], path) == (1, 10, (0, 0, 0, 5), checkpoint)
    assert facts["written"] == 1 and facts["copy_s"]["max"] >= 0 and facts["gigabytes"] > 0


def test_memory_is_used_again_only_when_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, engine = Gate(monkeypatch), FileEngine(1.0)
    gate.open.set()
    writer = checkpoints(engine, tmp_path, keep_checkpoints=3)
    for step in (1, 2, 3):
        for parameter in engine.module.parameters():
            parameter.data.fill_(float(step))
        writer.save(TrainState(step=step))  # the one before is waited for
    writer.wait()
    for step in (1, 2, 3):
        weights = fp32_weights(tmp_path / "checkpoints" / checkpoint_name(step))
        assert all(tensor.eq(step).all() for tensor in weights.values())


def test_a_copy_keeps_what_shares_memory_together() -> None:
    whole = torch.arange(12.0)
    tied = torch.nn.Parameter(torch.ones(3, 2))
    state = {"a": whole[2:8].view(2, 3), "b": [whole[6:]], "t": (tied, tied.t()), "n": 3, "s": tied.shape}
    copies = HostCopies()
    copied = copies.copy(state)
    copies.finish()
    assert copies.bytes == 12 * 4 + 6 * 4
    whole.zero_()
    tied.data.zero_()
    assert copied["a"].tolist() == [[2, 3, 4], [5, 6, 7]] and copied["b"][0][0] == 6
    copied["a"][1, 1] = 60  # whole[6]
    assert copied["b"][0][0] == 60
    assert isinstance(copied["t"][0], torch.nn.Parameter) and copied["t"][1].eq(1).all()
    assert copied["t"][0].data_ptr() == copied["t"][1].data_ptr() and copied["s"] == torch.Size([3, 2])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("after", [0, 5, 40])
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, after: int
) -> None:
    """In DeepSpeed's first file, in a later one, in the safetensors file or after it."""
    save_checkpoint(FileEngine(1.0), tmp_path, TrainState(step=10))
    gate, said = Gate(monkeypatch), []
    writer = checkpoints(FileEngine(2.0), tmp_path, said)
    gate.error, gate.after = number, after
    gate.open.set()
    writer.save(TrainState(step=20))
    sentence = writer.wait()
    assert sentence is not None and "\n" not in sentence
    assert os.strerror(number) in sentence and "step_00000020" in sentence
    assert set(said) == {(sentence, FAILED)}
    assert names(tmp_path) == ["step_00000010"]
    assert damage(tmp_path / "checkpoints" / "step_00000010") is None
    writer.save(TrainState(step=30))  # as a stop would
    assert writer.wait() == sentence and names(tmp_path) == ["step_00000010"]


def test_nothing_is_written_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(FileEngine(1.0), tmp_path, TrainState(step=10))
    gate, said = Gate(monkeypatch), []
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr("training.checkpoints.writing.shutil.disk_usage", lambda folder: usage)
    writer = checkpoints(FileEngine(2.0), tmp_path, said)
    writer.save(TrainState(step=20))  # which would wait for the gate
    assert writer.failure is not None and "GB are free" in writer.failure and "needs" in writer.failure
    assert said == [(writer.failure, FAILED)] and not gate.open.is_set()
    assert names(tmp_path) == ["step_00000010"]


def test_what_a_kill_has_left_is_cleared_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save_checkpoint(FileEngine(), tmp_path, TrainState(step=10))
    for name in (".step_00000020.partial", ".step_00000020.universal.partial", ".step_00000005.removed"):
        (folder / name / "zero").mkdir(parents=True)
        (folder / name / ".written_by_rank0.json").write_text("{}")
    (folder / "damaged_step_00000005").mkdir()
    checkpoints(FileEngine(), tmp_path)
    assert names(tmp_path) == ["damaged_step_00000005", "step_00000010"]


def test_pruning_counts_no_damaged_and_no_later_ones(tmp_path: Path) -> None:
    """Of two to keep, the two newest that are complete stay, whatever lies beside them."""
    for step in (10, 20, 30, 40, 50):
        save_checkpoint(FileEngine(), tmp_path, TrainState(step=step), keep=9)
    folder = tmp_path / "checkpoints"
    for step in (40, 50):  # of a run that goes on from 30
        (folder / checkpoint_name(step) / "manifest.json").unlink()
    save_checkpoint(FileEngine(), tmp_path, TrainState(step=35), keep=1)
    assert steps(tmp_path) == [35, 40, 50]
    assert newest_checkpoint(folder, lambda text: None) == folder / checkpoint_name(35)


def test_pruning_after_a_step_below_complete_ones(tmp_path: Path) -> None:
    for step in (10, 20, 60):
        save_checkpoint(FileEngine(), tmp_path, TrainState(step=step), keep=9)
    save_checkpoint(FileEngine(), tmp_path, TrainState(step=30), keep=1)
    assert steps(tmp_path) == [30, 60] and damage(tmp_path / "checkpoints" / checkpoint_name(30)) is None


def test_milestones_stay(tmp_path: Path) -> None:
    writer = checkpoints(FileEngine(), tmp_path, keep_checkpoints=1, checkpoint_every=10, milestone_every=20)
    for step in (10, 20, 30, 40, 50):
        writer.save(TrainState(step=step))
    writer.wait()
    assert steps(tmp_path) == [20, 40, 50]


def test_a_milestone_that_is_never_saved_is_refused() -> None:
    with pytest.raises(UserError, match=r"milestone_every is 75.*checkpoint_every \(50\): give 100"):
        TrainConfig(checkpoint_every=50, milestone_every=75)


def test_when_a_checkpoint_is_due(tmp_path: Path) -> None:
    writer = checkpoints(FileEngine(), tmp_path, checkpoint_every=10)

    def due(step: int, skipped: int = 0, **ends: bool) -> bool:
        state = TrainState(step=step, skipped_in_a_row=skipped)
        return writer.are_due(state, **{"last": False, "stop": False} | ends)

    assert [step for step in range(1, 31) if due(step)] == [10, 20, 30]
    assert due(7, stop=True) and due(7, last=True)
    # nothing inside a streak of skipped steps but at the run's end, where the weights are those before it
    assert not due(10, skipped=1) and not due(7, skipped=1, stop=True) and due(7, skipped=1, last=True)


def test_minutes_make_a_checkpoint_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("training.checkpoints.writing.time.monotonic", lambda: now[0])
    writer = checkpoints(FileEngine(), tmp_path, checkpoint_every=1000, checkpoint_minutes=2)
    due = []
    for step in range(1, 9):
        now[0] += 50
        if writer.are_due(TrainState(step=step), last=False, stop=False):
            due.append(step)
            writer.save(TrainState(step=step))
            writer.wait()
    assert due == [3, 6]  # after 150 s, and 150 s after that


def test_a_validation_loss_of_nan_is_never_the_best() -> None:
    state = TrainState(step=1)
    state.note_validation(float("nan"), float("nan"))
    assert state.best_step is None
    state = replace(state, step=2)
    state.note_validation(3.0, 1.0)
    assert (state.best_step, state.best_val_loss) == (2, 3.0)
    state.step = 3
    state.note_validation(float("nan"), float("nan"))
    assert (state.best_step, state.best_val_loss) == (2, 3.0)


def test_safetensors_hold_fp32_and_a_tied_weight_once(tmp_path: Path) -> None:
    tied = torch.randn(5, 3)
    weights = {
        "lm_head.weight": tied, "transformer.wte.weight": tied, "scale": torch.tensor(2.0),
        "turned": torch.randn(4, 6).t(), "half": torch.randn(3).bfloat16(), "count": torch.tensor([7]),
    }  # fmt: skip
    write_safetensors(tmp_path / "model.safetensors", weights)
    stored = load_file(tmp_path / "model.safetensors")  # by the library
    assert stored.keys() == weights.keys() - {"lm_head.weight"}
    read = fp32_weights(tmp_path)
    assert read.keys() == weights.keys() and read["half"].dtype == torch.float32
    assert all(torch.equal(read[name], tensor.to(read[name].dtype)) for name, tensor in weights.items())


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_a_pickle_that_would_execute_code_is_refused(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(FileEngine(), tmp_path, TrainState(step=1))
    (checkpoint / "model.safetensors").unlink()  # a checkpoint from before there was one
    file, executed = checkpoint / "mp_rank_00_model_states.pt", tmp_path / "executed"
    assert "lm_head.weight" in fp32_weights(checkpoint)
    torch.save({"module": {}, "x": Malicious(executed)}, file)
    with pytest.raises(UserError, match=r"mp_rank_00_model_states.pt holds posix.mkdir") as caught:
        fp32_weights(checkpoint)
    assert "\n" not in str(caught.value)
    with no_code_from_files(), pytest.raises(UserError, match="could execute code"):
        torch.load(file, weights_only=False)  # as DeepSpeed asks for it
    assert not executed.exists()
    torch.load(file, weights_only=False)
    assert executed.is_dir()  # so the file was one that does
