"""What the heat maps are of: diagnostics by layer and step, with titles, units and scales."""

from typing import NamedTuple


class Measure(NamedTuple):
    """One measure of diagnostics.parquet or diagnosis.parquet.

    Attributes:
        name: there.
        title: in the report.
        unit: of its values.
        parts: which parts of a layer are drawn, each in a map of its own: None for all that a run has below
            the block, "" for the block or the stream as a whole.
        by_ratio: whether colours stand for the values' logarithm.
        is_open: whether the reader sees it without opening anything.
    """

    name: str
    title: str
    unit: str
    parts: str | None = ""
    by_ratio: bool = False
    is_open: bool = False


BY_STEP = (
    Measure("resid_rms", "Residual stream", "RMS", by_ratio=True, is_open=True),
    Measure("branch_ratio", "Branch beside the stream", "|F| / |h|", parts=None, by_ratio=True, is_open=True),
    Measure("grad_norm", "Gradient of a layer's weights", "norm", by_ratio=True),
    Measure("update_ratio", "Update of a layer's weights", "|ΔW| / |W|", by_ratio=True),
    Measure("attn_entropy", "Entropy of attention", "nats", parts=None),
    Measure("attn_sink", "Attention to the first token", "share", parts=None),
    Measure("attn_logit_max", "Largest attention logit", "logit", parts=None),
    Measure("kurtosis", "Kurtosis over features", "1 to C", by_ratio=True),
    Measure("massive_max", "Largest activation", "|h|", by_ratio=True),
    Measure("massive_count", "Massive activations", "count"),
    Measure("lens_loss", "Loss of the logit lens", "nats per token"),
    Measure("layer_cos", "Cosine to the next layer", "cosine"),
)
"""Of a run's training, in the report's order."""
OF_PAIRS = (
    Measure("cka", "Linear CKA of two layers", "0 to 1"),
    Measure("angular_distance", "Angle between two layers", "units of π"),
)
"""Of a checkpoint."""
