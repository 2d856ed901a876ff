"""The weights that a run begins with: drawn from `train.init_seed`, or those of `train.init_from`."""

import filecmp
import json
import shlex
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from data import DataConfig, open_tokenizer
from model import GPT, GPTConfig
from model.errors import UserError
from model.export import write_code
from model.plug_points import NAMES_OF_OURS, PLUG_POINTS, split_name
from model.plugin import extract

from ..checkpoints.found import complete_checkpoints
from ..config.recipe import Recipe
from ..run.folder import RunFolder
from ..run.preflight import treatment_of_run
from ..run.reader import TOKENIZER, is_model_folder, read_recipe, read_summary, run_and_step
from .ranks import Ranks
from .weights import config_of, fingerprint, load_weights

FREE = ("dropout", "z_loss")
"""What the model's weights do not depend on."""


def check_start(recipe: Recipe, folder: RunFolder) -> None:
    """Compare the model of `train.init_from` with the run's, unless the run goes on from a checkpoint.

    Raises UserError that names the first difference and what to change.
    """
    source = recipe.train.init_from
    if source is None or (not folder.restarts and complete_checkpoints(folder.path)):
        return
    try:
        theirs = config_of(source)
    except UserError as error:
        raise UserError(f"train.init_from is {source}: {error}") from error
    _check_tokenizer(source, recipe.data.tokenizer)
    for field in fields(GPTConfig):
        before, now = getattr(theirs, field.name), getattr(recipe.model, field.name)
        if field.name in FREE or before == now:
            continue
        if field.name in PLUG_POINTS and _same_code(field.name, source, theirs, recipe.model):
            continue
        value = before if isinstance(before, str) else json.dumps(before)
        raise UserError(
            f"train.init_from is {source}, a model with model.{field.name} {value}, but this run has "
            f"{now if isinstance(now, str) else json.dumps(now)}: give --model.{field.name} "
            f"{shlex.quote(value)}, or another train.init_from"
        )


def initial_model(recipe: Recipe, folder: RunFolder, ranks: Ranks, resumes: bool) -> GPT:
    """The model as the run begins; where it resumes, its checkpoint is loaded over these weights.

    All ranks call it. The summary keeps the fingerprint of given weights. Raises UserError where they cannot
    be read, or are other ones than an earlier start of this run had.
    """
    source, treatment = recipe.train.init_from, treatment_of_run(folder, ranks)
    if resumes or source is None:
        torch.manual_seed(recipe.train.init_seed)
        return GPT(recipe.model).treat(treatment)
    weights = load_weights(source).state_dict()
    folder.record_fingerprints("initial weights", init_fingerprint=fingerprint(weights))
    folder.summary["init_from"] = source
    torch.manual_seed(recipe.train.init_seed)
    gpt = GPT(recipe.model).treat(treatment)
    gpt.load_state_dict(weights)
    return gpt


def _check_tokenizer(source: str, ours: str) -> None:
    """Raises UserError where a run had another tokenizer; tokenizers with as many tokens may differ."""
    run_dir, _ = run_and_step(Path(source).expanduser())
    if is_model_folder(run_dir):
        return
    theirs = (read_recipe(run_dir).get("data") or {}).get("tokenizer", DataConfig.tokenizer)
    moved = theirs.endswith(".json") and ours.endswith(".json")
    if theirs != ours and not moved:
        raise UserError(
            f"train.init_from is {source}, a run with data.tokenizer {theirs}, but this run has {ours}: give "
            f"--data.tokenizer {shlex.quote(theirs)}, or another train.init_from"
        )
    summary = read_summary(run_dir) if (run_dir / "summary.json").is_file() else {}
    pinned = summary.get("tokenizer_fingerprint")
    if moved and pinned not in (None, open_tokenizer(ours).fingerprint):
        raise UserError(
            f"train.init_from is {source}, a run whose tokenizer.json is another than {ours}: give "
            f"--data.tokenizer {shlex.quote(str(run_dir / TOKENIZER))}, or another train.init_from"
        )


def _same_code(plug: Any, source: str, theirs: GPTConfig, ours: GPTConfig) -> bool:
    """Whether two designs from files are the same class with the same code."""
    places = [split_name(getattr(config, plug)) for config in (theirs, ours)]
    if not all(place and place[0].endswith(".py") for place in places):
        return False
    (their_file, their_name), (our_file, our_name) = (place for place in places if place)
    if their_name != our_name:
        return False
    if not is_model_folder(Path(source).expanduser()):
        parts = [extract(Path(file), [our_name], NAMES_OF_OURS).source for file in (their_file, our_file)]
        return parts[0] == parts[1]
    # An export holds the part of the file that the design needs, its imports written anew.
    with tempfile.TemporaryDirectory() as written:
        write_code(ours, Path(written))
        names = (f"design_{plug}.py", "chosen_norm.py")
        pairs = [(Path(written, name), Path(their_file).with_name(name)) for name in names]
        return all(
            (not one.is_file() and not other.is_file())
            or (one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False))
            for one, other in pairs
        )
