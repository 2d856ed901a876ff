"""From a design's name to its class: registered names, `package.module:Class`, `path/to/file.py:Class`."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from .blocks import BLOCKS
from .config import GPTConfig
from .layers import MLP, CausalSelfAttention
from .norms import NORMS

VARIANTS: dict[str, dict[str, str]] = {
    "vanilla": {"norm": "layernorm", "block": "pre"},
    "rmsnorm": {"norm": "rmsnorm", "block": "pre"},
    "rmsnorm_post": {"norm": "rmsnorm", "block": "post"},
    "rmsnorm_parallel": {"norm": "rmsnorm", "block": "parallel"},
}
"""Named combinations of a norm and a block; `vanilla` is GPT-2 and the baseline."""


def variant_name(norm: str, block: str) -> str:
    """The name that results of this combination carry: the variant's, or `norm+block` where it has none."""
    for name, design in VARIANTS.items():
        if design == {"norm": norm, "block": block}:
            return name
    return f"{norm}+{block}"


def nearest(name: str, known: Mapping[str, object]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, and all of them."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    guess = f" (did you mean '{close[0]}'?)" if close else ""
    return f"{guess}; known are {', '.join(known)}" if len(known) <= 40 else guess


def norm_class(name: str) -> type[nn.Module]:
    """The class of `model.norm`. Raises ValueError where there is none."""
    return _load("model.norm", name, NORMS, {})


def block_class(name: str, norm: type[nn.Module]) -> type[nn.Module]:
    """The class of `model.block`. Raises ValueError where there is none.

    A block from a file may use nanoGPT's names `LayerNorm` (here: the chosen norm), `CausalSelfAttention`,
    `MLP` and `GPTConfig` without defining them.
    """
    ours = {"LayerNorm": norm, "CausalSelfAttention": CausalSelfAttention, "MLP": MLP, "GPTConfig": GPTConfig}
    return _load("model.block", name, BLOCKS, ours)


def _load(key: str, name: str, known: dict[str, type[nn.Module]], names: dict[str, type]) -> type[nn.Module]:
    if name in known:
        return known[name]
    where, colon, class_name = name.rpartition(":")
    if not colon:
        raise ValueError(
            f"{key} is '{name}', which is neither a registered name nor module:Class nor file.py:Class"
            + nearest(name, known)
        )
    if where.endswith(".py"):
        path = Path(where).resolve()
        if not path.is_file():
            raise ValueError(f"{key} is '{name}', but there is no file {path}")
        # One module a set of names: two norms may be plugged into the same block file in one process.
        module_name = f"normlab_plugin_{path.stem}_{abs(hash((path, tuple(names.values()))))}"
        if module_name not in sys.modules:
            spec = importlib.util.spec_from_file_location(module_name, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            vars(module).update(names)
            sys.modules[module_name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[module_name]
                raise
        module = sys.modules[module_name]
    else:
        try:
            module = importlib.import_module(where)
        except (ModuleNotFoundError, TypeError) as error:  # TypeError: a relative name
            raise ValueError(f"{key} is '{name}', but importing {where} failed: {error}") from error
    design = getattr(module, class_name, None)
    if not (isinstance(design, type) and issubclass(design, nn.Module)):
        classes = {n: c for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, nn.Module)}
        raise ValueError(
            f"{key} is '{name}', but {where} has no nn.Module named '{class_name}'"
            + nearest(class_name, classes)
        )
    return design
