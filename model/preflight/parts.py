"""Causality of the parts: the norm alone, and every block alone at the target's own width."""

import torch
from torch import nn

from ..treatment import cast_floating
from .candidate import CAUTION, Candidate, difference, largest, one_layer, redraw, seed_all, state_for
from .perturb import ADVICE, WINDOW, changed_streams, first_change, tail_mask
from .report import Doubtful, Refused
from .widths import full_width_blocks


def norm_alone(candidate: Candidate) -> str:
    """The norm alone: a position's output depends on that position only."""
    width = candidate.small.n_embd
    for caution in CAUTION:
        seed_all()
        norm = candidate.designs.norm(width, bias=candidate.config.bias)
        redraw(norm, caution=caution)
        cast_floating(norm, candidate.exact)
        if norm(candidate.stream(3, 1)).isfinite().all():
            break
    longest = candidate.config.block_size
    for length in sorted({candidate.length(10), candidate.length(WINDOW), longest}):
        x = candidate.stream(3, length)
        for training in (False, True):
            norm.train(training)
            for sequence, position in ((0, 0), (1, length // 2), (2, length - 1)):
                _check_position(norm, x, sequence, position)
    x = candidate.stream(3, candidate.length(10)).requires_grad_()
    y = norm(x)[1, 0]
    if not y.requires_grad:
        raise Refused("no gradient passes the norm: its output is detached")
    (gradient,) = torch.autograd.grad((y * candidate.stream(1, 1)[0, 0]).sum(), x)
    gradient[1, 0] = 0
    if gradient.any():
        sequence, position = (int(i) for i in gradient.abs().amax(-1).nonzero()[0])
        raise Refused(
            f"the norm's output at sequence 1, position 0 has a gradient of {largest(gradient):.2g} to "
            f"sequence {sequence}, position {position}: statistics may run over the last dimension only"
        )
    return "a position's output depends on that position only"


def _check_position(norm: nn.Module, x: torch.Tensor, sequence: int, position: int) -> None:
    others = torch.ones(x.shape[:2], dtype=torch.bool)
    others[sequence, position] = False
    with torch.no_grad():
        before, after = (
            norm(given.clone())[sequence, position] for given in (x, changed_streams(x, others, way=0))
        )
    if size := difference(before, after):
        raise Refused(
            f"the norm's output at sequence {sequence}, position {position} of {x.shape[1]} changes by "
            f"{size} with other positions and sequences: statistics may run over the last dimension only"
        )


def full_width(candidate: Candidate) -> str:
    """Every block alone at the target's own width, one at a time: shape, finiteness and two cuts."""
    if not candidate.alone:
        raise Doubtful("not checked: the blocks do not run one by one")
    length = candidate.length(8)
    at = sorted({0, max(length // 2 - 1, 0)}) if candidate.apart else [0]
    tail = tail_mask(at, length)
    x = candidate.stream(1, length, candidate.config.n_embd, torch.float32).expand(len(at), -1, -1)
    states = [state_for(x), state_for(x)]
    with torch.no_grad():
        for layer, block in enumerate(full_width_blocks(candidate)):
            outputs = []
            for given, state in zip((x, changed_streams(x, tail, way=1)), states, strict=True):
                seed_all()
                outputs.append(one_layer(block, given, state))
            before, after = outputs
            what = f"layer {layer} at width {x.shape[-1]}"
            if before.shape != x.shape or before.dtype != x.dtype:
                raise Refused(
                    f"{what} makes {tuple(before.shape)} {before.dtype} of {tuple(x.shape)} {x.dtype}"
                )
            if not before.isfinite().all():
                raise Doubtful(f"{what} puts out infinities or NaN at random weights")
            if found := first_change(before, after, tail):
                raise Refused(f"{what}: {found}; {ADVICE}")
    return f"{candidate.config.n_layer} layers at width {candidate.config.n_embd}, one at a time"
