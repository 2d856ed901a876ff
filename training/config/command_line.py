"""A command line of `--section.key VALUE`, read and checked, for train.py and its relatives."""

import argparse
import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError, did_you_mean, nearest_name
from model.values import Quoted, as_type

from .recipe_file import RENAMED_KEYS, parse_yaml, read_recipe_file

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_HELP = ("-h", "--help")


@dataclass(frozen=True)
class Option:
    """An option of a command's own, beside the recipe's keys.

    Attributes:
        help: what it means
        metavar: what stands for its value in the help text; None where it takes no value
    """

    help: str
    metavar: str | None = "VALUE"


@dataclass(frozen=True)
class Shorthand:
    """One key that stands for several, as `model.variant` does for norm, block and topology.

    Attributes:
        choices: what each of its values stands for: {"rmsnorm": {"model.norm": "rmsnorm", ...}}
        of_file: what a path that ends in .py stands for, where that is allowed; raises UserError
        help: what it means
    """

    choices: Mapping[str, Mapping[str, Any]]
    of_file: Callable[[str], Mapping[str, Any]] | None = None
    help: str = ""


@dataclass(frozen=True)
class Given:
    """What a command line holds, each value as it was typed.

    Attributes:
        options: the command's own options; "true" for one without a value
        keys: the recipe's keys and the shorthands for them
        deepspeed: dotted path in the DeepSpeed JSON -> value, e.g. {"optimizer.params.lr": "3e-4"}
    """

    options: Mapping[str, str]
    keys: Mapping[str, str]
    deepspeed: Mapping[str, str]


@dataclass(frozen=True)
class CommandLine:
    """What a command takes: options of its own, the recipe's keys, and keys of the DeepSpeed JSON.

    Attributes:
        prog: the command's name
        usage: its first lines of help
        description: what it does
        sections: a recipe's section -> its dataclass, whose fields are its keys
        shorthands: a key that stands for others of them -> what it stands for
        options: the command's own, by name
        switches: words without a value -> the `--key=value` that each stands for
        takes_deepspeed: whether --ds.path.to.key is taken
        epilog: what follows the keys in the help text
    """

    prog: str
    usage: str
    description: str
    sections: Mapping[str, type]
    shorthands: Mapping[str, Shorthand]
    options: Mapping[str, Option] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    takes_deepspeed: bool = False
    epilog: str = ""

    def read(self, argv: list[str]) -> Given:
        """The command line taken apart; the last of two equal options wins.

        Raises:
            UserError: one sentence about what was given and what is allowed.
            SystemExit: after `--help`, with status 0.
        """
        types = self._types()
        known, design_options = {*types, *self.options}, _design_options(types)
        given: dict[str, str] = {}
        deepspeed: dict[str, str] = {}
        words = iter([self.switches.get(word, word) for word in argv if word not in _HELP])
        for word in words:
            if not word.startswith("--"):
                raise UserError(
                    f"'{word}' on the command line belongs to no option: options are written --key value"
                )
            key, equals, value = word.removeprefix("--").partition("=")
            key = RENAMED_KEYS.get(key, key)
            if key not in known and key.replace("-", "_") in self.options:  # --local-rank is torch's
                key = key.replace("-", "_")
            below_deepspeed = self.takes_deepspeed and key.startswith("ds.")
            if not below_deepspeed and key not in known and key.rpartition(".")[0] not in design_options:
                raise unknown_key(key, known, "the command line")
            if key in self.options and self.options[key].metavar is None:
                given[key] = "true"
                continue
            if not equals:
                value = next(words, "--")
            if (value.startswith("--") and not equals) or (below_deepspeed and value in ("", "--")):
                raise UserError(f"--{key} has no value: it is written --{key} VALUE")
            if below_deepspeed:
                deepspeed[key.removeprefix("ds.")] = value
            else:
                given[key] = value
        if any(word in _HELP for word in argv):
            self._parser().print_help()
            raise SystemExit(0)
        options = {key: value for key, value in given.items() if key in self.options}
        return Given(options, {key: given[key] for key in given if key not in options}, deepspeed)

    def build_sections(
        self, below: Mapping[str, Any], keys: Mapping[str, Any]
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Each section as its dataclass, and the keys that were given, shorthands written out.

        A shorthand stands for its keys at the level at which it is given, so that a variant on the command
        line wins over the recipe's norm, and a norm beside it over the variant's.

        Args:
            below: what the recipe sets, by `section.key`, as `as_type` takes it.
            keys: what wins over it.

        Raises UserError with one sentence.
        """
        types = self._types()
        merged = _merge(
            _write_out(below, self.shorthands), _write_out(keys, self.shorthands), _design_options(types)
        )
        values: dict[str, dict[str, Any]] = {name: {} for name in self.sections}
        for key, value in merged.items():
            section, _, name = key.partition(".")
            is_structured = typing.get_origin(types[key]) in (tuple, dict)
            values[section][name] = as_type(key, _structure(value) if is_structured else value, types[key])
        return {name: kind(**values[name]) for name, kind in self.sections.items()}, frozenset(merged)

    def read_recipe(self, path: Path) -> dict[str, Any]:
        """A recipe as {"section.key": value as `read_recipe_file` gives it}. Raises UserError."""
        known, flat = self._types(), {}
        for section, values in read_recipe_file(path).items():
            if section not in self.sections:
                raise unknown_key(section, self.sections, str(path))
            for name, value in values.items():
                if f"{section}.{name}" not in known:
                    raise unknown_key(f"{section}.{name}", known, str(path))
                flat[f"{section}.{name}"] = value
        return flat

    def _types(self) -> dict[str, Any]:
        """Each key of the recipe, shorthands included, with its type."""
        return {
            f"{name}.{field.name}": typing.get_type_hints(section)[field.name]
            for name, section in self.sections.items()
            for field in dataclasses.fields(section)
        } | {key: str for key in self.shorthands}

    def _parser(self) -> "ArgumentParser":
        """What prints the help text, from the docstrings of the sections."""
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(
            prog=self.prog,
            usage=self.usage,
            description=self.description,
            epilog=self.epilog,
            exit_on_error=False,
        )
        for name, option in self.options.items():
            if option.metavar is None:
                parser.add_argument(f"--{name}", action="store_true", help=option.help)
            else:
                parser.add_argument(f"--{name}", metavar=option.metavar, help=option.help)
        for word, stands_for in self.switches.items():
            parser.add_argument(word, action="store_true", help=f"short for {stands_for}")
        if self.takes_deepspeed:
            parser.add_argument(
                "--ds.path.to.key",
                metavar="VALUE",
                dest="ds_override",
                help="override any key of the DeepSpeed config, e.g. --ds.optimizer.params.lr 3e-4",
            )
        for key, shorthand in self.shorthands.items():
            parser.add_argument(f"--{key}", metavar="NAME", help=shorthand.help)
        for name, section in self.sections.items():
            parser.add_class_arguments(section, name)
            # jsonargparse's own `--section FILE`, which NormLab does not take.
            parser._option_string_actions[f"--{name}"].help = argparse.SUPPRESS
        return parser


def unknown_key(key: str, known: Iterable[str], where: str) -> UserError:
    """The sentence about a key that does not exist: where it stood, and the nearest known one."""
    nearest = nearest_name(key, known)
    return UserError(f"unknown key '{key}' in {where}; the nearest known key is '{nearest}'")


def existing_file(option: str, value: str) -> Path:
    """The path, if there is such a file. Raises UserError with the nearest name in its folder."""
    path = Path(value)
    if path.is_file():
        return path
    siblings = [str(p) for p in sorted(path.parent.glob(f"*{path.suffix}"))] if path.parent.is_dir() else []
    raise UserError(f"--{option} is '{value}', but there is no such file{did_you_mean(value, siblings)}")


def _design_options(types: Mapping[str, Any]) -> set[str]:
    """The keys whose own keys are a design's, as `model.norm_options.eps`."""
    return {key for key, kind in types.items() if typing.get_origin(kind) is dict}


def _structure(value: Any) -> Any:
    """A text that stands for a list or a mapping, as on a command line: `[a, b]`, `{eps: 1e-6}`."""
    if isinstance(value, Quoted) or not isinstance(value, str) or not value.startswith(("[", "{")):
        return value
    with suppress(UserError):  # its type refuses the text
        return parse_yaml(value)
    return value


def _write_out(values: Mapping[str, Any], shorthands: Mapping[str, Shorthand]) -> dict[str, Any]:
    """The keys with each shorthand replaced by what it stands for."""
    written: dict[str, Any] = {}
    for key, shorthand in shorthands.items():
        if key not in values:
            continue
        name = as_type(key, values[key], str)
        if name in shorthand.choices:
            written |= shorthand.choices[name]
        elif shorthand.of_file and name.endswith(".py"):
            written |= shorthand.of_file(name)
        else:
            nearest = did_you_mean(name, shorthand.choices, cutoff=0.0)
            raise UserError(
                f"{key} is {name!r}, which does not exist{nearest}; known are {', '.join(shorthand.choices)}"
            )
    return written | {key: value for key, value in values.items() if key not in shorthands}


def _merge(recipe: dict[str, Any], overrides: dict[str, Any], design_options: set[str]) -> dict[str, Any]:
    """The recipe with the overrides in.

    Options belong to the design that they were given with: another design begins without them.
    `norm_options.eps` is put into `norm_options`.
    """
    merged = recipe | overrides
    for key in design_options:
        design = key.removesuffix("_options")
        if key not in overrides and design in overrides and overrides[design] != recipe.get(design):
            merged.pop(key, None)
        single = {name: merged.pop(name) for name in list(merged) if name.startswith(f"{key}.")}
        if single:
            whole = as_type(key, _structure(merged.get(key, {})), dict[str, Any])
            merged[key] = whole | {n.removeprefix(f"{key}."): _structure(v) for n, v in single.items()}
    return merged
