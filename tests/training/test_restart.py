"""A run that cannot go on: refused in words, begun again with --restart, and nothing lost."""

import json
import shutil
from pathlib import Path

import pytest

from model.errors import UserError
from tests.training.test_run_folder import DS_CONFIG, recipe
from tests.training.test_run_reader import write_checkpoint
from training.checkpoints.found import lost_checkpoints
from training.config.recipe import FREE_TO_CHANGE
from training.run.changes import check_same_run
from training.run.folder import RunFolder
from training.run.reader import read_recipe

EVERY = 10


def begin(path: Path, steps: int, skipped: tuple[int, ...] = ()) -> RunFolder:
    """A run that has made steps; a checkpoint was due at each tenth."""
    run = RunFolder(path, rank=0)
    run.write_configs(recipe(), DS_CONFIG, [])
    text = (path / "recipe.yaml").read_text().replace("train:\n", f"train:\n  checkpoint_every: {EVERY}\n")
    (path / "recipe.yaml").write_text(text)
    for step in range(1, steps + 1):
        more = {"skipped": True} if step in skipped else {}
        run.append_metrics(kind="train", step=step, loss=1.0, **more)
    run.update_summary(status="running")
    return run


@pytest.mark.parametrize(
    ("steps", "skipped", "is_lost"), [(3, (), False), (10, (), False), (11, (), True), (12, (10,), False)]
)
def test_missing_checkpoints_are_lost_once_one_was_due(
    tmp_path: Path, steps: int, skipped: tuple[int, ...], is_lost: bool
) -> None:
    begin(tmp_path, steps, skipped)
    problem = lost_checkpoints(tmp_path)
    assert (problem is not None) == is_lost
    if problem:
        assert "a checkpoint was due at step 10" in problem and "--restart" in problem


def test_a_run_killed_while_its_first_checkpoint_was_written_has_lost_none(tmp_path: Path) -> None:
    begin(tmp_path, 12)
    (tmp_path / "checkpoints" / ".step_00000010.partial").mkdir(parents=True)
    assert lost_checkpoints(tmp_path) is None


@pytest.mark.parametrize("left", ["nothing", "damaged", "renamed"])
def test_a_run_without_a_whole_checkpoint_is_refused_before_it_starts(tmp_path: Path, left: str) -> None:
    run = begin(tmp_path, 3)
    checkpoint = write_checkpoint(tmp_path, 2)
    run.update_summary(last_checkpoint="checkpoints/step_00000002")
    check_same_run(RunFolder(tmp_path, 0), recipe(), DS_CONFIG, FREE_TO_CHANGE | {"train"})
    if left == "nothing":
        shutil.rmtree(checkpoint)
    elif left == "damaged":
        (checkpoint / "model.pt").unlink()
    else:
        checkpoint.rename(checkpoint.with_name(f"damaged_{checkpoint.name}"))
    with pytest.raises(UserError, match=r"step_00000002.*--restart"):
        check_same_run(RunFolder(tmp_path, 0), recipe(), DS_CONFIG, {"train"})


def test_a_restart_keeps_all_of_the_run_before_as_a_run_folder(tmp_path: Path) -> None:
    begin(tmp_path, 12)
    write_checkpoint(tmp_path, 10)
    (tmp_path / "preflight.json").write_text("{}")
    kept = ("metrics.jsonl", "summary.json", "recipe.yaml", "checkpoints/step_00000010/model.pt")
    before = {name: (tmp_path / name).read_bytes() for name in kept}
    for number in (1, 2):
        run = RunFolder(tmp_path, rank=0, restarts=True)
        check_same_run(run, recipe(n_layer=7), DS_CONFIG, set())  # it may be another
        run.claim()
        aside = run.set_aside()
        assert aside == tmp_path / f"before_restart_{number}" and not (tmp_path / "checkpoints").exists()
        run.write_configs(recipe(n_layer=7), DS_CONFIG, [])
        run.update_summary(status="running")
        assert run.summary["before_restart"] == aside.name
        run._lock.release()
    first = tmp_path / "before_restart_1"
    assert {name: (first / name).read_bytes() for name in kept} == before
    assert (first / "preflight.json").exists()


def test_another_rank_moves_nothing(tmp_path: Path) -> None:
    begin(tmp_path, 3)
    assert RunFolder(tmp_path, rank=1, restarts=True).set_aside() is None
    assert (tmp_path / "metrics.jsonl").exists()


# --- changing a run


def change(path: Path, allowed: tuple[str, ...] = (), **changes: object) -> RunFolder:
    run = RunFolder(path, rank=0)
    lr = changes.pop("lr", 1e-3)
    params = {**DS_CONFIG["optimizer"], "params": {"lr": lr, "betas": [0.9, 0.95]}}
    free = {"train.steps", "train.checkpoint_every"}
    check_same_run(run, recipe(**changes), DS_CONFIG | {"optimizer": params}, free, allowed)
    run.write_configs(recipe(**changes), DS_CONFIG | {"optimizer": params}, [], step=2)
    run.update_summary()
    return run


def test_all_differences_are_named_at_once_with_what_to_type(tmp_path: Path) -> None:
    begin(tmp_path, 3)
    with pytest.raises(UserError) as caught:
        change(tmp_path, n_layer=3, val_every=7, lr=0.01)
    message = str(caught.value)
    for words in ("model.n_layer = 2, but 3", "train.val_every = 10, but 7", "lr = 0.001, but 0.01"):
        assert words in message
    assert "--allow_recipe_change ds.optimizer.params.lr,train.val_every" in message
    assert "--model.n_layer 2" in message and "model.n_layer cannot change" in message


def test_an_allowed_change_is_recorded_and_the_same_command_goes_on(tmp_path: Path) -> None:
    begin(tmp_path, 3)
    write_checkpoint(tmp_path, 2)
    for _ in range(2):
        change(tmp_path, ("ds.optimizer.params.lr",), lr=0.01)
    change(tmp_path, lr=0.01)
    said = {"step": 2, "key": "ds.optimizer.params.lr", "before": 0.001, "now": 0.01}
    assert json.loads((tmp_path / "summary.json").read_text())["recipe_changes"] == [said]
    assert (
        (tmp_path / "recipe.yaml").read_text().startswith("# From step 2 on ds.optimizer.params.lr is 0.01;")
    )
    assert read_recipe(tmp_path)["model"]["n_layer"] == 2


@pytest.mark.parametrize(
    ("allowed", "changes", "words"),
    [
        ("model.n_layer", {"n_layer": 3}, "cannot change under way"),
        ("model.n_layers", {}, "is no key .did you mean 'model.n_layer'"),
        ("model.n_layer", {}, "is the same in .* leave it out"),
        ("train.steps", {"steps": 500}, "may change anyway: leave it out"),
    ],
)
def test_what_cannot_be_allowed_is_refused(
    tmp_path: Path, allowed: str, changes: dict[str, object], words: str
) -> None:
    begin(tmp_path, 3)
    with pytest.raises(UserError, match=words):
        change(tmp_path, (allowed,), **changes)


@pytest.mark.parametrize(
    ("steps", "words"),
    [(100, None), (200, None), (19, "is at step 20 already: give --train.steps 20 or more"),
     (20, "without a validation there: give --train.steps 21 or more")],
)  # fmt: skip
def test_a_run_may_get_longer_and_not_shorter_than_it_is(
    tmp_path: Path, steps: int, words: str | None
) -> None:
    begin(tmp_path, 20)
    write_checkpoint(tmp_path, 20)
    if words is None:
        change(tmp_path, steps=steps)
        return
    with pytest.raises(UserError, match=words):
        change(tmp_path, steps=steps)
