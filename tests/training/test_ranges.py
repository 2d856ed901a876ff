"""Every number of a run has its range: of the recipe, of the DeepSpeed JSON, of a command's options."""

import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any

import pytest

import data.config
import model.config
import training.config.evaluation
import training.config.recipe
import training.schedule
from model.errors import UserError
from model.values import Range, describe_range
from tests.training.command_lines import command, recipe_folder, refusal
from tests.training.ds_configs import GOOD, load
from tests.training.ds_configs import refusal as ds_refusal
from training.config.deepspeed_keys import ALIASES, KEYS, MUON_PARAMETERS
from training.config.json_key import Key
from training.config.recipe import SECTIONS

TABLES = {
    "model": model.config.RANGES,
    "data": data.config.RANGES,
    "train": training.config.recipe.RANGES,
    "schedule": training.schedule.RANGES,
    "eval": training.config.evaluation.RANGES,
    "tracking": {},
}
NOT_FINITE = ("nan", "NaN", ".nan", "inf", "-inf", "Infinity", "1e999", "-1e999")


def number_fields() -> list[tuple[str, str, Any]]:
    """Section, field and type of all that holds numbers, alone, in a union or in a list."""
    found = []
    for name, section in SECTIONS.items():
        kinds = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            kind = kinds[field.name]
            arguments = set() if typing.get_origin(kind) is dict else {*typing.get_args(kind)}
            if {int, float} & ({kind} | arguments):
                found.append((name, field.name, kind))
    return found


def outside(bounds: Range, of: type) -> list[float]:
    """Numbers just outside a range, whole ones for whole numbers."""
    step = 1 if of is int else 1e-9
    beyond = {
        "at_least": lambda bound: bound - step,
        "above": lambda bound: bound,
        "at_most": lambda bound: bound + step,
        "below": lambda bound: bound,
    }
    given = dataclasses.asdict(bounds)
    return [of(beyond[name](bound)) for name, bound in given.items() if bound is not None]


def test_every_number_of_the_recipe_has_a_range() -> None:
    numbers = {(section, name) for section, name, _ in number_fields()}
    assert len(numbers) >= 27
    assert numbers == {(section, name) for section, table in TABLES.items() for name in table}
    unbounded = [
        (section, name) for section, table in TABLES.items() for name in table if table[name] == Range()
    ]
    assert unbounded == []


@pytest.mark.parametrize(("section", "name", "kind"), number_fields())
def test_a_number_of_the_recipe_outside_its_range_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, name: str, kind: Any
) -> None:
    folder = recipe_folder(tmp_path, monkeypatch)
    is_list = typing.get_origin(kind) is tuple
    of = int if int in {kind, *typing.get_args(kind)} else float
    wrong = [json.dumps(one) for one in outside(TABLES[section][name], of)]
    wrong += [*NOT_FINITE, "true", "0x10", "12:30"]
    wrong += ["1.5"] if float not in {kind, *typing.get_args(kind)} else []
    assert len(wrong) > len(NOT_FINITE) + 3
    for text in wrong:
        (folder / "recipe.yaml").write_text(f"{section}: {{{name}: {f'[{text}]' if is_list else text}}}\n")
        message = refusal(command(folder))
        assert message.startswith(f"{section}.{name} is ") and "must be" in message, message
        assert "integer" in message or "number" in message or "a list" in message, message


@pytest.mark.parametrize(("section", "name", "kind"), number_fields())
def test_a_sections_class_holds_its_numbers_to_their_ranges(section: str, name: str, kind: Any) -> None:
    """Also where no text is read: evaluation and tests make them themselves."""
    for value in (math.nan, math.inf, -math.inf, True):
        given = (value,) if typing.get_origin(kind) is tuple else value
        with pytest.raises(UserError, match=rf"^{section}\.{name} is "):
            SECTIONS[section](**{name: given})


@pytest.mark.parametrize(
    ("kind", "bounds", "words"),
    [
        (int, Range(at_least=1), "an integer of at least 1"),
        (float, Range(above=0, at_most=1), "a number above 0 and at most 1"),
        (float, Range(at_least=0, below=1), "a number of at least 0 and below 1"),
        (int | None, Range(at_least=1), "an integer of at least 1 or null"),
        (float, Range(at_most=2), "a number of at most 2"),
        (float, Range(), "a number"),
    ],
)
def test_a_range_in_words(kind: Any, bounds: Range, words: str) -> None:
    assert describe_range(kind, bounds) == words


# ---- the DeepSpeed JSON ----
def with_value(path: str, value: Any) -> dict[str, Any]:
    """A good JSON but for this key; the optimizer is one that takes it."""
    config: dict[str, Any] = json.loads(json.dumps(GOOD))
    if path.startswith("optimizer.params.") and path.rpartition(".")[2] in MUON_PARAMETERS:
        config["optimizer"]["type"] = "Muon"
    *parents, leaf = path.split(".")
    section = config
    for name in parents:
        section = section.setdefault(name, {})
    section[leaf] = value
    return config


NUMBERS = {path: key for path, key in KEYS.items() if key.kind in (int, float) or key.length}


def test_every_number_of_the_json_has_a_range() -> None:
    assert len(NUMBERS) >= 45
    assert [path for path, key in NUMBERS.items() if key.bounds in (None, Range())] == []
    # what may be a number is one of them, a choice (ZeRO's stage), or a name or a path
    others = {path for path, key in KEYS.items() if key.kind is object}
    assert others == {
        "data_types.keep_in_fp32_modules", "flops_profiler.output_file",
        "zero_optimization.offload_param.nvme_path", "zero_optimization.offload_optimizer.nvme_path",
    }  # fmt: skip
    assert {f"zero_optimization.{alias}" for alias in ALIASES} <= KEYS.keys()


@pytest.mark.parametrize("path", NUMBERS)
def test_a_number_of_the_json_outside_its_range_is_refused(tmp_path: Path, path: str) -> None:
    key = NUMBERS[path]
    assert key.bounds is not None
    of = int if key.kind is int else float
    wrong: list[Any] = [*outside(key.bounds, of), math.nan, math.inf, -math.inf, True, "much", [1, 2, 3]]
    wrong += [1.5] if key.kind is int else []
    for value in wrong:
        given = [value, 0.5] if key.length and not isinstance(value, list) else value
        message = ds_refusal(tmp_path, with_value(path, given))
        assert message.startswith(f"'{path}' in ") and f"it must be {key.describe()}" in message, message


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_jsons_own_words_for_no_number_are_refused(tmp_path: Path, literal: str) -> None:
    text = json.dumps(GOOD).replace('"lr": 0.001', f'"lr": {literal}')
    assert literal in text
    assert "'optimizer.params.lr'" in ds_refusal(tmp_path, text)
    message = ds_refusal(tmp_path, GOOD, {"gradient_clipping": literal})
    assert "'gradient_clipping'" in message and "it must be a number of at least 0" in message
    lamb = GOOD | {"optimizer": {"type": "Lamb", "params": {"lr": 0.1, "max_coeff": float(literal)}}}
    assert "'optimizer.params.max_coeff'" in ds_refusal(tmp_path, lamb)


def test_the_case_of_negative_clipping(tmp_path: Path) -> None:
    message = ds_refusal(tmp_path, GOOD, {"gradient_clipping": "-1"})
    assert message.startswith("'gradient_clipping' in ")
    assert message.endswith("is -1, but it must be a number of at least 0")
    assert load(tmp_path, GOOD, {"gradient_clipping": "0"}).raw["gradient_clipping"] == 0


def test_whole_floats_are_integers_where_deepspeed_takes_them() -> None:
    assert KEYS["zero_optimization.reduce_bucket_size"].takes(5e8)
    assert not KEYS["zero_optimization.reduce_bucket_size"].takes(5.5)
    assert not KEYS["train_batch_size"].takes(8.0)
    assert Key(int, Range(at_least=0)).takes("12") and not Key(int, Range(at_least=0)).takes("-12")
