"""The catalogue: named combinations of norm, block and topology, each with its source, cost and caveats.

`python -m model.catalogue` prints it as a table.
"""

from ..config import GPTConfig
from .attention import ATTENTION_VARIANTS
from .norms import NORM_VARIANTS
from .placements import PLACEMENT_VARIANTS
from .residuals import RESIDUAL_VARIANTS
from .streams import STREAM_VARIANTS
from .variant import DESIGN_KEYS, Variant, design_name

__all__ = ["DESIGN_KEYS", "VARIANTS", "Variant", "design_name", "variant_name"]

VARIANTS: dict[str, Variant] = (
    NORM_VARIANTS | PLACEMENT_VARIANTS | RESIDUAL_VARIANTS | STREAM_VARIANTS | ATTENTION_VARIANTS
)
"""Every named design; `vanilla` is GPT-2 and the baseline."""


def variant_name(config: GPTConfig) -> str:
    """The name that a design's results carry: the variant's, or its parts joined by +."""
    design = {key: getattr(config, key) for key in DESIGN_KEYS}
    for name, variant in VARIANTS.items():
        if variant.design == design:
            return name
    return design_name(config)
