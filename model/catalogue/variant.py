"""`Variant`, and the name that is put together for a design that is no variant."""

from dataclasses import dataclass, field
from typing import Any

from ..config import GPTConfig, QKNorm

DESIGN_KEYS = (
    "norm",
    "norm_options",
    "block",
    "block_options",
    "topology",
    "topology_options",
    "qk_norm",
)
"""The fields of `GPTConfig` that a variant sets."""


@dataclass(frozen=True)
class Variant:
    """A named combination of norm, block and topology.

    Attributes:
        source: the paper, with its arXiv id.
        cost: beside `vanilla`: parameters, and what is read, written or computed more.
        caveats: what a fair comparison must know.
        evidence: what public runs found, failed replications too, with the month in which it was looked up:
            `2026-11: ...`.
    """

    source: str
    cost: str
    caveats: str
    evidence: str = ""
    norm: str = "layernorm"
    norm_options: dict[str, Any] = field(default_factory=dict)
    block: str = "pre"
    block_options: dict[str, Any] = field(default_factory=dict)
    topology: str = "chain"
    topology_options: dict[str, Any] = field(default_factory=dict)
    qk_norm: QKNorm = "none"

    @property
    def design(self) -> dict[str, Any]:
        """What the variant sets, by `GPTConfig`'s fields."""
        return {key: getattr(self, key) for key in DESIGN_KEYS}


def design_name(design: GPTConfig | Variant) -> str:
    """Norm, block, and topology where it is not GPT-2's, with their options."""
    parts = [
        _short(getattr(design, plug)) + _in_brackets(getattr(design, f"{plug}_options"))
        for plug in ("norm", "block", "topology")
        if plug != "topology" or design.topology != "chain" or design.topology_options
    ]
    parts += [f"qk_norm={design.qk_norm}"] if design.qk_norm != "none" else []
    return "+".join(dict.fromkeys(parts))


def _short(name: str) -> str:
    """A design from a candidate file by the file's name alone."""
    file, _, class_name = name.rpartition(":")
    stem = file.rpartition("/")[2].removesuffix(".py")
    if not file.endswith(".py"):
        return name
    return stem if class_name in ("LayerNorm", "Block", "Topology") else f"{stem}:{class_name}"


def _in_brackets(options: dict[str, Any]) -> str:
    return f"({','.join(f'{name}={value}' for name, value in options.items())})" if options else ""
