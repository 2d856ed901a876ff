"""The command line and the recipe, resolved once: recipe < overrides, checked before anything is built."""

import argparse
import dataclasses
import datetime
import difflib
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace


@dataclass(frozen=True)
class Shorthand:
    """One key that stands for several, as `model.variant` does for norm, block and topology."""

    choices: Mapping[str, Mapping[str, Any]]
    """What each of its values stands for: {"rmsnorm": {"model.norm": "rmsnorm", ...}}."""
    of_file: Callable[[str], Mapping[str, Any]] | None = None
    """What a path that ends in .py stands for, where that is allowed; raises ValueError."""
    help: str = ""


Shorthands = Mapping[str, Shorthand]


@dataclass(frozen=True)
class Command:
    """What was asked for, with each recipe section as its dataclass and shorthands written out."""

    recipe_file: Path
    recipe: dict[str, Any]
    given: frozenset[str]
    """The keys that the recipe file or the command line sets, shorthands written out."""
    deepspeed_config: Path
    ds_overrides: dict[str, str]
    """Dotted JSON path below the DeepSpeed config -> value as typed, e.g. {"optimizer.params.lr": "3e-4"}."""
    run_dir: Path | None


def unknown_key(key: str, known: Iterable[str], where: str) -> ValueError:
    """The sentence about a key that does not exist: where it stood, and the nearest known one."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
    return ValueError(f"unknown key '{key}' in {where}; the nearest known key is '{close[0]}'")


def parse_command(
    argv: list[str], sections: Mapping[str, type], shorthands: Shorthands, description: str
) -> Command:
    """Read the command line and the recipe it names.

    `sections` maps a recipe section to its dataclass. A shorthand stands for its keys at the level at which
    it is given, so a variant on the command line wins over the recipe's norm, and a norm beside it over the
    variant's.

    Raises:
        ValueError, FileNotFoundError: one sentence about what was given and what is allowed.
        SystemExit: after `--help`.
    """
    parser = _parser(sections, shorthands, description)
    ds_overrides, argv = _split_ds_overrides(argv)
    known = {
        f"{name}.{field.name}": typing.get_type_hints(section)[field.name]
        for name, section in sections.items()
        for field in dataclasses.fields(section)
    } | {key: str for key in shorthands}
    paths = {"config", "deepspeed_config", "run_dir", "local_rank"}
    open_keys = {key for key, kind in known.items() if typing.get_origin(kind) is dict}

    given = _options(argv, set(known) | paths, open_keys)
    if any(word in ("-h", "--help") for word in argv):
        parser.parse_args(["--help"])
    for required in ("config", "deepspeed_config"):
        if required not in given:
            raise ValueError(
                f"--{required} is missing: it takes a file, e.g. "
                "--config recipes/sample.yaml --deepspeed_config ds_configs/zero1_bf16_cpu.json"
            )
    recipe_file, ds_file = (
        existing_file("config", given["config"]),
        existing_file("deepspeed_config", given["deepspeed_config"]),
    )
    overrides = {key: value for key, value in given.items() if key not in paths}
    merged = _merge(
        _expand(_read_recipe(recipe_file, known), shorthands), _expand(overrides, shorthands), open_keys
    )
    try:
        values = parser.parse_args([f"--{key}={value}" for key, value in merged.items()])
    except ArgumentError as error:
        raise _type_error(str(error), merged, known) from error
    recipe = {
        name: section(**_without_shorthands(values[name], name, shorthands))
        for name, section in sections.items()
    }
    run_dir = Path(given["run_dir"]) if "run_dir" in given else None
    return Command(recipe_file, recipe, frozenset(merged), ds_file, ds_overrides, run_dir)


def existing_file(option: str, value: str) -> Path:
    """The path, if there is such a file. Raises FileNotFoundError with the nearest name in its folder."""
    path = Path(value)
    if path.is_file():
        return path
    siblings = [str(p) for p in sorted(path.parent.glob(f"*{path.suffix}"))] if path.parent.is_dir() else []
    close = difflib.get_close_matches(value, siblings, n=1)
    raise FileNotFoundError(
        f"--{option} is '{value}', but there is no such file"
        + (f" (did you mean '{close[0]}'?)" if close else "")
    )


def _parser(sections: Mapping[str, type], shorthands: Shorthands, description: str) -> ArgumentParser:
    usage = (
        "deepspeed [--num_gpus N] train.py --config RECIPE.yaml --deepspeed_config DS.json [--run_dir DIR]\n"
        "                 [--section.key VALUE ...] [--ds.path.to.key VALUE ...]"
    )
    parser = ArgumentParser(prog="train.py", usage=usage, description=description, exit_on_error=False)
    parser.add_argument("--config", metavar="RECIPE.yaml", help="the recipe: model, data, length, evaluation")
    parser.add_argument(
        "--deepspeed_config",
        metavar="DS.json",
        help="the engine: batch sizes, precision, ZeRO, optimizer, clipping",
    )
    parser.add_argument(
        "--run_dir",
        metavar="DIR",
        help="the run folder; a run that stopped there is resumed (default: under runs/)",
    )
    parser.add_argument("--local_rank", metavar="N", help="set by the launcher")
    parser.add_argument(
        "--ds.path.to.key",
        metavar="VALUE",
        dest="ds_override",
        help="override any key of the DeepSpeed config, e.g. --ds.optimizer.params.lr 3e-4",
    )
    for key, shorthand in shorthands.items():
        parser.add_argument(f"--{key}", metavar="NAME", help=shorthand.help)
    for name, section in sections.items():
        parser.add_class_arguments(section, name)
        # jsonargparse's own `--section FILE`, which NormLab does not take.
        parser._option_string_actions[f"--{name}"].help = argparse.SUPPRESS
    return parser


def _split_ds_overrides(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    overrides, rest = {}, []
    words = iter(argv)
    for word in words:
        if not word.startswith("--ds."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--ds.").partition("=")
        if not equals:
            value = next(words, "")
        if not value or value.startswith("--"):
            raise ValueError(f"--ds.{key} has no value: it is written --ds.{key} VALUE")
        overrides[key] = value
    return overrides, rest


def _options(argv: list[str], known: set[str], open_keys: set[str]) -> dict[str, str]:
    """The command line as {key: value as typed}; the last of two wins. Below `open_keys` any name goes."""
    given = {}
    words = iter(argv)
    for word in words:
        if word in ("-h", "--help"):
            continue
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise ValueError(
                f"'{word}' on the command line belongs to no option: options are written --key value"
            )
        if key not in known and key.rpartition(".")[0] not in open_keys:
            raise unknown_key(key, known, "the command line")
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise ValueError(f"--{key} has no value: it is written --{key} VALUE")
            value = following
        given[key] = value
    return given


def _read_recipe(path: Path, known: Mapping[str, Any]) -> dict[str, str]:
    """The recipe as {"section.key": value as a command line would hold it}."""
    try:
        recipe = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds no sections: a recipe is a mapping such as 'model: {{n_layer: 12}}'")
    sections = {key.partition(".")[0] for key in known}
    flat = {}
    for section, values in recipe.items():
        if section not in sections:
            raise unknown_key(str(section), sections, str(path))
        if not isinstance(values, dict):
            raise ValueError(f"{path}: section '{section}' is {values!r}, but it must be a mapping of keys")
        for name, value in values.items():
            key = f"{section}.{name}"
            if key not in known:
                raise unknown_key(key, known, str(path))
            # YAML reads 2026-01-31 as a date, which JSON does not know.
            plain_text = isinstance(value, (str, datetime.date))
            flat[key] = str(value) if plain_text else json.dumps(value, default=str)
    return flat


def _expand(values: dict[str, str], shorthands: Shorthands) -> dict[str, str]:
    expanded: dict[str, str] = {}
    for key, shorthand in shorthands.items():
        if key in values:
            name = values[key]
            if name in shorthand.choices:
                stands_for = shorthand.choices[name]
            elif shorthand.of_file and name.endswith(".py"):
                stands_for = shorthand.of_file(name)
            else:
                close = difflib.get_close_matches(name, list(shorthand.choices), n=1, cutoff=0.0)
                raise ValueError(
                    f"{key} is {name!r}, which does not exist (did you mean '{close[0]}'?); "
                    f"known are {', '.join(shorthand.choices)}"
                )
            expanded |= {
                target: value if isinstance(value, str) else json.dumps(value)
                for target, value in stands_for.items()
            }
    return expanded | {key: value for key, value in values.items() if key not in shorthands}


def _merge(recipe: dict[str, str], overrides: dict[str, str], open_keys: set[str]) -> dict[str, str]:
    """The recipe with the overrides in. Options belong to the design they were given with: another design
    begins without them. `norm_options.eps` is put into `norm_options`."""
    merged = recipe | overrides
    for key in open_keys:
        design = key.removesuffix("_options")
        if key not in overrides and design in overrides and overrides[design] != recipe.get(design):
            merged.pop(key, None)
        single = {name: merged.pop(name) for name in list(merged) if name.startswith(f"{key}.")}
        if single:
            try:
                values = json.loads(merged.get(key, "{}"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{key} is {merged[key]!r}, but it must be a mapping") from error
            merged[key] = json.dumps(values | {n.removeprefix(f"{key}."): v for n, v in single.items()})
    return merged


def _without_shorthands(values: Namespace, section: str, shorthands: Shorthands) -> dict[str, Any]:
    return {key: value for key, value in vars(values).items() if f"{section}.{key}" not in shorthands}


def _type_error(message: str, given: Mapping[str, str], known: Mapping[str, Any]) -> ValueError:
    for key in sorted(given, key=len, reverse=True):
        if f'"{key}"' in message:
            return ValueError(f"{key} is {given[key]!r}, but it must be {_describe(known[key])}")
    return ValueError(" ".join(message.split()))


def _describe(kind: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if kind in names:
        return names[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return "a mapping such as {eps: 1.0e-6}"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, arguments))
    if origin in (tuple, list):
        return "a list such as [a, b]"
    return str(kind)
