"""Variants that differ from GPT-2 in the norm alone."""

from .variant import Variant

NORM_VARIANTS = {
    "vanilla": Variant("Radford et al. 2019; Ba et al. 2016, arXiv:1607.06450", "-", "GPT-2; the baseline"),
    "rmsnorm": Variant(
        "Zhang & Sennrich 2019, arXiv:1910.07467",
        "no bias: n_embd parameters fewer per norm",
        "the same loss as LayerNorm within noise",
        norm="rmsnorm",
    ),
    "layernorm_no_bias": Variant(
        "Ba et al. 2016, arXiv:1607.06450; as in Cohere's Command R",
        "n_embd parameters fewer per norm",
        "within 0.002 nats of LayerNorm with bias; the linear layers keep theirs",
        norm_options={"use_bias": False},
    ),
    "layernorm_no_affine": Variant(
        "Groeneveld et al. 2024 (OLMo), arXiv:2402.00838",
        "2 n_embd parameters fewer per norm",
        "OLMo 1's; OLMo 2 went on to RMSNorm",
        norm_options={"affine": False},
    ),
    "rmsnorm_one_plus": Variant(
        "Gemma Team 2024, arXiv:2403.08295",
        "as rmsnorm",
        "differs from rmsnorm only under weight decay of the gains, which are not decayed here",
        norm="rmsnorm",
        norm_options={"gain": "one_plus"},
    ),
    "rmsnorm_no_gain": Variant(
        "Zhang & Sennrich 2019, arXiv:1910.07467; as in nanochat",
        "2 n_embd parameters fewer per norm",
        "nanochat's default; the linear layer that follows can absorb a gain",
        norm="rmsnorm",
        norm_options={"gain": "none"},
    ),
    "prmsnorm": Variant(
        "Zhang & Sennrich 2019, arXiv:1910.07467",
        "as rmsnorm; fewer features in the statistic",
        "a small loss of quality, and no faster once the norm is fused",
        norm="prmsnorm",
    ),
    "crmsnorm": Variant(
        "Jiang et al. 2023, arXiv:2305.14858",
        "as rmsnorm; one more sum",
        "equals LayerNorm only for a zero-mean vector stored without its last coordinate; here all n_embd "
        "coordinates count as stored, so it is a norm of its own",
        norm="crmsnorm",
    ),
    "scalenorm": Variant(
        "Nguyen & Salazar 2019, arXiv:1910.05895",
        "one scalar per norm, not 2 n_embd parameters",
        "slightly worse than RMSNorm in language models; its scalar moves by about the learning rate per "
        "step",
        norm="scalenorm",
    ),
    "dyt": Variant(
        "Zhu et al. 2025, arXiv:2503.10622",
        "one scalar more per norm; no statistics",
        "worse and slower than RMSNorm in nanochat at 12 layers; the paper tunes alpha by site and width and "
        "scales the embedding, here all begin at 0.5; alpha moves by about the learning rate per step",
        norm="dyt",
    ),
    "derf": Variant(
        "Chen et al. 2025, arXiv:2512.10938",
        "two scalars more per norm; no statistics",
        "level with LayerNorm on GPT-2 in the paper, not replicated; its scalars move by about the learning "
        "rate per step",
        norm="derf",
    ),
}
