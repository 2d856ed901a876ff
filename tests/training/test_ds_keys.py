"""The table of a DeepSpeed JSON's keys, held to DeepSpeed's own classes, and what is left to them."""

import enum
import inspect
import json
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError

from model.errors import UserError
from model.values import Range
from training.config import read_deepspeed_config
from training.config.deepspeed_keys import (
    ALIASES,
    CHECKED_SECTIONS,
    CHECKED_SUBSECTIONS,
    OPTIMIZERS,
    TORCHS_PARAMETERS,
    Key,
)
from training.engine.build import SECTION_CLASSES, check_with_deepspeed
from training.engine.ranks import deepspeed

FILES = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))
GOOD = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}


SUBSECTION_CLASSES: dict[str, type[BaseModel]] = {
    name: next(
        kind
        for kind in typing.get_args(SECTION_CLASSES["zero_optimization"].model_fields[name].annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    )
    for name in CHECKED_SUBSECTIONS
}
TABLES = [(CHECKED_SECTIONS[name], theirs) for name, theirs in SECTION_CLASSES.items()]
TABLES += [(CHECKED_SUBSECTIONS[name], theirs) for name, theirs in SUBSECTION_CLASSES.items()]


def key_of(annotation: Any, bounds: list[Any]) -> Key:
    """What DeepSpeed's class says of a field, in the table's terms."""
    arguments = typing.get_args(annotation)
    or_null = type(None) in arguments
    kind = next((a for a in arguments if a is not type(None)), annotation) if or_null else annotation
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return Key(tuple(member.value for member in kind))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return Key(dict, or_null=True)  # null is a section that is left out
    if (typing.get_origin(kind) or kind) is list:
        return Key(list, or_null=or_null)
    limits = {
        ours: getattr(bound, theirs)
        for bound in bounds
        for theirs, ours in (("ge", "at_least"), ("gt", "above"), ("le", "at_most"))
        if hasattr(bound, theirs)
    }
    return Key(kind, Range(**limits) if limits else None, or_null=or_null)


@pytest.mark.parametrize(("ours", "theirs"), TABLES, ids=lambda side: getattr(side, "__name__", ""))
def test_the_tables_keys_are_deepspeeds(ours: dict[str, Key], theirs: type[BaseModel]) -> None:
    assert ours.keys() == theirs.model_fields.keys()
    for name, key in ours.items():
        field = theirs.model_fields[name]
        assert ALIASES.get(field.alias or name, name) == name
        if key.kind is not object:  # a path
            is_number = key.kind in (int, float)
            assert (key.bounds is not None) == is_number, name
            expected = key_of(field.annotation, field.metadata)
            assert (key.kind, key.or_null) == (expected.kind, expected.or_null), name
            if expected.bounds:  # where DeepSpeed has no bounds, or some in a check of its own, ours stand
                assert key.bounds == expected.bounds, name
    aliases = {field.alias for field in theirs.model_fields.values() if field.alias}
    assert aliases == (set(ALIASES) if "stage" in ours else set())


OUR_BOUNDS = {
    "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale", "loss_scale",
    "module_granularity_threshold", "free_activation_threshold",
}  # fmt: skip
"""Numbers that DeepSpeed's classes take whatever they are, or check apart."""
VALUES = (True, False, 0, 1, -1, 2, 7, 0.5, 1.0, 5e8, None, [], {}, [1])


@pytest.mark.parametrize(("ours", "theirs"), TABLES, ids=lambda side: getattr(side, "__name__", ""))
def test_the_table_refuses_what_deepspeed_refuses(ours: dict[str, Key], theirs: type[BaseModel]) -> None:
    """Left to DeepSpeed are texts, what a list or a section holds, and its own validators."""
    for name, key in ours.items():
        for value in VALUES if key.kind is not object else ():
            stricter = isinstance(value, bool) and key.kind is not bool  # to DeepSpeed true is a number
            stricter |= type(value) is not bool and key.strict
            stricter |= key.bounds is not None and name in OUR_BOUNDS and not key.bounds.holds(value)
            if (value == [1] and key.kind is list) or stricter:
                continue
            try:
                theirs(**{name: value})
            except ValidationError as error:
                of_type = [
                    p for p in error.errors() if p["loc"][:1] == (name,) and p["type"] != "value_error"
                ]
                assert not (of_type and key.takes(value)), (name, value, of_type)
            except TypeError:
                assert not key.takes(value), (name, value)
            else:
                assert key.takes(value), (name, value)


def test_the_tables_optimizers_are_deepspeeds_and_their_settings_torchs() -> None:
    assert list(OPTIMIZERS) == deepspeed.runtime.config.DEEPSPEED_OPTIMIZERS
    settings = {*inspect.signature(torch.optim.AdamW).parameters} - {"params"}
    assert settings == {"lr", "betas", "eps", "weight_decay"} | TORCHS_PARAMETERS


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (
            {"zero_optimization": {"reduce_scatter": "maybe"}},
            ["'zero_optimization'", "reduce_scatter is 'maybe'", "boolean"],
        ),
        ({"zero_optimization": {"zenflow": {"topk": 1}}}, ["'zero_optimization'", "zenflow.topk"]),
        ({"compile": {"passes": ["z2"]}}, ["'compile'", "passes.0 is 'z2'"]),
        ({"comms_logger": {"enabled": "soon"}}, ["'comms_logger'", "enabled is 'soon'"]),
    ],
)
def test_what_only_deepspeed_knows_it_refuses_later(
    tmp_path: Path, config: dict[str, Any], parts: list[str]
) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(GOOD | config))
    loaded = read_deepspeed_config(tmp_path / "ds.json", {}, 1)
    with pytest.raises(UserError) as caught:
        check_with_deepspeed(loaded)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [] and "\n" not in message, message


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_deepspeed_refuses_none_of_our_files(path: Path) -> None:
    check_with_deepspeed(read_deepspeed_config(path, {}, 2))
