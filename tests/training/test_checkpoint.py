"""Checkpoints: complete or absent, verified when read, and all that must survive in them."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from eval.running.checkpoints import choose_steps
from model.errors import UserError
from tests.checkpoints import FileEngine, save_checkpoint
from training.checkpoints.found import damage
from training.checkpoints.loading import load_checkpoint
from training.checkpoints.newest import newest_checkpoint, read_state
from training.engine.weights import fp32_weights
from training.run.reader import checkpoint_name
from training.state import TrainState

DATA = "a" * 64
MODEL = "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module", autouse=True)
def group_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The checkpoint of step 30, above those of steps 10 and 20."""
    for step in (10, 20, 30):
        state = TrainState(step=step, data_fingerprint=DATA)
        checkpoint = save_checkpoint(FileEngine(), tmp_path, state, keep=3)
    return checkpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_has_the_engines_files_the_state_and_a_manifest(saved: Path) -> None:
    assert saved.name == "step_00000030"
    assert names(saved) == ["manifest.json", "model.safetensors", MODEL, "optimizer", "trainer_state.json"]
    assert names(saved.parent) == ["step_00000010", "step_00000020", "step_00000030"]  # nothing partial
    assert damage(saved) is None


def test_the_manifest_holds_every_files_size_and_checksum(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["step"] == 30
    files = {MODEL, "model.safetensors", "optimizer/rank0.pt", "trainer_state.json"}
    assert set(manifest["files"]) == files
    for name in files:
        content = (saved / name).read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        assert manifest["files"][name] == {"size": len(content), "sha256": checksum}


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("name", [MODEL, "model.safetensors", "optimizer/rank0.pt", "trainer_state.json"])
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (flip_a_bit, "has another checksum"),
        (cut_short, "is missing or has another size"),
        (Path.unlink, "is missing or has another size"),
    ],
)
def test_a_file_that_is_not_as_written_is_named(saved: Path, name: str, harm: Any, words: str) -> None:
    harm(saved / name)
    assert damage(saved) == f"{name} {words}"


@pytest.mark.parametrize("content", [None, "", '{"step": 30, "fil', '{"step": 30}', "null", "[]"])
def test_a_manifest_that_cannot_be_read_is_damage(saved: Path, content: str | None) -> None:
    (saved / "manifest.json").unlink()
    if content is not None:
        (saved / "manifest.json").write_text(content)
    assert damage(saved) == "its manifest.json cannot be read"


def test_the_newest_checkpoint_is_found(saved: Path) -> None:
    warnings: list[str] = []
    assert newest_checkpoint(saved.parent, warnings.append) == saved
    assert warnings == []


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(saved: Path) -> None:
    flip_a_bit(saved / MODEL)
    (saved.parent / "step_00000020" / "manifest.json").unlink()
    warnings: list[str] = []
    assert newest_checkpoint(saved.parent, warnings.append) == saved.parent / "step_00000010"
    assert len(warnings) == 2 and not any("\n" in warning for warning in warnings)
    assert str(saved) in warnings[0] and f"{MODEL} has another checksum" in warnings[0]
    assert "step_00000020" in warnings[1] and "manifest.json" in warnings[1]
    renamed = ["damaged_step_00000020", "damaged_step_00000030", "step_00000010"]
    assert names(saved.parent) == renamed
    # Once more, and the last one too: what was renamed before is no reason to begin again.
    flip_a_bit(saved.parent / "step_00000010" / MODEL)
    with pytest.raises(UserError, match=rf"step_00000010: {MODEL} .*; damaged_step_00000020: found damaged"):
        newest_checkpoint(saved.parent, warnings.append)


def test_a_best_checkpoint_that_was_found_damaged_is_best_no_more(saved: Path) -> None:
    """The state of step 30 names the best of step 10, which is cut short; of those left 20 is."""
    run_dir, losses = saved.parent.parent, {10: 2.0, 20: 2.5, 30: 2.75}
    lines = [{"kind": "val", "step": step, "loss": loss} for step, loss in losses.items()]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = TrainState(step=40, data_fingerprint=DATA, best_step=10, best_val_loss=2.0)
    newest = save_checkpoint(FileEngine(), run_dir, state, keep=9)
    assert (read_state(newest, [DATA]).best_step, choose_steps(run_dir, "best")) == (10, [10])
    cut_short(saved.parent / "step_00000010" / MODEL)
    warnings: list[str] = []
    assert newest_checkpoint(saved.parent, warnings.append) == newest
    assert len(warnings) == 1 and "step_00000010 is damaged" in warnings[0]
    assert names(saved.parent)[:2] == ["damaged_step_00000010", "step_00000020"]
    found = read_state(newest, [DATA])
    assert (found.best_step, found.best_val_loss, choose_steps(run_dir, "best")) == (20, 2.5, [20])
    (run_dir / "metrics.jsonl").unlink()
    found = read_state(newest, [DATA])
    assert found.best_step is None and found.best_val_loss is None


def test_every_rank_takes_the_checkpoint_that_rank_0_found(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1, whose own look at the folder would find another one."""
    found_by_rank_0 = saved.parent / "step_00000020"
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(
        dist, "broadcast_object_list", lambda found: found.__setitem__(0, (found_by_rank_0, None))
    )
    assert newest_checkpoint(saved.parent, print) == found_by_rank_0


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(saved: Path, tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "not there", print) is None
    for path in saved.parent.iterdir():
        cut_short(path / MODEL)
    with pytest.raises(UserError) as caught:
        newest_checkpoint(saved.parent, print)
    message = str(caught.value)
    assert "--restart" in message and message.count(f"{MODEL} is missing or has another size") == 3
    assert len(names(saved.parent)) == 3 and "step_00000030" in names(saved.parent)  # as they were


def test_the_newest_checkpoint_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    for step in (9, 10, 99_999_999):
        save_checkpoint(FileEngine(), tmp_path, TrainState(step=step), keep=3)
    assert newest_checkpoint(tmp_path / "checkpoints", print) == tmp_path / "checkpoints" / "step_99999999"
    shutil.rmtree(tmp_path / "checkpoints" / "step_99999999")
    assert newest_checkpoint(tmp_path / "checkpoints", print) == tmp_path / "checkpoints" / "step_00000010"


def test_a_step_saved_again_replaces_what_was_there(saved: Path) -> None:
    flip_a_bit(saved / MODEL)
    save_checkpoint(FileEngine(2.0), saved.parent.parent, TrainState(step=30), keep=3)
    assert damage(saved) is None and fp32_weights(saved)["lm_head.weight"].eq(2).all()
    assert names(saved.parent) == ["step_00000010", "step_00000020", "step_00000030"]


@pytest.mark.parametrize(
    ("keep", "best_step", "left"),
    [
        (1, None, [50]),
        (2, None, [40, 50]),
        (2, 20, [20, 40, 50]),
        (1, 10, [10, 50]),
        (2, 50, [40, 50]),
        (3, 15, [30, 40, 50]),  # the best step was not saved
        (9, 20, [10, 20, 30, 40, 50]),
    ],
)
def test_the_newest_checkpoints_and_the_best_one_stay(
    tmp_path: Path, keep: int, best_step: int | None, left: list[int]
) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20, 30, 40, 50):
        best = best_step if best_step is not None and step >= best_step else None
        save_checkpoint(
            FileEngine(), tmp_path, TrainState(step=step, best_step=best), keep=keep if step == 50 else 9
        )
    assert names(folder) == [checkpoint_name(step) for step in left]


def test_the_whole_state_survives(tmp_path: Path) -> None:
    state = TrainState(
        step=7, tokens=7 * 4096, skipped_steps=2, skipped_in_a_row=1, wall_time_s=12.625,
        cursors={0: (0, 3, 17, 250), 1: (1, 0, 0, 0), 10: (0, 5, 2, 9)},
        data_fingerprint=DATA, wandb_id="abc123", val_loss=3.0625, best_val_loss=2.9, best_step=5,
    )  # fmt: skip
    checkpoint = save_checkpoint(FileEngine(3.0), tmp_path, replace(state), keep=1)
    engine = FileEngine(0.0)
    loaded = read_state(checkpoint, [DATA])
    load_checkpoint(engine, checkpoint, loaded)
    assert engine.module.lm_head.weight.eq(3).all()
    assert {lane: tuple(cursor) for lane, cursor in loaded.cursors.items()} == state.cursors
    assert list(map(type, loaded.cursors)) == [int, int, int]
    assert len(loaded.rng) == 1
    assert replace(loaded, rng=[], cursors=state.cursors) == state


def test_after_loading_the_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    saved, loaded = FileEngine(), FileEngine()
    torch.manual_seed(5)
    torch.rand(3)
    checkpoint = save_checkpoint(saved, tmp_path, TrainState(step=1, data_fingerprint=DATA), keep=1)
    expected = torch.rand(4), torch.randperm(9), torch.randn(2)
    torch.manual_seed(99)
    load_checkpoint(loaded, checkpoint, read_state(checkpoint, [DATA]))
    drawn = torch.rand(4), torch.randperm(9), torch.randn(2)
    assert all(torch.equal(left, right) for left, right in zip(drawn, expected, strict=True))


def test_each_ranks_own_lanes_are_saved_and_another_ranks_copies_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 of two: lanes 1 and 3 are rank 1's; what rank 0 knows of them is as old as the last resume."""

    def from_both(gathered: list[Any], own: Any) -> None:
        if own is None:  # whether a rank could not write
            return
        assert set(own[0]) == {0, 2}
        (tmp_path / "checkpoints" / f".{checkpoint_name(1)}.partial" / ".written_by_rank1.json").write_text(
            "{}"
        )
        gathered[:] = [own, ({1: (0, 1, 5, 5), 3: (0, 3, 5, 5)}, {"cpu": "rank 1's"}, 0, own[3])]

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", from_both)
    known = {0: (0, 0, 5, 5), 1: (0, 1, 0, 0), 2: (0, 2, 5, 5), 3: (0, 3, 0, 0)}
    checkpoint = save_checkpoint(FileEngine(), tmp_path, TrainState(step=1, cursors=known), keep=1)
    stored = json.loads((checkpoint / "trainer_state.json").read_text())
    assert stored["cursors"] == {str(lane): [0, lane, 5, 5] for lane in range(4)}
    assert stored["world_size"] == 2
    assert [rng["cpu"] == "rank 1's" for rng in stored["rng"]] == [False, True]


def test_another_number_of_ranks_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(
        UserError, match=r"step_00000030 was written on 1 rank\(s\), but 2 are running"
    ) as caught:
        read_state(saved, [DATA])
    message = str(caught.value)
    assert "\n" not in message and message.endswith("or set checkpoint.load_universal to true")
    assert read_state(saved, [DATA], any_ranks=True).step == 30


def test_other_data_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match=r"step_00000030 was written on other data") as caught:
        read_state(saved, ["b" * 64])
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_the_engine_does_not_find_is_an_error(saved: Path) -> None:
    (saved / MODEL).unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .*step_00000030"):
        load_checkpoint(FileEngine(), saved, read_state(saved, [DATA]))
