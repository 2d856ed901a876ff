"""Variants that keep more than one stream, look back at all of them, or live on a sphere."""

from .variant import Variant

STREAM_VARIANTS = {
    "residual": Variant(
        "Xie et al. 2023 (ResiDual), arXiv:2304.14802",
        "none in parameters; a second stream",
        "as post-norm it wants a warm-up",
        "2026-11: published for translation; no public run on a decoder was found",
        block="bare",
        topology="residual",
    ),
    "hyper_connections": Variant(
        "Zhu et al. 2024, arXiv:2409.19606",
        "24 scalars per branch; four streams to read and write",
        "the static form; its scalars learn at the model's rate, because steps in A compound",
        "2026-11: 'didn't help convergence at all' in a 124M speedrun (modded-nanogpt, pull request 230)",
        topology="hyper_connections",
    ),
    "hyper_connections_dynamic": Variant(
        "Zhu et al. 2024, arXiv:2409.19606",
        "6 n_embd + 26 parameters per branch; four streams to read and write, and a norm of each",
        "memory for four streams; nothing bounds the product of all A",
        "2026-11: about 0.03 nats at 1B parameters in the paper, dense and as a mixture of experts; in "
        "mHC's paper the product of all A grew to 3000 at 27B, with a spike of the loss, and in a repeat "
        "to 7 at 10M",
        topology="hyper_connections",
        topology_options={"dynamic": True},
    ),
    "identity_hyper_connections": Variant(
        "after Xie et al. 2025 (mHC), arXiv:2512.24880, without its mixing matrix",
        "32 n_embd + 10 parameters per branch; four streams to read and write, and a norm of all",
        "no public formula was found: mHC's read and write weights with A = I; memory for four streams",
        "2026-11: a speed-up of 1.052 and 1.020 at two sizes in public runs whose formula may differ",
        topology="identity_connections",
    ),
    "mhc": Variant(
        "Xie et al. 2025 (mHC), arXiv:2512.24880",
        "96 n_embd + 27 parameters per branch; four streams to read and write, a norm of all, and 20 "
        "iterations in small operations, slow where they are not compiled",
        "starts exactly as GPT-2, which need not be the paper's start; after 20 iterations A's columns "
        "may sum to 0.94 once its logits are large; uncompiled, 2.9 times vanilla's memory for "
        "activations at GPT-2 Medium",
        "2026-11: 0.021 nats at 27B in the paper; 0.0074 and 0.0049 at two sizes elsewhere, but 0.95 and "
        "0.96 of the baseline by time; Goedel-mHC-1B changes more than the streams, so that it shows "
        "nothing of them",
        topology="mhc",
    ),
    "mhc_lite": Variant(
        "Yang & Gao 2026, arXiv:2601.05732; Xie et al. 2025 (mHC), arXiv:2512.24880",
        "128 n_embd + 35 parameters per branch; four streams to read and write, and a norm of all",
        "starts exactly as GPT-2, which need not be the paper's start; memory for four streams",
        "2026-11: level with mHC or better in its own paper; later designs that began from it report the "
        "same or a lower loss (arXiv:2601.21579, 2603.20896); no replication was found; see mhc",
        topology="mhc_lite",
    ),
    "attention_residuals": Variant(
        "Kimi Team 2026, arXiv:2603.15031",
        "n_embd parameters per branch; each branch reads all sums of 8 branches",
        "starts as a plain mean, not as GPT-2",
        "2026-11: 0.020 to 0.026 nats at 194M to 528M in the paper; 0.0089 and 0.0216 at two sizes "
        "elsewhere, a speed-up of 1.01 and 1.19; 2.2544 against 2.2763 of vanilla on ClimbMix (one run); "
        "no gain in nanochat (pull request 646); a repeat at 0.6B had the higher training loss, 3.350 "
        "against 3.303",
        topology="attention_residuals",
    ),
    "mudd": Variant(
        "Xiao et al. 2025 (MUDDFormer), arXiv:2502.12170",
        "about 2 (n_layer + 1) (n_layer + 2) n_embd parameters; every layer reads all earlier outputs "
        "four times, and training keeps them",
        "reads grow with the square of the depth; uncompiled, 1.5 times vanilla's memory for activations "
        "at GPT-2 Medium; without the paper's wider MLPs in later layers",
        "2026-11: the loss of 1.8 to 2.4 times the compute claimed at 405M to 2.8B; no replication of the "
        "whole was found: speedruns take a trimmed form, see mudd_trimmed",
        block="multiway",
        topology="mudd",
    ),
    "mudd_trimmed": Variant(
        "Xiao et al. 2025 (MUDDFormer), arXiv:2502.12170; modded-nanogpt, pull request 259",
        "about 8 n_layer n_embd parameters; the last layer and the end read all earlier outputs, and "
        "training keeps them",
        "all four ways, where the speedrun has those of values and stream only, from a few sources",
        "2026-11: 1480 to 1415 steps in a 124M speedrun, 3.2867 to 3.2783 nats at equal steps (n = 10), "
        "2.6 s of 84 s by time; in its 350M track with a gate, 470 steps fewer (pull request 261, open)",
        block="multiway",
        topology="mudd",
        topology_options={"last": 2},
    ),
    "ngpt": Variant(
        "Loshchilov et al. 2024, arXiv:2410.01131",
        "no norms or biases, 7 n_embd scales per layer; 30 to 60 % more time per step uncompiled",
        "GPT-2's GELU and positions, tied embeddings, one logit scale from 2; weights are normalised in "
        "the forward, not after the step",
        "2026-11: 4 times fewer steps claimed at a context of 1024; its public code's baseline was broken "
        "(NVIDIA/ngpt, issue 1), and its README calls the speed-ups inflated",
        block="ngpt",
        topology="sphere",
    ),
}
