"""Variants that differ in how branches join the residual stream."""

from .variant import Variant

RESIDUAL_VARIANTS = {
    "rezero": Variant(
        "Bachlechner et al. 2020, arXiv:2003.04887",
        "no norms in the blocks; two scalars per layer",
        "starts slowly; its scalars learn at 10 times the rate",
        block="rezero",
    ),
    "skipinit": Variant(
        "De & Smith 2020, arXiv:2002.10444",
        "two scalars per layer",
        "behind pre-norm where its scalars had the model's rate (27.4 against 26.7 perplexity at 130M); here "
        "they learn at 10 times it",
        block="skipinit",
    ),
    "layerscale": Variant(
        "Touvron et al. 2021 (CaiT), arXiv:2103.17239",
        "2 n_embd parameters per layer; two multiplications",
        "starts at 0.1 at every depth, where CaiT has 1e-5 or less beyond 18 layers; learns at 10 times the "
        "rate",
        block="layerscale",
    ),
    "gated": Variant(
        "Srivastava et al. 2015, arXiv:1505.00387",
        "2 n_embd^2 parameters per layer: a sixth more, and their multiplications",
        "not equal in parameters; the start forgets an eighth of the stream at each branch",
        block="gated",
    ),
    "stochastic_depth": Variant(
        "Huang et al. 2016, arXiv:1603.09382",
        "none: a dropped branch is still computed",
        "a regulariser: hurts where no text is read twice",
        block="stochastic_depth",
    ),
    "value_residual": Variant(
        "Zhou et al. 2024, arXiv:2410.17897",
        "a scalar per layer; the first layer's values are read in every layer",
        "0.01 to 0.02 nats in a 124M speedrun with Muon; its scalars learn at 10 times the rate",
        block="value_residual",
    ),
    "x0": Variant(
        "Jordan et al. 2024 (modded-nanogpt); Karpathy 2025 (nanochat)",
        "two scalars per layer; the embedding is read in every layer",
        "the gain shrinks with depth in nanochat; z learns at 10 times the rate",
        topology="x0",
    ),
    "denseformer": Variant(
        "Pagliardini et al. 2024, arXiv:2402.02622",
        "L (L + 3) / 2 scalars; every layer reads all earlier outputs, and training keeps them",
        "no gain in the ablation of Attention Residuals; reads grow with the square of the depth",
        topology="denseformer",
    ),
    "unet": Variant(
        "Jordan et al. 2024 (modded-nanogpt); Ronneberger et al. 2015, arXiv:1505.04597",
        "a scalar for every two layers; half of the layers read one stream more",
        "its weights start at 0, modded-nanogpt's at 1, and learn at 10 times the rate; slightly worse in "
        "nanochat",
        topology="unet",
    ),
}
