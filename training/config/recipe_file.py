"""YAML as it is written: scalars stay texts until a key's type is known, and a key stands once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from model.errors import UserError
from model.values import Quoted, plain_value, shown

RENAMED_KEYS = {"schedule.warmup_steps": "schedule.warmup"}
"""A recipe's keys that had other names, by these: recipes and run folders from before still mean the same."""
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML in which `010`, `12:30`, `no` and `2026-01-31` are the texts that they look like.

    YAML 1.1 makes 8, 750, false and a date of them. Here a plain scalar is a str, and one in quotes or in a
    block is Quoted: the type of its key decides later. `<<` still merges a mapping into another.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As written, before anything is merged into it. Raises UserError for a key that stands twice."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise UserError(
                        f"holds the key '{key.value}' twice, in line {lines[key.value]} and in line {line}"
                    )
                lines[key.value] = line
        return node

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """A scalar; an empty plain one is a null."""
        text = str(self.construct_scalar(node))
        return Quoted(text) if node.style else text or "null"


_Loader.yaml_implicit_resolvers = {
    "<": [one for one in yaml.SafeLoader.yaml_implicit_resolvers["<"] if one[0] == _MERGE]
}
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


class _Dumper(yaml.SafeDumper):
    """YAML that reads back the same, here and in other programs."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """In quotes where it would be something else without; PyYAML knows what is in YAML 1.1."""
        style = None if plain_value(text) == text else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


def read_recipe_file(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a recipe: key -> text, as it is written, or a list or mapping of texts.

    A text in quotes is `Quoted`. Keys have the names of today.

    Raises UserError where the file is no YAML, holds no sections, or a key twice.
    """
    try:
        recipe = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    if recipe in (None, "null"):  # an empty file
        recipe = {}
    if not isinstance(recipe, Mapping):
        raise UserError(f"{path} holds no sections: it must be a mapping: 'model: {{n_layer: 12}}'")
    for section, values in recipe.items():
        if not isinstance(values, Mapping):
            given = "empty" if values == "null" else shown(values)
            raise UserError(f"{path}: section '{section}' is {given}, but it must be a mapping")
    return {section: _by_their_names_now(path, section, values) for section, values in recipe.items()}


def _by_their_names_now(path: Path, section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        name = RENAMED_KEYS.get(f"{section}.{key}", f"{section}.{key}").removeprefix(f"{section}.")
        if name != key and name in values:
            raise UserError(f"{path} sets {section}.{name} twice, once as {section}.{key}, its older name")
        renamed[name] = value
    return renamed


def parse_yaml(text: str) -> Any:
    """YAML with its scalars as they are written.

    Raises UserError, whose sentence lacks its subject, for what is no YAML, and for a key that stands twice.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"is not valid YAML: {' '.join(str(error).split())}") from error


def to_yaml(recipe: Mapping[str, Mapping[str, Any]]) -> str:
    """A recipe as YAML, which `read_recipe_file` reads back the same."""
    return yaml.dump(recipe, Dumper=_Dumper, sort_keys=False)
