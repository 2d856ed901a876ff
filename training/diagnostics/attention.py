"""What each softmax of attention looks at, seen where a model calls `scaled_dot_product_attention`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

SINK_BEGINS = 64
"""From which position on attention to the first token counts as a sink; a half of shorter sequences."""
SINK_HEAD = 0.3
"""A head is a sink where it gives the first token more than that on average."""


class WatchAttention(TorchFunctionMode):
    """Tells `seen` what statistics each call of `scaled_dot_product_attention` has, whoever calls it.

    Args:
        seen: is told the statistics; of a call that is no self-attention over a sequence, None.
    """

    def __init__(self, seen: Callable[[Mapping[str, float] | None], None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with torch.no_grad():
                self._seen(_of_call(*args, **kwargs))
        return func(*args, **kwargs)


def _of_call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> dict[str, float] | None:
    if query.dim() != 4 or query.shape[-2] != key.shape[-2]:
        return None
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query.float() @ key.float().transpose(-1, -2)
    logits = logits * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    visible = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device)
    if is_causal:
        visible = visible.tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        visible = visible & attn_mask
    elif attn_mask is not None:
        visible = visible & (attn_mask > -math.inf)
        logits = logits + attn_mask
    return statistics(logits, visible.expand_as(logits))


def statistics(logits: torch.Tensor, visible: torch.Tensor) -> dict[str, float]:
    """Of the softmax over what each position sees, by name.

    Args:
        logits: (B, n_head, T, T), scaled.
        visible: of the same shape, true where the query's position sees the key's.
    """
    logits = logits.masked_fill(~visible, -math.inf)
    weights = logits.softmax(dim=-1)
    # torch.special.entr has 0 where a weight is 0
    entropy = torch.special.entr(weights).sum(-1).double()  # (B, n_head, T)
    keys = visible.sum(-1)
    chooses = keys > 1
    share = (entropy / keys.double().log())[chooses]
    first = visible.int().argmax(-1, keepdim=True)  # of its document
    T = logits.shape[-1]
    later = min(SINK_BEGINS, T // 2)
    sink = weights.gather(-1, first)[..., later:, 0].double().mean(dim=(0, 2))  # (n_head,)
    return {
        "attn_entropy": float(entropy.mean()),
        "attn_entropy_min": float(entropy.mean(dim=(0, 2)).min()),
        "attn_entropy_share": float(share.mean()),
        "attn_logit_max": float(logits.max()),
        "attn_sink": float(sink.mean()),
        "attn_sink_heads": float(((sink > SINK_HEAD) + 0 * sink).mean()),  # NaN where a head is
    }
