"""All diagnostics of a model on one batch: one forward and one backward pass, and the head at each depth."""

import math

import torch

from data import document_ids
from model import GPT

from .formulas import cosine, feature_kurtosis, massive, norm, rms, token_kurtosis
from .observe import Observation, observe
from .table import Row
from .weights import norm_rows

LENS_STRIDE = 4
"""The lens looks at every fourth position: the head at each depth would cost more than all else together."""


def measure(gpt: GPT, tokens: torch.Tensor, eot: int | None = None) -> list[Row]:
    """The rows of docs/diagnostics.md that follow from a model and a batch.

    It runs in evaluation mode, draws nothing, and leaves the model as it was: its mode, its gradients, its
    hooks. What cannot be measured of a design is absent, and so is what is not finite.

    Args:
        gpt: of any design, in fp32, uncompiled, on the tokens' device.
        tokens: (B, T + 1) ids; each but the first is a target.
        eot: the token that ends a document, where attention stays within one; None where it does not.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    documents = None if eot is None else document_ids(inputs, eot)
    was_training = gpt.training
    gpt.eval()
    try:
        with torch.enable_grad(), observe(gpt, documents) as seen:
            hidden = gpt.hidden(inputs)
        with torch.enable_grad():
            loss = gpt.lm_head(hidden, targets)
        rows = [Row("loss", len(gpt.blocks), "", float(loss.detach()))]
        rows += gradient_rows(gpt, loss, seen)
        with torch.no_grad():
            rows += stream_rows(seen.stream) + lens_rows(gpt, seen.stream, targets)
    finally:
        gpt.train(was_training)
    for place, values in (*seen.branches.items(), *seen.attention.items()):
        rows += [Row(name, *place, value) for name, value in values.items()]
    return finite(rows)


def finite(rows: list[Row]) -> list[Row]:
    """The rows whose values are neither NaN nor infinite."""
    return [row for row in rows if math.isfinite(row.value)]


def stream_rows(stream: dict[int, torch.Tensor]) -> list[Row]:
    """What the residual stream is like at each depth: h_l (B, T, C) by layer."""
    rows = []
    for layer, h in sorted(stream.items()):
        largest, count, over_median = massive(h)
        values = {
            "resid_rms": rms(h),
            "kurtosis": feature_kurtosis(h),
            "kurtosis_token": token_kurtosis(h),
            "massive_max": largest,
            "massive_count": count,
            "massive_ratio": over_median,
        }
        if layer + 1 in stream:
            values["layer_cos"] = cosine(h, stream[layer + 1])
        rows += [Row(name, layer, "", value) for name, value in values.items()]
    return rows


def lens_rows(
    gpt: GPT, stream: dict[int, torch.Tensor], targets: torch.Tensor, stride: int = LENS_STRIDE
) -> list[Row]:
    """The mean loss of the final norm and the head on h_l (B, T, C), by layer, in nats per token.

    Args:
        gpt: in evaluation mode.
        stream: h_l by layer.
        targets: (B, T).
        stride: the last of so many positions is looked at.
    """
    final_norm, head = gpt.transformer["ln_f"], gpt.lm_head
    positions = slice(stride - 1, None, stride)
    rows = []
    for layer, h in sorted(stream.items()):
        losses = head(final_norm(h[:, positions]), targets[:, positions], "none")
        rows.append(Row("lens_loss", layer, "", float(losses.double().mean())))
    return rows


def gradient_rows(gpt: GPT, loss: torch.Tensor, seen: Observation) -> list[Row]:
    """The norms of the loss's gradient by the weights of each layer and part, and by h_l.

    Where a topology keeps several streams, dL/dh_l is by a change that all of them share.
    """
    parameters = {name: p for name, p in gpt.named_parameters() if p.requires_grad}
    origins = {layer: origin for layer, origin in seen.origin.items() if origin.requires_grad}
    gradients = torch.autograd.grad(loss, [*parameters.values(), *origins.values()], allow_unused=True)
    of_weights = dict(zip(parameters, gradients, strict=False))
    of_stream = dict(zip(origins, gradients[len(parameters) :], strict=True))
    reached = {name: gradient for name, gradient in of_weights.items() if gradient is not None}
    rows = norm_rows("grad_norm", reached, len(gpt.blocks))
    for layer, gradient in of_stream.items():
        if gradient is not None:
            shared = gradient if gradient.dim() == 3 else gradient.sum(dim=2)
            rows.append(Row("resid_grad_norm", layer, "", norm(shared)))
    return rows
