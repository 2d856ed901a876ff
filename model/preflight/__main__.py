"""Check a design before a run is paid for: does it keep the contract, see no future, stay finite, and learn?

    python -m model.preflight --model.variant rmsnorm --model.preset gpt2_medium
    python -m model.preflight --model.variant my_design.py --json report.json
    python -m model.preflight --model.norm rmsnorm --model.norm_options.eps 1e-6 --model.block parallel

Any field of the recipe's `model` section may follow, as --model.KEY VALUE; the size is gpt2_medium's where
nothing else is said. --quick checks what every run checks as it starts. The exit status is 0 where the design
passed, with or without warnings, 1 where it is refused, and 2 for a command that names something unknown.
"""

import dataclasses
import json
import sys
import typing
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import SAMPLE_DIR, DataConfig, open_source, open_tokenizer
from data.sample.build import is_complete

from ..catalogue import VARIANTS
from ..config import PRESETS, GPTConfig
from ..designs import designs_of_file, nearest
from ..options import as_type
from . import preflight

TOKENS = 200_000
DEFAULT_PRESET = "gpt2_medium"
_SHORTHANDS = ("preset", "variant")


def main(argv: list[str] | None = None) -> int:
    """Print the report; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(_help())
        return 0
    try:
        values, quick = _flags(argv)
        out = values.pop("json", None)
        config = config_of(values)
        report = preflight(config, tokens=None if quick else sample_tokens(), thorough=not quick)
        if out is not None:
            Path(out).write_text(json.dumps(report.to_json(), indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{report.design}, GPT-2 {config.n_layer}L {config.n_head}H {config.n_embd}d")
    print(report.table())
    return 0 if report.passed else 1


def config_of(given: dict[str, str]) -> GPTConfig:
    """The model that `model.KEY: text` describe: preset, then variant, then single fields.

    Raises ValueError for an unknown key or preset, or a value of the wrong type.
    """
    kinds = typing.get_type_hints(GPTConfig)
    known = [f"model.{field.name}" for field in dataclasses.fields(GPTConfig)]
    rest = {key.removeprefix("model."): text for key, text in given.items()}
    values: dict[str, Any] = dict(_one_of("preset", rest.pop("preset", DEFAULT_PRESET), PRESETS))
    if (name := rest.pop("variant", None)) is not None:
        values |= VARIANTS["vanilla"].design
        values |= designs_of_file(name) if name.endswith(".py") else _variant(name)
    for key, text in rest.items():
        field, _, option = key.partition(".")
        if f"model.{key}" not in given or field not in kinds or (option and not field.endswith("_options")):
            raise ValueError(f"--{key if key in given else f'model.{key}'} is unknown{_near(key, known)}")
        if option:
            values[field] = {**values.get(field, {}), option: _value(text)}
        else:
            values[field] = as_type(f"model.{field}", text, kinds[field])
    return GPTConfig(**values)


def _value(text: str) -> Any:
    """JSON where it is JSON; the option's own type decides later."""
    with suppress(json.JSONDecodeError):
        return json.loads(text)
    return text


def _near(key: str, known: list[str]) -> str:
    return nearest(f"model.{key}", [*known, *(f"model.{name}" for name in _SHORTHANDS)])


def _variant(name: str) -> dict[str, Any]:
    return _one_of("variant", name, {key: variant.design for key, variant in VARIANTS.items()})


def _one_of(key: str, name: str, known: dict[str, Any]) -> dict[str, Any]:
    if name not in known:
        raise ValueError(f"model.{key} is '{name}', which is unknown{nearest(name, known)}")
    return known[name]


def _flags(argv: list[str]) -> tuple[dict[str, str], bool]:
    """{"model.norm": "rmsnorm", "json": "report.json"} and whether --quick was given."""
    values: dict[str, str] = {}
    rest = list(argv)
    quick = False
    while rest:
        flag = rest.pop(0)
        key, equals, text = flag.removeprefix("--").partition("=")
        if flag == "--quick":
            quick = True
            continue
        if not flag.startswith("--"):
            raise ValueError(f"'{flag}' is no --model.KEY; see --help")
        if key != "json" and not key.startswith("model."):
            raise ValueError(f"--{key} is unknown; known are --model.KEY, --json, --quick and --help")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"--{key} lacks a value")
            text = rest.pop(0)
        values[key] = text
    return values, quick


def sample_tokens() -> torch.Tensor:
    """The beginning of the embedded sample as bytes: (200,000,) int64, fewer where it is shorter."""
    if not is_complete(SAMPLE_DIR):
        print("building the embedded sample, once; it takes about a minute", file=sys.stderr)
    tokenizer = open_tokenizer("bytes")
    source = open_source(DataConfig(source="sample", tokenizer="bytes"), tokenizer)
    found: list[np.ndarray] = []
    for shard in source.shards:
        for document in source.read(shard).kept:
            found.append(tokenizer.encode_document(document) if isinstance(document, str) else document)
        if sum(map(len, found)) >= TOKENS:
            break
    return torch.from_numpy(np.concatenate(found)[:TOKENS].astype(np.int64))


def _help() -> str:
    keys = [f"--model.{field.name}" for field in dataclasses.fields(GPTConfig)]
    return (
        f"{__doc__}\nsizes: {', '.join(PRESETS)}\nvariants: {', '.join(VARIANTS)}, or a file.py\n"
        f"keys: {', '.join(keys)}"
    )


if __name__ == "__main__":
    sys.exit(main())
