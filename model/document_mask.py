"""Attention that keeps the documents of a sequence apart: through SDPA, or FlexAttention on a GPU."""

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .shared_contexts import SharedContexts

DocumentMask = torch.Tensor | BlockMask | SharedContexts


def document_mask(documents: torch.Tensor, dropout: bool) -> DocumentMask:
    """The mask of `documents` (B, T) on their device; `dropout` says whether attention will have any.

    FlexAttention skips the tiles in which no position sees another, but it has no dropout.
    """
    return _block_mask(documents) if documents.is_cuda and not dropout else dense_mask(documents)


def dense_mask(documents: torch.Tensor) -> torch.Tensor:
    """(B, T) ids -> (B, 1, T, T), true where the query's position sees the key's."""
    return (documents[:, None, :, None] == documents[:, None, None, :]).tril()


def block_mask(documents: torch.Tensor) -> BlockMask:
    """What `dense_mask` says, in FlexAttention's form."""

    def sees(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & (documents[b, q] == documents[b, k])

    B, T = documents.shape
    return create_block_mask(sees, B, None, T, T, device=documents.device)


# Uncompiled, the one holds all scores in memory and the other goes over all pairs of positions several times.
# Each shape is compiled once, and a run has few; another batch's mask compiles nothing.
_is_compiled = torch.cuda.is_available()
_flex_attention = torch.compile(flex_attention, dynamic=False) if _is_compiled else flex_attention
_block_mask = torch.compile(block_mask, dynamic=False) if _is_compiled else block_mask


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: DocumentMask | None, dropout: float
) -> torch.Tensor:
    """Three (B, n_head, T, head size) -> one; without a mask a position sees itself and all earlier ones."""
    if isinstance(mask, BlockMask):
        return _flex_attention(q, k, v, block_mask=mask)
    if isinstance(mask, SharedContexts):
        return mask.attend(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)
