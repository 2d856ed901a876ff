"""Variants that differ in where the norms stand."""

from .variant import Variant

PLACEMENT_VARIANTS = {
    "rmsnorm_post": Variant(
        "Ding et al. 2021, arXiv:2105.13290; Kim et al. 2025 (Peri-LN), arXiv:2502.02732",
        "two norms more per block; as RMSNorms, the same parameters",
        "a sandwich, as the protocol publishes it, and no Post-LN: that is postnorm_rms; GPT-2's scaled init "
        "of the projections has no effect; Peri-LN's norm of the embedding is left out",
        "2026-11: published at +0.0154 nats beside rmsnorm at 355M (one unpaired run each), +0.0134 at width "
        "512 elsewhere; 0.09 below pre-norm at 400M in Peri-LN's own runs",
        norm="rmsnorm",
        block="sandwich",
    ),
    "rmsnorm_parallel": Variant(
        "Wang & Komatsuzaki 2021 (GPT-J); Chowdhery et al. 2022 (PaLM), arXiv:2204.02311",
        "one norm fewer per block; fewer dependent steps",
        "one norm for both sublayers, as the protocol publishes it; with two it is parallel_two_norms_rms; "
        "half the sequential depth",
        "2026-11: published at +0.0162 nats beside rmsnorm at 355M (one unpaired run each)",
        norm="rmsnorm",
        block="parallel",
        block_options={"shared_norm": True},
    ),
    "postnorm_rms": Variant(
        "Vaswani et al. 2017, arXiv:1706.03762; Zhang & Sennrich 2019, arXiv:1910.07467",
        "none",
        "wants a long warm-up and a lower peak rate",
        "2026-11: Post-LN diverges at 250M and more at a rate of 1e-3 (arXiv:2502.05795, table 1); rows of "
        "the published table that stand near 7.5 at 124M seem to be this design",
        norm="rmsnorm",
        block="post",
    ),
    "parallel_two_norms_rms": Variant(
        "Black et al. 2022 (GPT-NeoX), arXiv:2204.06745",
        "none; fewer dependent steps",
        "half the sequential depth",
        "2026-11: no public run of it in this protocol; with one norm it is published at +0.0162 nats",
        norm="rmsnorm",
        block="parallel",
    ),
    "post": Variant(
        "Vaswani et al. 2017, arXiv:1706.03762",
        "none",
        "wants a long warm-up and a peak rate of at most 3e-4 at 24 layers; the final norm is its last norm "
        "twice",
        "2026-11: perplexity 26.95 at 130M beside pre-norm's 26.73, and about 1,400 at 250M, 350M and 1B "
        "(arXiv:2502.05795, table 1)",
        block="post",
    ),
    "parallel": Variant(
        "Black et al. 2022, arXiv:2204.06745",
        "none; fewer dependent steps",
        "half the sequential depth: expect 0.01 to 0.02 nats more at 24 layers",
        "2026-11: GPT-NeoX and Pythia train with it and publish no comparison",
        block="parallel",
    ),
    "parallel_shared": Variant(
        "Wang & Komatsuzaki 2021 (GPT-J); Chowdhery et al. 2022 (PaLM), arXiv:2204.02311",
        "one norm fewer per block; fewer dependent steps",
        "half the sequential depth",
        "2026-11: a small loss at 8B and none at 62B in PaLM; +0.0162 nats with RMSNorm at 355M in the "
        "published table",
        block="parallel",
        block_options={"shared_norm": True},
    ),
    "olmo2": Variant(
        "OLMo 2025 (OLMo 2), arXiv:2501.00656",
        "queries and keys are normed too; as RMSNorms, the same parameters",
        "GPT-2's scaled init of the projections has no effect",
        "2026-11: chosen by OLMo 2 for stability, not loss; no public run in this protocol",
        norm="rmsnorm",
        block="olmo2",
        qk_norm="joint",
    ),
    "subln": Variant(
        "Wang et al. 2022 (Magneto), arXiv:2210.06423",
        "two norms more per block, of n_embd and 4 n_embd",
        "brings its own init: Xavier's, with gain sqrt(ln(2 n_layer))",
        "2026-11: the paper's own runs only",
        block="subln",
    ),
    "normformer": Variant(
        "Shleifer et al. 2021, arXiv:2110.09456",
        "two norms more per block, of n_embd and 4 n_embd, and a scalar per head",
        "its residual scale is left out; the head scales move by about the learning rate per step",
        "2026-11: the same perplexity in fewer steps in the paper, at 125M to 2.7B; not replicated",
        block="normformer",
    ),
    "deepnorm": Variant(
        "Wang et al. 2022, arXiv:2203.00555",
        "none",
        "brings its own init",
        "2026-11: in another group's runs behind pre-norm at 130M (27.17 perplexity against 26.73) and 250M, "
        "diverged at 350M and 1B (arXiv:2502.05795)",
        block="deepnorm",
    ),
    "b2t": Variant(
        "Takase et al. 2022, arXiv:2206.00330",
        "one addition more per block",
        "as post, but trains deeper",
        "2026-11: the paper's own runs only, mostly translation",
        block="b2t",
    ),
    "mix_ln": Variant(
        "Li et al. 2024, arXiv:2412.13795",
        "none",
        "as post in its first quarter of layers",
        "2026-11: in another group's runs ahead of pre-norm at 130M and 250M, diverged at 350M and 1B "
        "(arXiv:2502.05795)",
        block="mix_ln",
    ),
    "lns": Variant(
        "Sun et al. 2025, arXiv:2502.05795",
        "none",
        "drops GPT-2's scaled init, as its authors ask",
        "2026-11: 0.01 to 0.03 nats below pre-norm with GPT-2's scaled init (arXiv:2502.05795, table 4); no "
        "help in nanochat's trial of March 2026",
        block="lns",
    ),
    "hybridnorm": Variant(
        "Zhuo et al. 2025, arXiv:2503.04598",
        "three norms of a head per block in place of one of n_embd; as RMSNorms, fewer parameters",
        "wants GPT-2's scaled init, which it keeps",
        "2026-11: better at 1.2B in the paper, with 16 layers only; not replicated",
        norm="rmsnorm",
        block="hybridnorm",
    ),
    "keel": Variant(
        "Chen & Wei 2026, arXiv:2601.19895",
        "two norms more per block; as RMSNorms, the same parameters",
        "the final norm is its last norm twice; the first sublayer is pre-norm",
        "2026-11: gains claimed for 64 to 1024 layers at raised rates; not replicated",
        norm="rmsnorm",
        block="keel",
    ),
    "qk_norm": Variant(
        "Henry et al. 2020, arXiv:2010.04245; Wortsman et al. 2023, arXiv:2309.14322",
        "two norms of a head more per block; as RMSNorms, fewer parameters",
        "for stability: gains show once the rate is raised",
        "2026-11: within 0.005 nats at the same rate (arXiv:2309.14322); part of nanochat and of the 124M "
        "speedruns",
        norm="rmsnorm",
        qk_norm="head",
    ),
}
