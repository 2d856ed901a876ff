"""Variants that differ in where the norms stand."""

from .variant import Variant

PLACEMENT_VARIANTS = {
    "rmsnorm_post": Variant(
        "Vaswani et al. 2017, arXiv:1706.03762",
        "none",
        "wants a long warm-up and a lower peak rate; diverges without at 24 layers",
        norm="rmsnorm",
        block="post",
    ),
    "rmsnorm_parallel": Variant(
        "Black et al. 2022, arXiv:2204.06745",
        "none; fewer dependent steps",
        "half the sequential depth",
        norm="rmsnorm",
        block="parallel",
    ),
    "post": Variant(
        "Vaswani et al. 2017, arXiv:1706.03762",
        "none",
        "wants a long warm-up and a peak rate of at most 3e-4 at 24 layers; the final norm is its last norm "
        "twice",
        block="post",
    ),
    "parallel": Variant(
        "Black et al. 2022, arXiv:2204.06745",
        "none; fewer dependent steps",
        "half the sequential depth: expect 0.01 to 0.02 nats more at 24 layers",
        block="parallel",
    ),
    "parallel_shared": Variant(
        "Wang & Komatsuzaki 2021 (GPT-J); Chowdhery et al. 2022 (PaLM), arXiv:2204.02311",
        "one norm fewer per block; fewer dependent steps",
        "half the sequential depth; a small loss at 8B and none at 62B in PaLM",
        block="parallel",
        block_options={"shared_norm": True},
    ),
    "sandwich": Variant(
        "Ding et al. 2021, arXiv:2105.13290; Kim et al. 2025 (Peri-LN), arXiv:2502.02732",
        "two norms more per block; as RMSNorms, the same parameters",
        "fewer spikes, and bears a higher rate; GPT-2's scaled init of the projections has no effect; "
        "Peri-LN's norm of the embedding is left out",
        norm="rmsnorm",
        block="sandwich",
    ),
    "olmo2": Variant(
        "OLMo 2025 (OLMo 2), arXiv:2501.00656",
        "queries and keys are normed too; as RMSNorms, the same parameters",
        "chosen for stability, not loss; GPT-2's scaled init of the projections has no effect",
        norm="rmsnorm",
        block="olmo2",
        qk_norm="joint",
    ),
    "subln": Variant(
        "Wang et al. 2022 (Magneto), arXiv:2210.06423",
        "two norms more per block, of n_embd and 4 n_embd",
        "brings its own init: Xavier's, with gain sqrt(ln(2 n_layer))",
        block="subln",
    ),
    "normformer": Variant(
        "Shleifer et al. 2021, arXiv:2110.09456",
        "two norms more per block, of n_embd and 4 n_embd, and a scalar per head",
        "the same perplexity in fewer steps in the paper, at 125M to 2.7B; its residual scale is left out; "
        "the head scales move by about the learning rate per step",
        block="normformer",
    ),
    "deepnorm": Variant(
        "Wang et al. 2022, arXiv:2203.00555",
        "none",
        "brings its own init; in another group's runs behind pre-norm at 130M and 250M, diverged at 350M",
        block="deepnorm",
    ),
    "b2t": Variant(
        "Takase et al. 2022, arXiv:2206.00330",
        "one addition more per block",
        "as post, but trains deeper; the evidence is the paper's own, mostly translation",
        block="b2t",
    ),
    "mix_ln": Variant(
        "Li et al. 2024, arXiv:2412.13795",
        "none",
        "in another group's runs ahead of pre-norm at 130M and 250M, diverged at 350M",
        block="mix_ln",
    ),
    "lns": Variant(
        "Sun et al. 2025, arXiv:2502.05795",
        "none",
        "0.01 to 0.03 nats below pre-norm with GPT-2's scaled init, which it drops; no help in nanochat",
        block="lns",
    ),
    "hybridnorm": Variant(
        "Zhuo et al. 2025, arXiv:2503.04598",
        "three norms of a head per block in place of one of n_embd; as RMSNorms, fewer parameters",
        "better at 1.2B in the paper; tried with 16 layers only; wants GPT-2's scaled init, which it keeps",
        norm="rmsnorm",
        block="hybridnorm",
    ),
    "keel": Variant(
        "Chen & Wei 2026, arXiv:2601.19895",
        "two norms more per block; as RMSNorms, the same parameters",
        "gains claimed for 64 to 1024 layers at raised rates, not replicated; the final norm is its last "
        "norm twice; the first sublayer is pre-norm",
        norm="rmsnorm",
        block="keel",
    ),
    "qk_norm": Variant(
        "Henry et al. 2020, arXiv:2010.04245; Wortsman et al. 2023, arXiv:2309.14322",
        "two norms of a head more per block; as RMSNorms, fewer parameters",
        "stability: within 0.005 nats at the same rate, gains once the rate is raised",
        norm="rmsnorm",
        qk_norm="head",
    ),
}
