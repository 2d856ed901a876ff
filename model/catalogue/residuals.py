"""Variants that differ in how branches join the residual stream."""

from .variant import Variant

RESIDUAL_VARIANTS = {
    "rezero": Variant(
        "Bachlechner et al. 2020, arXiv:2003.04887",
        "no norms in the blocks; two scalars per layer",
        "starts slowly; its scalars learn at 10 times the rate",
        "2026-11: no public run on GPT-2's size was found; the paper's are of 12 to 128 layers on enwik8",
        block="rezero",
    ),
    "skipinit": Variant(
        "De & Smith 2020, arXiv:2002.10444",
        "two scalars per layer",
        "its scalars learn at 10 times the rate; at the model's rate they would hardly leave 0",
        "2026-11: behind pre-norm in the table of LayerNorm Scaling (arXiv:2502.05795), where its scalars "
        "had the model's rate: perplexity 27.41 against 26.73 at 130M, 22.29 against 21.92 at 250M",
        block="skipinit",
    ),
    "layerscale": Variant(
        "Touvron et al. 2021 (CaiT), arXiv:2103.17239",
        "2 n_embd parameters per layer; two multiplications",
        "starts at 0.1 at every depth, where CaiT has 1e-5 or less beyond 18 layers; learns at 10 times "
        "the rate",
        "2026-11: behind pre-norm in the table of LayerNorm Scaling (arXiv:2502.05795), with the model's "
        "rate: perplexity 27.93 against 26.73 at 130M, 23.45 against 21.92 at 250M; gains are for images",
        block="layerscale",
    ),
    "gated": Variant(
        "Srivastava et al. 2015, arXiv:1505.00387",
        "2 n_embd^2 parameters per layer: a sixth more, and their multiplications",
        "not equal in parameters; the start forgets an eighth of the stream at each branch",
        "2026-11: no public run on a language model of GPT-2's size was found",
        block="gated",
    ),
    "stochastic_depth": Variant(
        "Huang et al. 2016, arXiv:1603.09382",
        "none: a dropped branch is still computed",
        "a regulariser: expect a loss where no text is read twice",
        "2026-11: gains are for training over many epochs, of images and translation; no public run over "
        "one epoch was found that it helped",
        block="stochastic_depth",
    ),
    "value_residual": Variant(
        "Zhou et al. 2024, arXiv:2410.17897",
        "a scalar per layer; the first layer's values are read in every layer",
        "its scalars learn at 10 times the rate",
        "2026-11: 3.3274 to 3.3151 with m fixed at 0.5, 3.3065 with m learned, in a 124M speedrun with "
        "Muon (one run each, deviation about 0.0013); the paper has the same loss with a fifth less data",
        block="value_residual",
    ),
    "x0": Variant(
        "Jordan et al. 2024 (modded-nanogpt); Karpathy 2025 (nanochat)",
        "two scalars per layer; the embedding is read in every layer",
        "z learns at 10 times the rate",
        "2026-11: 3.3065 to 3.2972 in a 124M speedrun (one run each); in nanochat the gain shrinks with "
        "depth, from 0.0103 bits per byte at 8 layers to 0.0077 at 12, 0.0057 at 16 and 0.0039 at 20; "
        "2.2680 against 2.2763 nats of vanilla on ClimbMix (one run)",
        topology="x0",
    ),
    "denseformer": Variant(
        "Pagliardini et al. 2024, arXiv:2402.02622",
        "L (L + 3) / 2 scalars; every layer reads all earlier outputs, and training keeps them",
        "reads grow with the square of the depth",
        "2026-11: a lower perplexity at 48 layers in the paper; no gain in the ablation of Attention "
        "Residuals (1.767 against 1.766 at 436M)",
        topology="denseformer",
    ),
    "unet": Variant(
        "Jordan et al. 2024 (modded-nanogpt); Ronneberger et al. 2015, arXiv:1505.04597",
        "a scalar for every two layers; half of the layers read one stream more",
        "its weights start at 0, modded-nanogpt's at 1, and learn at 10 times the rate",
        "2026-11: part of a 124M speedrun's record of November 2024, which has since kept one skip of "
        "five (worth 0.0025 nats there, pull request 159); a single skip was slightly worse in nanochat",
        topology="unet",
    ),
    "value_embeddings": Variant(
        "Jordan et al. 2024 (modded-nanogpt); Karpathy 2025 (nanochat)",
        "a table of vocab_size n_embd parameters, and a scalar, in every other layer: 232M more at GPT-2 "
        "Small, 618M at GPT-2 Medium; looked up, not multiplied",
        "not equal in parameters: GPT-2 Small is 2.9 times as large, with the memory of its optimizer; a "
        "scalar for each table, from 1, where the sources have gates; the tables are not decayed",
        "2026-11: 'helps a lot' in nanochat, at every other layer, by steps, FLOPs and time, while all "
        "ways to share or shrink the tables failed; in a 124M speedrun since December 2024, where six "
        "tables in place of twelve went from 1530 to 1480 steps (pull request 45), and gates gave about "
        "0.003 nats (186)",
        block="value_embedding",
    ),
    "backout": Variant(
        "Jordan et al. 2024 (modded-nanogpt, pull request 140); Karpathy 2025 (nanochat)",
        "a scalar; one stream kept",
        "starts at 0, nanochat's at 0.2, and learns at 10 times the rate",
        "2026-11: in a 124M speedrun since October 2025, with other changes, 2380 to 2290 steps; no "
        "improvement in nanochat in January 2026, whose model has it since; 0.007 bits per byte in an "
        "open entry of parameter-golf (339)",
        topology="backout",
    ),
    "peri_ln": Variant(
        "Kim et al. 2025, arXiv:2502.02732",
        "two norms more per block and one for the embedding; as RMSNorms, n_embd parameters more",
        "sandwich with the paper's norm of the embedding; bears a higher rate; GPT-2's scaled init of the "
        "projections has no effect",
        "2026-11: 3.43 to 3.34 nats at 400M and 30B tokens in the paper, with fewer spikes, over a "
        "pre-norm baseline that may be under-tuned; no replication of that size was found",
        norm="rmsnorm",
        block="sandwich",
        topology="embedding_norm",
    ),
}
