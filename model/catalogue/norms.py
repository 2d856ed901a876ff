"""Variants that differ from GPT-2 in the norm alone."""

from .variant import Variant

NORM_VARIANTS = {
    "vanilla": Variant(
        "Radford et al. 2019; Ba et al. 2016, arXiv:1607.06450",
        "-",
        "GPT-2, the baseline; the recipe's model.bias decides whether it has biases: the protocol has none",
        "2026-11: 2.2763 nats on ClimbMix in the sibling task of the protocol (one run)",
    ),
    "rmsnorm": Variant(
        "Zhang & Sennrich 2019, arXiv:1910.07467",
        "no bias: n_embd parameters fewer per norm",
        "no mean is taken out",
        "2026-11: the same loss as LayerNorm within 0.003 nats; 2.2950 on ClimbMix in the published table "
        "(one run)",
        norm="rmsnorm",
    ),
    "layernorm_no_bias": Variant(
        "Ba et al. 2016, arXiv:1607.06450; as in Cohere's Command R",
        "n_embd parameters fewer per norm",
        "the linear layers keep their biases, unless model.bias is false",
        "2026-11: within 0.002 nats of LayerNorm with bias",
        norm_options={"use_bias": False},
    ),
    "layernorm_no_affine": Variant(
        "Groeneveld et al. 2024 (OLMo), arXiv:2402.00838",
        "2 n_embd parameters fewer per norm",
        "the linear layer that follows can absorb a gain",
        "2026-11: OLMo 1's; OLMo 2 went on to RMSNorm with a gain",
        norm_options={"affine": False},
    ),
    "rmsnorm_one_plus": Variant(
        "Gemma Team 2024, arXiv:2403.08295",
        "as rmsnorm",
        "differs from rmsnorm only under weight decay of the gains, which are not decayed here",
        "2026-11: Gemma's; no public comparison",
        norm="rmsnorm",
        norm_options={"gain": "one_plus"},
    ),
    "rmsnorm_no_gain": Variant(
        "Zhang & Sennrich 2019, arXiv:1910.07467; as in nanochat",
        "2 n_embd parameters fewer per norm",
        "the linear layer that follows can absorb a gain",
        "2026-11: nanochat's and modded-nanogpt's default; no public comparison in this protocol",
        norm="rmsnorm",
        norm_options={"gain": "none"},
    ),
    "prmsnorm": Variant(
        "Zhang & Sennrich 2019, arXiv:1910.07467",
        "as rmsnorm; fewer features in the statistic",
        "no faster once the norm is fused",
        "2026-11: a small loss of quality in the paper's own runs",
        norm="prmsnorm",
    ),
    "crmsnorm": Variant(
        "Jiang et al. 2023, arXiv:2305.14858",
        "as rmsnorm; one more sum",
        "equals LayerNorm only for a zero-mean vector stored without its last coordinate; here all n_embd "
        "coordinates count as stored, so it is a norm of its own",
        "2026-11: no loss is claimed or lost in the paper; no public run of it as a norm of its own",
        norm="crmsnorm",
    ),
    "scalenorm": Variant(
        "Nguyen & Salazar 2019, arXiv:1910.05895",
        "one scalar per norm, not 2 n_embd parameters",
        "its scalar moves by about the learning rate per step",
        "2026-11: slightly worse than RMSNorm in language models; published gains are of translation",
        norm="scalenorm",
    ),
    "dyt": Variant(
        "Zhu et al. 2025, arXiv:2503.10622",
        "one scalar more per norm; no statistics",
        "the paper tunes alpha by site and width and scales the embedding, here all begin at 0.5; alpha "
        "moves by about the learning rate per step",
        "2026-11: negative in nanochat's trial of May 2026 (12 layers, all variants and tunings, and 10 % "
        "slower); helps only where data are scarce (arXiv:2604.23434)",
        norm="dyt",
    ),
    "derf": Variant(
        "Chen et al. 2025, arXiv:2512.10938",
        "two scalars more per norm; no statistics",
        "its scalars move by about the learning rate per step",
        "2026-11: level with LayerNorm on GPT-2 in the paper; not replicated",
        norm="derf",
    ),
}
