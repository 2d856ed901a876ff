"""In what a command differs from the run in its folder: what may, what a user may allow, what never does."""

import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from model.errors import UserError, did_you_mean

from ..checkpoints.found import complete_checkpoints, lost_checkpoints
from .folder import CONFIGS, RunFolder, as_json, recipe_as_dict
from .reader import read_json, read_metrics, read_recipe

CHANGEABLE_OF_MODEL = ("model.dropout", "model.z_loss")
"""What the model's weights do not depend on."""
FIXED = {
    "model": "the weights of its checkpoints belong to it",
    "data": "its place in the data belongs to it",
    "train.init_seed": "the first weights were drawn with it",
    "train.init_from": "the first weights were taken from there",
    "ds.train_batch_size": "its place in the data is counted in such batches",
    "ds.zero_optimization": "the files of its checkpoints are cut by it",
    "ds.bf16": "its checkpoints hold weights of this precision",
    "ds.fp16": "its checkpoints hold weights of this precision",
    "ds.data_types": "its checkpoints hold sums of this precision",
    "ds.optimizer.type": "its checkpoints hold this optimizer's moments",
}
"""Keys, and what is below them, whose change would make a checkpoint meaningless, and why."""


def check_same_run(
    folder: RunFolder,
    recipe: Mapping[str, Any],
    ds_config: Mapping[str, Any],
    free: Collection[str],
    allowed: Collection[str] = (),
    schedule_follows: bool = False,
) -> None:
    """Refuse to continue a run under another recipe or DeepSpeed config, now and when it is claimed.

    A folder in which no run `has_begun` takes any.

    Args:
        folder: gets as `changes` the differences that are allowed.
        recipe: its sections as dataclasses.
        ds_config: the DeepSpeed config.
        free: keys ("section.key" or "section") that may differ: they do not change the numbers of the steps.
        allowed: of --allow_recipe_change.
        schedule_follows: whether `schedule.steps` was left out, so that it is `train.steps`.

    Raises UserError that names every difference, or says why the run can neither go on nor begin again.
    """
    folder.check(partial(_check, folder, recipe, ds_config, free, allowed, schedule_follows))


def differing_keys(
    run_dir: Path, recipe: Mapping[str, Any], ds_config: Mapping[str, Any], free: Collection[str]
) -> Iterator[tuple[str, Any, Any]]:
    """In what a run's stored configs differ from these: the key, its value in the run, and its value here.

    A key that the run does not know yet was at its default, which is what NormLab did before there was one.
    A number of lanes that is left open is the run's own. Keys and sections in `free` are passed over. Raises
    UserError where the run's files cannot be read.
    """
    defaults = _flat(recipe_as_dict({name: type(section)() for name, section in recipe.items()}))
    before = (
        defaults | _flat(as_json(read_recipe(run_dir))) | _flat({"ds": read_json(run_dir / "ds_config.json")})
    )
    now = _flat(recipe_as_dict(recipe)) | _flat({"ds": dict(ds_config)})
    if now.get("data.lanes", 0) is None:
        del now["data.lanes"]
        before.pop("data.lanes", None)
    for key in sorted(before.keys() | now.keys()):
        if not _is_free(key, free) and before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def _check(
    folder: RunFolder,
    recipe: Mapping[str, Any],
    ds_config: Mapping[str, Any],
    free: Collection[str],
    allowed: Collection[str],
    schedule_follows: bool,
) -> None:
    path = folder.path
    if not folder.has_begun():
        if allowed:
            raise UserError(f"no run has begun in {path}: leave out --allow_recipe_change")
        return
    if problem := lost_checkpoints(path):
        raise UserError(problem)
    if not all((path / name).is_file() for name in CONFIGS[:2]):
        return
    _check_steps(folder, recipe["train"].steps)
    found = {key: (before, now) for key, before, now in differing_keys(path, recipe, ds_config, free)}
    _check_allowed(
        folder, allowed, found, _flat(recipe_as_dict(recipe)) | _flat({"ds": dict(ds_config)}), free
    )
    if refused := {key: values for key, values in found.items() if key not in allowed}:
        raise UserError(_refusal(path, refused, schedule_follows))
    folder.changes = [{"key": key, "before": found[key][0], "now": found[key][1]} for key in found]


def _check_steps(folder: RunFolder, steps: int) -> None:
    """Raise UserError where a run would have to go back, or would end at a step without a validation."""
    there = complete_checkpoints(folder.path)
    if not there:
        return
    current, was = max(there), (read_recipe(folder.path).get("train") or {}).get("steps")
    if steps < current:
        raise UserError(
            f"train.steps is {steps}, but {folder.path} is at step {current} already: give --train.steps "
            f"{current} or more, or another --run_dir"
        )
    lines = read_metrics(folder.path) if steps == current and steps != was else []
    if lines and not any(line["kind"] == "val" and line["step"] == steps for line in lines):
        raise UserError(
            f"train.steps is {steps}, the step that {folder.path} has reached, without a validation there: "
            f"give --train.steps {steps + 1} or more, or another --run_dir"
        )


def _check_allowed(
    folder: RunFolder,
    allowed: Collection[str],
    found: Mapping[str, tuple[Any, Any]],
    now: Mapping[str, Any],
    free: Collection[str],
) -> None:
    """Raise UserError where --allow_recipe_change names what cannot change, or what does not."""
    changed_before = {
        (one["key"], json.dumps(one["now"])) for one in folder.summary.get("recipe_changes", [])
    }
    for key in allowed:
        if reason := _fixed(key) if key in found else None:
            raise UserError(
                f"{key} of {folder.path} cannot change under way: {reason}; choose another --run_dir"
            )
        if key in found or (key, json.dumps(now.get(key))) in changed_before:  # the same command again
            continue
        if key not in now:
            raise UserError(f"--allow_recipe_change names {key}, which is no key{did_you_mean(key, now)}")
        may = "may change anyway" if _is_free(key, free) else f"is the same in {folder.path} and here"
        raise UserError(f"--allow_recipe_change names {key}, which {may}: leave it out")


def _refusal(path: Path, refused: Mapping[str, tuple[Any, Any]], schedule_follows: bool) -> str:
    """Every difference, and what to type."""
    differences = "; ".join(
        f"{key} = {before!r}, but {now!r} is asked for" for key, (before, now) in refused.items()
    )
    words = [f"--{key} {_word(before)}" for key, (before, _) in refused.items() if before is not None]
    same = f" ({' '.join(words)})" if words else ""
    sentence = f"{path} is a run with {differences}: choose another --run_dir, give the same to go on{same}"
    fixed = {key: reason for key in refused if (reason := _fixed(key))}
    if changeable := [key for key in refused if key not in fixed]:
        sentence += f", or --allow_recipe_change {','.join(changeable)} to go on with what is new from here"
    if "schedule.steps" in changeable and schedule_follows:
        sentence += (
            "; schedule.steps was not given and follows train.steps: --schedule.steps "
            f"{refused['schedule.steps'][0]} keeps the schedule, past whose end the rate stays at its floor"
        )
    return sentence + "".join(f"; {key} cannot change under way: {reason}" for key, reason in fixed.items())


def _fixed(key: str) -> str | None:
    """Why a key cannot change under way; None where it can."""
    if key in CHANGEABLE_OF_MODEL:
        return None
    return next((why for fixed, why in FIXED.items() if key == fixed or key.startswith(f"{fixed}.")), None)


def _is_free(key: str, free: Collection[str]) -> bool:
    return key in free or key.partition(".")[0] in free


def _word(value: Any) -> str:
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
