"""Variants of what public runs have lately tried in norms, attention, MLP and residual branches."""

from .variant import Variant

ATTENTION_VARIANTS = {
    "seednorm": Variant(
        "Cai et al. 2025 (SeeDNorm), arXiv:2510.22777",
        "as rmsnorm, with 2 n_embd parameters and a dot product more per norm",
        "starts as RMSNorm; the paper decays alpha and beta, here no vector is decayed; built from a summary "
        "of the paper",
        evidence="2026-11: in the paper 0.022 nats below RMSNorm in a 1.3B mixture of experts, 0.013 at 7B, "
        "but 0.005 in a dense 1B; no replication found",
        norm="seednorm",
    ),
    "gated_norm": Variant(
        "Qiu et al. 2026 (GatedNorm), arXiv:2601.22966; marin's mixture of experts (experiments/grug/moe)",
        "as rmsnorm, with 32 n_embd parameters more per norm, and n_embd n_head per layer",
        "RMSNorm with a low-rank gate per feature, and a gate per head that starts open; the norms' gates "
        "start near 1/2 and halve what is normed; rank 16, where marin has 128",
        evidence="2026-11: in marin's runs at widths 512, 768 and 1024 (issue 5726) removing them costs "
        "+0.030/+0.028/+0.014 nats with growing size, beside exclusive attention and a Muon-like optimizer; "
        "a norm's gate after the MLP too fails there (issue 4993)",
        norm="gated_norm",
        block="gated_attention",
        block_options={"start": "open"},
    ),
    "gated_attention": Variant(
        "Qiu et al. 2025, arXiv:2505.06708",
        "n_embd n_head parameters per layer",
        "a gate per head, sigmoid(W x), starts near 1/2; the paper raises the rate, which gates bear",
        evidence="2026-11: a gate per head saved modded-nanogpt some 50 of 1750 steps (pull request 117) and "
        "was removed again beside exclusive attention (317); in marin's mixture of experts a model without "
        "is worse (issue 4038); 0.0005 bits per byte in parameter-golf (pull request 2005)",
        block="gated_attention",
    ),
    "gated_attention_element": Variant(
        "Qiu et al. 2025, arXiv:2505.06708",
        "n_embd^2 parameters per layer: a twelfth more, and their multiplications",
        "a gate per element, starts near 1/2; not equal in parameters",
        evidence="2026-11: the paper's own; the public trainers that took gates up mostly took one per head",
        block="gated_attention",
        block_options={"granularity": "element"},
    ),
    "xsa": Variant(
        "Zhai 2026 (exclusive self-attention), arXiv:2603.09078",
        "none in parameters; a dot product of each head's output with its token's value",
        "the first token's attention puts out 0; built from the abstract and from marin's formula",
        evidence="2026-11: better at 0.7B to 2.7B in the paper, more so in longer contexts; removing it is "
        "worse at both sizes in marin (issue 4772); with a learned share per head 0.0045 nats in "
        "modded-nanogpt (pull request 264); no significant gain in slowrun (pull request 36)",
        block="exclusive",
    ),
    "residual_warmup": Variant(
        "Chen et al. 2026 (ProRes), arXiv:2603.05369",
        "none",
        "reads the training step; all branches are closed at step 0 and open after 100 n_layer steps: at 24 "
        "layers a fifth of 12,000, as in the paper, whose T is 1000 of 100,000; set block_options.steps to a "
        "hundredth of the run",
        evidence="2026-11: in the paper 14.30 against 14.67 perplexity at 130M, 11.74 against 12.36 at 350M "
        "and 9.86 against 10.32 at 1.3B on C4; 2.2707 against vanilla's 2.2763 nats on ClimbMix in one "
        "public run",
        block="residual_warmup",
    ),
    "canon": Variant(
        "Allen-Zhu 2025 (Canon layers), arXiv:2512.17351",
        "36 n_embd parameters per layer; passes over stream, queries, keys, values and hidden layer that "
        "memory bounds",
        "a convolution crosses documents, so that data.document_mask is refused; the weights start uniform "
        "within 1/2, not at 0",
        evidence="2026-11: 1.226 against 1.301 nats on TinyStories at 4M in forgather, which is 1.3 times "
        "as slow; the paper argues from synthetic tasks; proposed for nanochat (issue 430) without a result",
        block="canon",
    ),
}
