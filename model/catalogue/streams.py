"""Variants that keep more than one stream, look back at all of them, or live on a sphere."""

from .variant import Variant

STREAM_VARIANTS = {
    "residual": Variant(
        "Xie et al. 2023 (ResiDual), arXiv:2304.14802",
        "none in parameters; a second stream",
        "as post-norm it wants a warm-up; published for translation",
        block="bare",
        topology="residual",
    ),
    "hyper_connections": Variant(
        "Zhu et al. 2024, arXiv:2409.19606",
        "24 scalars per branch; four streams to read and write",
        "the static form, which did not help in a 124M speedrun",
        topology="hyper_connections",
    ),
    "hyper_connections_dynamic": Variant(
        "Zhu et al. 2024, arXiv:2409.19606",
        "6 n_embd + 26 parameters per branch; four streams to read and write, and a norm of each",
        "0.03 nats at 1B parameters in the paper; memory for four streams",
        topology="hyper_connections",
        topology_options={"dynamic": True},
    ),
    "mhc_lite": Variant(
        "Yang & Gao 2026, arXiv:2601.05732; Xie et al. 2025 (mHC), arXiv:2512.24880",
        "128 n_embd + 35 parameters per branch; four streams to read and write, and a norm of all",
        "starts exactly as GPT-2, which need not be the paper's start; memory for four streams",
        topology="mhc_lite",
    ),
    "attention_residuals": Variant(
        "Kimi Team 2026, arXiv:2603.15031",
        "n_embd parameters per branch; each branch reads all sums of 8 branches",
        "starts as a plain mean, not as GPT-2; a repeat at 0.6B had a higher loss than its baseline",
        topology="attention_residuals",
    ),
    "ngpt": Variant(
        "Loshchilov et al. 2024, arXiv:2410.01131",
        "no norms or biases, 7 n_embd scales per layer; 30 to 60 % more time per step uncompiled",
        "GPT-2's GELU and positions, tied embeddings, one logit scale from 2; weights are normalised in the "
        "forward, not after the step; the paper's code compares with a broken baseline",
        block="ngpt",
        topology="sphere",
    ),
}
