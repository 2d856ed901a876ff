"""A recipe's texts are what is written: the key's type decides, the same on the command line and in YAML."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.errors import UserError
from tests.training.command_lines import DS_CONFIG, command, recipe_folder, refusal, resolve
from training.config.commands import TRAIN, read_request
from training.config.recipe import SECTIONS
from training.config.recipe_file import parse_yaml, to_yaml
from training.run.folder import recipe_as_dict
from training.run.reader import read_recipe

NASTY = (
    "no", "NO", "on", "y", "1e5", "1e-3", "0x10", "0o17", "010", "12:30", "12:30:45.5", "~", "null", "Null",
    "NULL", " a", "a ", "2024_10", "0012345", "2026-01-31", "1.0", ".inf", ".nan", "NaN", "-Infinity", "true",
    "True", "a: b", "a #b", "#", "- a", "[odd", "{odd", "a, b", "'", '"', "''", "*a", "&a", "!a", "%", "@a",
    "`", "|", ">", "?", "<<", "=", "\\n", "a\nb", "a\n", "\n", "\t", "a\tb", "a\r\nb", "é", "日本", "😀",
    "\x85", "\u2028", "\ufeff", "-", "--- a", "...", "x" * 300, "two words " * 30,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return recipe_folder(tmp_path, monkeypatch)


def sections_of(folder: Path, *options: str) -> dict[str, Any]:
    """What train.py makes of folder/recipe.yaml before anything is opened."""
    return dict(read_request(TRAIN, command(folder, *options)).sections)


def test_the_case_of_texts_that_yaml_changes(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(
        "data: {source: someone/corpus, subset: 2024_10, revision: 0012345, seed: 010}\n"
        "tracking: {name: 12:30, group: no, tags: [no, 2026-01-31, 1e3, 0x10, ~x, 010]}\n"
        "train: {steps: 0100}\nschedule: {warmup: 1, floor: 1e-3}\n"
    )
    found = sections_of(folder)
    assert (found["data"].subset, found["data"].revision, found["data"].seed) == ("2024_10", "0012345", 10)
    assert (found["tracking"].name, found["tracking"].group) == ("12:30", "no")
    assert found["tracking"].tags == ("no", "2026-01-31", "1e3", "0x10", "~x", "010")
    assert (found["train"].steps, found["schedule"].floor) == (100, 0.001)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "1_000", 1000), ("train.steps", "+7", 7), ("train.steps", "0010", 10),
        ("train.compile", "no", False), ("train.compile", "Off", False), ("train.compile", "YES", True),
        ("schedule.floor", "1e-3", 0.001), ("schedule.floor", ".5", 0.5), ("schedule.floor", "1.", 1.0),
        ("schedule.warmup", "010", 10), ("schedule.warmup", "0.04", 0.04), ("schedule.warmup", "1e1", 10.0),
        ("eval.limit", "~", None), ("eval.limit", "Null", None), ("tracking.name", "null", None),
        ("tracking.name", "nullify", "nullify"), ("data.revision", "1e5", "1e5"),
        ("model.norm_options", "{eps: 1e-6, gain: no, n: 010}", {"eps": 1e-6, "gain": "no", "n": "010"}),
    ],
)  # fmt: skip
def test_recipe_and_command_line_read_a_text_alike(folder: Path, key: str, text: str, value: Any) -> None:
    section, _, name = key.partition(".")
    on_command_line = getattr(sections_of(folder, f"--{key}={text}")[section], name)
    (folder / "recipe.yaml").write_text(f"{section}: {{{name}: {text}}}\n")
    in_recipe = getattr(sections_of(folder)[section], name)
    assert on_command_line == in_recipe == value
    assert type(on_command_line) is type(in_recipe) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("train.steps", "0x10"), ("train.steps", "1e3"), ("train.steps", "10.0"), ("train.steps", "12:30"),
        ("train.steps", "1__0"), ("train.steps", "true"), ("train.steps", "\uff11\uff12"),
        ("train.compile", "1"), ("train.compile", "maybe"), ("schedule.floor", ".nan"),
        ("schedule.floor", "nan"),
        ("schedule.floor", "inf"), ("schedule.floor", "1e999"), ("schedule.floor", "0x1p-2"),
        ("data.source", "null"), ("data.source", "[a, b]"), ("data.source", "{a: b}"), ("data.source", ""),
        ("data.source", "~"), ("model.norm_options", "[a]"), ("tracking.tags", "a"),
        ("tracking.tags", "[[a]]"),
    ],
)  # fmt: skip
def test_a_text_of_another_type_gets_one_sentence(folder: Path, key: str, text: str) -> None:
    section, _, name = key.partition(".")
    (folder / "recipe.yaml").write_text(f"{section}: {{{name}: {text}}}\n")
    with pytest.raises(UserError) as caught:
        sections_of(folder)
    assert str(caught.value).startswith(f"{key} is ") and "it must be" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_in_quotes_is_no_null_and_an_empty_value_is(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("tracking:\n  name: \"null\"\n  group: '~'\neval:\n  limit:\n")
    found = sections_of(folder)
    assert (found["tracking"].name, found["tracking"].group) == ("null", "~")
    assert found["eval"].limit is None


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("train: {steps: 4}\nmodel: {n_layer: 2}\ntrain: {val_every: 2}", "train", (1, 3)),
        ("train:\n  steps: 4\n  val_every: 2\n  steps: 5", "steps", (2, 4)),
        ("model:\n  norm_options:\n    eps: 1\n    'eps': 2", "eps", (3, 4)),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_lines(
    folder: Path, text: str, key: str, lines: tuple[int, int]
) -> None:
    (folder / "recipe.yaml").write_text(text)
    message = refusal(command(folder))
    first, second = lines
    assert message == (
        f"{folder / 'recipe.yaml'} holds the key '{key}' twice, in line {first} and in line {second}"
    )
    run_dir = folder
    with pytest.raises(UserError, match=f"holds the key '{key}' twice"):
        read_recipe(run_dir)


def test_what_is_merged_into_a_mapping_is_no_key_that_stands_twice() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, x: 4}"
    assert parse_yaml(text) == {
        "a": {"x": "1", "y": "2"},
        "b": {"x": "1", "y": "3"},
        "c": {"x": "4", "y": "3"},
    }


def test_a_recipe_in_another_encoding_is_refused_and_a_mark_is_read_over(folder: Path) -> None:
    (folder / "recipe.yaml").write_bytes("tracking: {name: é}".encode("latin-1"))
    assert "is not UTF-8 text" in refusal(command(folder))
    (folder / "recipe.yaml").write_bytes("tracking: {name: é}\nschedule: {warmup: 1}".encode("utf-8-sig"))
    assert resolve(command(folder))[0].tracking.name == "é"
    ds_config = folder / "ds.json"
    ds_config.write_bytes(DS_CONFIG.read_text().encode("utf-8-sig"))
    assert resolve([*command(folder), "--deepspeed_config", str(ds_config)])[1].train_batch_size == 576
    ds_config.write_bytes(b'{"a": "\xff"}')
    assert "is not UTF-8 text" in refusal([*command(folder), "--deepspeed_config", str(ds_config)])


def with_texts(text: str) -> dict[str, Any]:
    """A recipe with this text in every field that takes any, alone or in a list."""
    asked: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        kinds = typing.get_type_hints(section)
        texts = [key for key, kind in kinds.items() if kind is str or str in typing.get_args(kind)]
        texts = [key for key in texts if typing.get_origin(kinds[key]) is not dict]
        texts = [key for key in texts if key not in ("tasks", "include_path")]  # which must be there
        asked[name] = section(
            **{key: (text, "a") if typing.get_origin(kinds[key]) is tuple else text for key in texts}
        )
    assert asked["data"].source == asked["model"].norm == asked["tracking"].tags[0] == text
    return asked


@pytest.mark.parametrize("texts", [NASTY[start::4] for start in range(4)], ids=range(4))
def test_what_is_written_reads_back_the_same(folder: Path, texts: tuple[str, ...]) -> None:
    for text in texts:
        asked = with_texts(text)
        (folder / "recipe.yaml").write_text(to_yaml(recipe_as_dict(asked)))
        assert sections_of(folder) == asked, text
        assert read_recipe(folder) == {key: dataclasses.asdict(one) for key, one in asked.items()}, text
        as_others_read_it = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert as_others_read_it == recipe_as_dict(asked), text


def test_a_designs_options_are_written_and_read_back_the_same(folder: Path) -> None:
    options = {"n": 3, "eps": 1e-5, "tiny": 1e-300, "on": True, "none": None, "list": [1, "1", "a"]}
    options |= {f"text{number}": text for number, text in enumerate(NASTY)}
    asked = {key: kind() for key, kind in SECTIONS.items()}
    asked["model"] = dataclasses.replace(asked["model"], norm_options=options)
    (folder / "recipe.yaml").write_text(to_yaml(recipe_as_dict(asked)))
    found = sections_of(folder)["model"].norm_options
    assert found == options and [type(found[key]) for key in options] == [*map(type, options.values())]
