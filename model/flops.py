"""What a token of training takes in floating-point operations."""

from torch import nn

from .gpt import GPT


def flops_per_token(gpt: GPT) -> int:
    """The model's FLOPs per token, forward and backward, at sequences of `block_size` tokens.

    The convention of PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): 6 per weight that
    multiplies, and 12 * n_layer * block_size * n_embd for attention, which counts the causal half that
    kernels skip. What is computed a second time, by FlashAttention or activation checkpointing, does not
    count.

    A weight that multiplies is one of two dimensions or more, but for embeddings, which are looked up: the
    tied one counts once, as the head. So a design's own projections count, whatever their module. Products of
    activations with each other (streams that are mixed) and of vectors do not count, and a matrix that is
    used twice counts once.
    """
    lookups = {id(module.weight) for module in gpt.modules() if isinstance(module, nn.Embedding)}
    lookups -= {id(module.weight) for module in gpt.modules() if isinstance(module, nn.Linear)}
    weights = sum(p.numel() for p in gpt.used_parameters() if p.dim() >= 2 and id(p) not in lookups)
    shape = gpt.config
    return 6 * weights + 12 * shape.n_layer * shape.block_size * shape.n_embd
