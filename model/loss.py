"""The head and its cross-entropy without the logits: a chunk of rows at a time, gradients on the way.

GPT-2's logits are 50,304 wide: at micro-batch 96 x 1024 they alone would take 19.8 GB in fp32.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from .config import IGNORED_TARGET

CHUNK = {"cpu": 512, "cuda": 4096}
"""Rows whose logits are in memory at once, by device: 103 MB in fp32 on a CPU, 0.4 GB in bf16 on a GPU."""
CHUNK_IN_PLACE = {"cpu": 2048, "cuda": 8192}
"""The same where their gradient takes the place of bf16 logits: 0.2 GB on a CPU, 0.8 GB on a GPU."""
SLICE = 8192
"""Rows of the (V, C) gradient that are converted at once: a CPU makes a copy of them on the way."""

_DYNAMIC = not torch.cuda.is_available()
"""Whether one compiled function serves all shapes. On GPUs it would load 2 bytes at a time."""
_WIDE = (torch.float32, torch.float64)

Reduction = Literal["mean", "none"]


class Head(nn.Linear):
    """Logits without targets; with them their loss, for which no more than a chunk of logits ever exists.

    It has no bias, and its weight may be tied.

    Args:
        n_embd: width of what it reads.
        vocab_size: number of logits.
        z_loss: see `linear_cross_entropy`.
        softcap: logits are `softcapped` at it; 0 for as they are.
    """

    def __init__(self, n_embd: int, vocab_size: int, z_loss: float = 0.0, softcap: float = 0.0) -> None:
        super().__init__(n_embd, vocab_size, bias=False)
        self.z_loss, self.softcap = z_loss, softcap

    def rows(self) -> torch.Tensor:
        """What the logits are products with: (vocab_size, C)."""
        return self.weight

    def forward(
        self,
        input: torch.Tensor,
        targets: torch.Tensor | None = None,
        reduction: Reduction = "mean",
        compiled: bool = False,
    ) -> torch.Tensor:
        """(..., C) -> logits (..., vocab_size), or what `linear_cross_entropy` makes of targets (...)."""
        if targets is None:
            logits = F.linear(input, self.rows())
            return softcapped(_widened(logits), self.softcap).type_as(logits) if self.softcap else logits
        losses = linear_cross_entropy(
            input.flatten(0, -2),
            self.rows(),
            targets.flatten(),
            reduction,
            self.z_loss,
            self.softcap,
            compiled,
        )
        return losses if reduction == "mean" else losses.view_as(targets)


def softcapped(logits: torch.Tensor, softcap: float) -> torch.Tensor:
    """softcap * tanh(logits / softcap), of any shape: Gemma 2, arXiv:2408.00118."""
    return softcap * torch.tanh(logits / softcap)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    reduction: Reduction,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    compiled: bool = False,
) -> torch.Tensor:
    """The cross-entropy of hidden (N, C) times weight (V, C) with targets (N,), in nats, fp32.

    torch's own chunked operator takes it where the products are in fp32. For bf16 inputs that operator rounds
    the loss to bf16, in steps of 0.06 near 11, so where bf16 products are fast they are chunked here. So are
    all where torch has no such operator, which came with torch 2.13, or where it lacks what is asked for.

    Args:
        hidden: what the head reads.
        weight: the head's rows.
        targets: token ids, or `IGNORED_TARGET`.
        reduction: `mean` over the targets that count, or `none` for (N,) losses, 0 where ignored.
        z_loss: `mean` has the gradient of the cross-entropy plus z_loss * mean(logsumexp(logits)^2) (PaLM,
            arXiv:2204.02311). Its value is the cross-entropy alone, which is what runs are compared by.
        softcap: the logits are `softcapped` at it; 0 for as they are.
        compiled: whether what `none` makes of the logits is compiled; `mean` always is, in bf16.
    """
    products = dtype_of_products(hidden)
    kind = "cpu" if hidden.device.type == "cpu" else "cuda"
    altered = bool(softcap) or (bool(z_loss) and reduction == "mean")
    if products in _WIDE and not altered and hasattr(F, "linear_cross_entropy"):
        options = nn.LinearCrossEntropyOptions(
            acc_policy="compact", chunking_method=None, batch_chunk_size=CHUNK[kind]
        )
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear_cross_entropy(
                hidden.to(products),
                weight.to(products),
                targets,
                reduction=reduction,
                ignore_index=IGNORED_TARGET,
                options=options,
            )
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, rows = hidden.to(products), weight.to(products)
        if reduction == "mean":
            # Uncompiled, as it is there, it makes copies in fp32.
            most = (CHUNK if products in _WIDE else CHUNK_IN_PLACE)[kind]
            return _MeanLoss.apply(hidden, rows, targets, most, *((z_loss, softcap) if altered else ()))
        of_chunk = _compiled(_losses) if compiled and products not in _WIDE else _losses
        parts = zip(hidden.split(CHUNK[kind]), targets.split(CHUNK[kind]), strict=True)
        return torch.cat([of_chunk(x @ rows.T, y, softcap) for x, y in parts])


def _losses(logits: torch.Tensor, targets: torch.Tensor, softcap: float) -> torch.Tensor:
    """(rows, V), (rows,) -> (rows,) losses in nats, fp32, 0 where the target is ignored."""
    logits = softcapped(_widened(logits), softcap) if softcap else _widened(logits)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED_TARGET, reduction="none")


def dtype_of_products(hidden: torch.Tensor) -> torch.dtype:
    """What the head multiplies in: the model's dtype or autocast's, but fp32 on CPUs without bf16."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if kind == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.promote_types(dtype, torch.float32)
    return dtype


def _widened(x: torch.Tensor) -> torch.Tensor:
    """x in fp32, or in fp64 where it is that."""
    return x if x.dtype in _WIDE else x.float()


class _MeanLoss(torch.autograd.Function):
    """The mean loss of (N, C), (V, C), (N,), whose gradients are ready before backward asks for them.

    `z_loss` is in the gradients and not in the value: see `linear_cross_entropy`.

    Logits and their gradient are in the inputs' dtype, as without chunks; all sums are in fp32, or in fp64
    where the inputs are. A factor of the loss that is no power of two rounds the gradients once more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        rows: torch.Tensor,
        targets: torch.Tensor,
        most_rows: int,
        z_loss: float = 0.0,
        softcap: float = 0.0,
    ) -> torch.Tensor:
        count = (targets != IGNORED_TARGET).sum()
        wide = hidden.dtype if hidden.dtype in _WIDE else torch.float32
        given = (z_loss, softcap) if z_loss or softcap else ()
        to_gradient: Callable[..., None] = _to_altered_gradient if given else _to_gradient
        statistics = _statistics
        if hidden.dtype not in _WIDE:
            statistics, to_gradient = _compiled(statistics), _compiled(to_gradient)
        loss = hidden.new_zeros((), dtype=wide)
        grad_hidden = torch.empty_like(hidden) if any(ctx.needs_input_grad) else None
        grad_rows: torch.Tensor | None = None
        chunk = even_chunk(len(hidden), most_rows)
        for start in range(0, len(hidden), chunk):
            x, y = hidden[start : start + chunk], targets[start : start + chunk]
            logits = x @ rows.T
            log_sum_exp, of_chunk = statistics(logits, y, *given[1:])
            loss += of_chunk / count
            if grad_hidden is not None:
                to_gradient(logits, log_sum_exp, y, count, *given)  # what were logits is their gradient now
                torch.mm(logits, rows, out=grad_hidden[start : start + chunk])
                alone = chunk >= len(hidden)
                grad_rows = logits.T @ x if alone else _plus_product(grad_rows, logits.T, x)
            del logits  # before the next ones are made
        if grad_rows is not None:
            ctx.save_for_backward(grad_hidden, grad_rows)
            ctx.dtype = rows.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_rows = ctx.saved_tensors
        (scale,) = grad_loss
        grads = (_scaled(gradient, scale, ctx.dtype) for gradient in (grad_hidden, grad_rows))
        return *grads, None, None, None, None


def even_chunk(rows: int, most: int) -> int:
    """Rows per chunk, at most `most`, so that the last is like the others: each shape is compiled anew."""
    return -(-rows // max(1, -(-rows // most)))


def _plus_product(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """total + a b in fp32 or wider, in place. A CPU rounds bf16 products to bf16 on the way."""
    if a.is_cuda and a.dtype not in _WIDE:
        if total is None:
            return torch.mm(a, b, out_dtype=torch.float32)
        return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    product = a @ b
    if total is None:
        return _widened(product)
    for of_total, of_product in zip(total.split(SLICE), product.split(SLICE), strict=True):
        of_total += of_product
    return total


def _scaled(gradient: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """gradient (rows, C) times scale (), computed in fp32 or wider and given in `dtype`."""
    if gradient.dtype == dtype and not gradient.is_cuda and scale == 1:  # a GPU would have to be waited for
        return gradient
    scaled = torch.empty_like(gradient, dtype=dtype)
    for into, of in zip(scaled.split(SLICE), gradient.split(SLICE), strict=True):
        torch.mul(of, scale.view(1), out=into)
    return scaled


def _statistics(
    logits: torch.Tensor, targets: torch.Tensor, softcap: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, V), (rows,) -> the logits' log-sum-exp (rows, 1) and the sum of the losses (), both in fp32."""
    wide = softcapped(_widened(logits), softcap) if softcap else _widened(logits)
    log_sum_exp = wide.logsumexp(dim=-1, keepdim=True)
    losses = (log_sum_exp - wide.gather(1, targets.clamp(min=0)[:, None]))[:, 0]
    return log_sum_exp, torch.where(targets != IGNORED_TARGET, losses, 0.0).sum()


def _to_gradient(
    logits: torch.Tensor, log_sum_exp: torch.Tensor, targets: torch.Tensor, count: torch.Tensor
) -> None:
    """Put the gradient of their share of the mean loss, over `count` targets, in the place of the logits."""
    wide = _widened(logits)
    hit = torch.arange(logits.shape[1], device=logits.device) == targets.clamp(min=0)[:, None]
    share = (targets != IGNORED_TARGET).to(wide.dtype) / count
    logits.copy_(((wide - log_sum_exp).exp() - hit.to(wide.dtype)) * share[:, None])


def _to_altered_gradient(
    logits: torch.Tensor,
    log_sum_exp: torch.Tensor,
    targets: torch.Tensor,
    count: torch.Tensor,
    z_loss: float,
    softcap: float,
) -> None:
    """`_to_gradient` of logits that are softcapped where `softcap` is not 0, with z_loss's gradient added."""
    wide = _widened(logits)
    capped = softcapped(wide, softcap) if softcap else wide
    hit = torch.arange(logits.shape[1], device=logits.device) == targets.clamp(min=0)[:, None]
    gradient = (capped - log_sum_exp).exp() * (1 + 2 * z_loss * log_sum_exp) - hit.to(wide.dtype)
    if softcap:
        gradient = gradient * (1 - (capped / softcap).square())  # tanh' = 1 - tanh^2
    share = (targets != IGNORED_TARGET).to(wide.dtype) / count
    logits.copy_(gradient * share[:, None])


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled: one or two passes over bf16 logits in place of several over fp32 ones.

    What reads logits and what overwrites them are compiled apart: together, torch 2.11 on a CPU took the
    losses from what was there already.
    """
    return torch.compile(function, dynamic=_DYNAMIC)
