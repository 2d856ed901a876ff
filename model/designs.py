"""From a design's name to its class: registered names, `package.module:Class`, `path/to/file.py:Class`."""

import dataclasses
import importlib
import inspect
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .arguments import built_for, check_constructor, from_config
from .attention import ATTENTION_BLOCKS
from .blocks import BLOCKS
from .canon import CANON_BLOCKS
from .config import BlockConfig, GPTConfig, TopologyConfig
from .dynamic_norms import DYNAMIC_NORMS
from .errors import UserError, did_you_mean, raised_at
from .hyper_connections import HYPER_CONNECTIONS
from .layers import MLP, CausalSelfAttention
from .mudd import MUDD_BLOCKS, MUDD_TOPOLOGIES
from .norms import NORMS
from .options import with_options
from .placements import PLACEMENTS
from .plug_points import PlugPoint, existing_file, split_name
from .plugin import classes_in, in_words
from .residuals import RESIDUALS
from .siblings import load, parts_of
from .sphere import SPHERE_BLOCKS, SPHERE_TOPOLOGIES
from .streams import STREAMS
from .topologies import TOPOLOGIES
from .training_step import TrainingStep
from .warmup import WARMUP_BLOCKS

REGISTERED: dict[PlugPoint, Mapping[str, type[nn.Module]]] = {
    "norm": NORMS | DYNAMIC_NORMS,
    "block": BLOCKS
    | PLACEMENTS
    | RESIDUALS
    | SPHERE_BLOCKS
    | MUDD_BLOCKS
    | ATTENTION_BLOCKS
    | CANON_BLOCKS
    | WARMUP_BLOCKS,
    "topology": TOPOLOGIES | STREAMS | HYPER_CONNECTIONS | SPHERE_TOPOLOGIES | MUDD_TOPOLOGIES,
}
_GIVEN = {"norm": 2, "block": 1, "topology": 2}  # (ndim, bias), (config), (config, blocks)


@dataclass(frozen=True)
class Designs:
    """The classes plugged into a model, their options set."""

    norm: type[nn.Module]
    block: type[nn.Module]
    topology: type[nn.Module]
    config_defaults: Mapping[str, Any]
    """Fields that a block's file adds to nanoGPT's config, with their defaults."""
    training_step: TrainingStep = field(default_factory=TrainingStep)
    """What blocks and topology are given."""

    def blocks(self, config: GPTConfig) -> list[nn.Module]:
        """The `n_layer` blocks. Raises UserError where the design's own code fails."""
        return [self.one_block(config, each) for each in self.block_configs(config)]

    def block_configs(self, config: GPTConfig) -> list[BlockConfig]:
        """What the blocks are given, in order of depth."""
        shape = self._shape(config)
        kind: type = BlockConfig
        added = {name: v for name, v in self.config_defaults.items() if name not in shape}
        if added:
            fields = [(name, type(value), dataclasses.field(default=value)) for name, value in added.items()]
            kind = dataclasses.make_dataclass("BlockConfig", fields, bases=(BlockConfig,), frozen=True)
        return [kind(**shape, layer_idx=i) for i in range(config.n_layer)]

    def one_block(self, config: GPTConfig, given: BlockConfig) -> nn.Module:
        """The block of one of `block_configs`. Raises UserError where the design's own code fails."""
        return _build("block", config, self.block, given, given)

    def joined(self, config: GPTConfig, blocks: Sequence[nn.Module]) -> nn.Module:
        """The topology over the blocks. Raises UserError where the design's own code fails."""
        given = TopologyConfig(**self._shape(config))
        return _build("topology", config, self.topology, given, given, blocks)

    def final_norm(self, config: GPTConfig) -> nn.Module:
        """What stands before the head: the norm, unless block or topology has its own `final_norm`."""
        for design in (self.topology, self.block):
            if not getattr(design, "final_norm", True):
                return nn.Identity()
        given = TopologyConfig(**self._shape(config))
        return _build("norm", config, self.norm, given, config.n_embd, bias=config.bias)

    def one_norm(self, config: GPTConfig, ndim: int) -> nn.Module:
        """A norm of this width as the first block has it."""
        with built_for(self.block_configs(config)[0]):
            return self.norm(ndim, bias=config.bias)

    def _shape(self, config: GPTConfig) -> dict[str, Any]:
        ours = {"norm": self.norm, "training_step": self.training_step}
        names = [given.name for given in dataclasses.fields(TopologyConfig) if given.name not in ours]
        return {name: getattr(config, name) for name in names} | ours


def find_designs(config: GPTConfig) -> Designs:
    """The classes that a config names. Raises UserError for one that does not exist or an option it lacks.

    A block or topology from a file may use nanoGPT's names `LayerNorm` (here: the chosen norm),
    `CausalSelfAttention`, `MLP` and `GPTConfig` without defining them.
    """
    ours: dict[str, type] = {
        "LayerNorm": NORMS["layernorm"],
        "CausalSelfAttention": CausalSelfAttention,
        "MLP": MLP,
        "GPTConfig": GPTConfig,
    }
    norm, _ = _find("norm", config, ours)
    ours["LayerNorm"] = norm
    block, defaults = _find("block", config, ours)
    topology, _ = _find("topology", config, ours)
    return Designs(norm, block, topology, defaults)


def _find(
    plug: PlugPoint, config: GPTConfig, ours: Mapping[str, type]
) -> tuple[type[nn.Module], Mapping[str, Any]]:
    name, key = getattr(config, plug), f"model.{plug}"
    defaults: Mapping[str, Any] = {}
    design = REGISTERED[plug].get(name)
    if design is None:
        design, defaults = _load(key, name, REGISTERED[plug], ours)
    options = getattr(config, f"{plug}_options")
    known = {given.name for given in dataclasses.fields(BlockConfig)} | defaults.keys()
    check_constructor(plug, name, design, options, known)
    filled = from_config(design, _GIVEN[plug], frozenset(defaults))
    return with_options(f"{key}_options", filled, _GIVEN[plug], options), defaults


def _load(
    key: str, name: str, known: Collection[str], ours: Mapping[str, type]
) -> tuple[type[nn.Module], Mapping[str, Any]]:
    place = split_name(name)
    if place is None:
        raise UserError(
            f"{key} is '{name}', which is neither a registered name nor module:Class nor file.py:Class"
            + _known_names(name, known)
        )
    where, class_name = place
    defaults: Mapping[str, Any] = {}
    if where.endswith(".py"):
        path = existing_file(f"{key} is '{name}'", where)
        classes = list(classes_in(path))
        if class_name not in classes:
            raise UserError(
                f"{key} is '{name}', but {where} has no class named '{class_name}'"
                + _known_names(class_name, classes)
            )
        parts = parts_of(path, [class_name], ours)
        design = getattr(load(parts, ours), class_name)
        defaults = {name: v for part in reversed(parts) for name, v in part.config_defaults.items()}
    else:
        try:
            module = importlib.import_module(where, __package__)  # `.design_block` in an exported folder
        except ImportError as error:
            raise UserError(f"{key} is '{name}', but importing {where} failed: {error}") from error
        design = getattr(module, class_name, None)
        if not isinstance(design, type):
            classes = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, nn.Module)]
            raise UserError(
                f"{key} is '{name}', but {where} has no nn.Module named '{class_name}'"
                + _known_names(class_name, classes)
            )
        defaults = _config_defaults(module)
    if not (isinstance(design, type) and issubclass(design, nn.Module)):
        raise UserError(f"{key} is '{name}', which is no nn.Module but {design!r}")
    return design, defaults


def _known_names(name: str, known: Collection[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, and all where they are not many."""
    listed = f"; known are {', '.join(known)}" if len(known) <= 60 else ""  # torch.nn has 150 classes
    return did_you_mean(name, known, 0.5) + listed


def _config_defaults(module: types.ModuleType) -> dict[str, Any]:
    """The fields, with defaults, of a `GPTConfig` that a module defines itself."""
    kind = vars(module).get("GPTConfig")
    if not isinstance(kind, type) or kind.__module__ != module.__name__:
        return {}
    return {name: getattr(kind, name) for name in inspect.get_annotations(kind) if hasattr(kind, name)}


def _build(
    plug: str, config: GPTConfig, design: type[nn.Module], given: TopologyConfig, *args: Any, **kwargs: Any
) -> nn.Module:
    """A module of a design; what its constructor builds in turn is for `given` too."""
    try:
        with built_for(given):
            return design(*args, **kwargs)
    except Exception as error:
        problem = str(error) if isinstance(error, ValueError) else in_words(error)
        raise UserError(
            f"model.{plug} '{getattr(config, plug)}' cannot be built: {problem}{raised_at(error)}"
        ) from error
