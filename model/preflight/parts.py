"""The parts apart: the norm alone, all but attention, and every block at the target's own width."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from ..treatment import cast_floating
from .candidate import (
    CAUTION,
    SEED,
    STEADY_STEP,
    Candidate,
    difference,
    hidden,
    largest,
    logits,
    one_layer,
    redraw,
    seed_all,
    state_for,
)
from .independence import tokens
from .perturb import ADVICE, WINDOW, Change, beyond_rounding, change, changed_streams, first_change, tail_mask
from .report import Doubtful, Refused

MIXES = "it mixes tokens: data.document_mask is off for it, and the scorecard marks it"
LAST_DIMENSION = "statistics may run over the last dimension, and over earlier positions of the sequence"
_POOL = 1 << 20
_LARGE = 1 << 16
_INITS = (nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.xavier_normal_)


def norm_alone(candidate: Candidate) -> str:
    """The norm alone: no position reads a later one or another sequence; whether it reads earlier ones."""
    width = candidate.small.n_embd
    for caution in CAUTION:
        seed_all()
        norm = candidate.designs.one_norm(candidate.small, width)
        redraw(norm, caution=caution)
        cast_floating(norm, candidate.exact)
        if norm(candidate.stream(3, 1)).isfinite().all():
            break
    longest = candidate.config.block_size
    looks_back = False
    for length in sorted({candidate.length(10), candidate.length(WINDOW), longest}):
        x = candidate.stream(3, length)
        for training in (False, True):
            norm.train(training)
            for sequence, position in ((0, 0), (1, length // 2), (2, length - 1)):
                looks_back |= _looks_back(norm, x, sequence, position)
    x = candidate.stream(3, candidate.length(10)).requires_grad_()
    for position in {0, x.shape[1] // 2}:
        _check_gradient(candidate, norm, x, position)
    if not looks_back:
        return "a position's output depends on that position only"
    if not candidate.numbers["mixes_tokens"]:
        candidate.numbers |= {"mixes_tokens": True, "documents_apart": False}
        raise Doubtful(f"a position's output depends on earlier positions: {MIXES}")
    return "a position's output depends on itself and earlier positions of its sequence only"


def _looks_back(norm: nn.Module, x: torch.Tensor, sequence: int, position: int) -> bool:
    """Whether the output at a position follows earlier ones. Raises Refused where it follows any other."""
    earlier = torch.zeros(x.shape[:2], dtype=torch.bool)
    earlier[sequence, :position] = True
    others = ~earlier
    others[sequence, position] = False
    with torch.no_grad():
        before, after, again = (
            norm(given.clone())[sequence, position]
            for given in (x, changed_streams(x, others, way=0), changed_streams(x, earlier, way=0))
        )
    if size := difference(before, after):
        raise Refused(
            f"the norm's output at sequence {sequence}, position {position} of {x.shape[1]} changes by "
            f"{size} with later positions or other sequences: {LAST_DIMENSION}"
        )
    return bool(difference(before, again))


def _check_gradient(candidate: Candidate, norm: nn.Module, x: torch.Tensor, position: int) -> None:
    """Raises Refused where a gradient of one position reaches a later one or another sequence."""
    y = norm(x)[1, position]
    if not y.requires_grad:
        raise Refused("no gradient passes the norm: its output is detached")
    (gradient,) = torch.autograd.grad((y * candidate.stream(1, 1)[0, 0]).sum(), x)
    gradient[1, : position + 1] = 0
    if gradient.any():
        sequence, other = (int(i) for i in gradient.abs().amax(-1).nonzero()[0])
        raise Refused(
            f"the norm's output at sequence 1, position {position} has a gradient of {largest(gradient):.2g} "
            f"to sequence {sequence}, position {other}: {LAST_DIMENSION}"
        )


def documents(candidate: Candidate) -> str:
    """With a document mask, the second document of a sequence does not see the first."""
    model, idx = candidate.model(), tokens(candidate)
    numbers = candidate.numbers
    numbers["documents_apart"], numbers["mixes_tokens"] = False, _mixes_tokens(candidate)
    if numbers["mixes_tokens"]:
        raise Doubtful(f"a position reads others not through scaled_dot_product_attention alone: {MIXES}")
    try:
        model.check_document_mask()
    except UserError:
        raise Doubtful(
            "data.document_mask cannot be used: not every block mixes tokens through "
            "model.layers.CausalSelfAttention alone"
        ) from None
    cut = idx.shape[1] // 2
    if cut == 0:
        raise Doubtful("not checked: model.block_size is 1")
    documents = (torch.arange(idx.shape[1]) >= cut).int().expand_as(idx)
    changed = idx.clone()
    changed[:, :cut] = tokens(candidate, SEED + 1)[:, :cut]

    def find() -> Change | None:
        outputs = [logits(model, given, documents=documents)[:, cut:] for given in (idx, changed)]
        seed_all()
        model.hidden(idx)  # takes the mask away again
        return change("the second document changes by up to {} with the first", *outputs)

    with torch.no_grad():
        if found := beyond_rounding(candidate, find):
            raise Doubtful(f"data.document_mask cannot be used: {found}")
    numbers["documents_apart"] = True
    return "documents of a sequence are kept apart"


def _mixes_tokens(candidate: Candidate) -> bool:
    """Whether a position reads earlier ones while attention sees nothing but the position itself."""
    model, idx = candidate.model(), tokens(candidate)
    cut = idx.shape[1] // 2
    changed = idx.clone()
    changed[:, :cut] = tokens(candidate, SEED + 1)[:, :cut]

    def find() -> Change | None:
        with _OwnPosition():
            outputs = [hidden(model, given)[:, cut:] for given in (idx, changed)]
        return change("the output changes by {} with earlier positions", *outputs)

    with torch.no_grad():
        return bool(beyond_rounding(candidate, find))


class _OwnPosition(TorchFunctionMode):
    """While it is entered, attention gives each position its own value."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, value = given["query"], given["value"]
        if (length := query.shape[-2]) > value.shape[-2]:
            return func(*args, **(kwargs or {}))
        own = value[..., -length:, :]  # keys that every position sees come before the positions' own
        return own.repeat_interleave(query.shape[-3] // own.shape[-3], -3) if query.ndim > 3 else own


def full_width(candidate: Candidate) -> str:
    """Every block alone at the target's own width, one at a time: shape, finiteness and two cuts."""
    if not candidate.alone:
        raise Doubtful("not checked: the blocks do not run one by one")
    length = candidate.length(8)
    at = sorted({0, max(length // 2 - 1, 0)}) if candidate.apart else [0]
    tail = tail_mask(at, length)
    x = candidate.stream(1, length, candidate.config.n_embd, torch.float32).expand(len(at), -1, -1)
    states = [state_for(x), state_for(x)]
    for layer, block in enumerate(full_width_blocks(candidate)):
        what = f"layer {layer} at width {x.shape[-1]}"

        def find(block: nn.Module = block, what: str = what) -> Change | None:
            outputs = []
            for number, given in enumerate((x, changed_streams(x, tail, way=1))):
                seed_all()
                outputs.append(one_layer(block, given, states[number]))
            before, after = outputs
            if before.shape != x.shape or before.dtype != x.dtype:
                raise Refused(
                    f"{what} makes {tuple(before.shape)} {before.dtype} of {tuple(x.shape)} {x.dtype}"
                )
            if not before.isfinite().all():
                raise Doubtful(f"{what} puts out infinities or NaN at random weights")
            return first_change(before, after, tail)

        with torch.no_grad():
            if found := beyond_rounding(candidate, find):
                raise Refused(f"{what}: {found}; {ADVICE}")
    return f"{candidate.config.n_layer} layers at width {candidate.config.n_embd}, one at a time"


def full_width_blocks(candidate: Candidate) -> Iterator[nn.Module]:
    """The target's blocks in order of depth, in fp32 and eval mode.

    Their weights are drawn anew, so that none stays 0, as a gate's initial weight may be: behind a closed
    gate no leak shows.
    """
    candidate.designs.training_step.set(STEADY_STEP)
    draws = _RepeatedDraws()
    for given in candidate.designs.block_configs(candidate.config):
        seed_all()
        with draws:
            block = candidate.designs.one_block(candidate.config, given)
            with torch.no_grad():
                for parameter in block.parameters():
                    if parameter.ndim >= 2:
                        parameter.normal_(std=parameter.shape[-1] ** -0.5)
                    else:  # away from 0, and what was positive stays positive
                        parameter.add_(torch.randn(parameter.shape).abs() / 2)
        yield block.eval()


class _RepeatedDraws(TorchFunctionMode):
    """While it is entered, whatever fills a large tensor at random repeats 2^20 numbers from
    normal(0, 1 / sqrt(columns)): to draw all numbers of a block takes 30 times as long, and its own initial
    weights are replaced anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(SEED))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = func in (torch.Tensor.normal_, torch.Tensor.uniform_) or func in _INITS
        tensor = args[0] if args else kwargs.get("tensor")
        if not drawn or tensor.numel() <= _LARGE or not tensor.is_contiguous():
            return func(*args, **kwargs)
        return _fill(tensor, self.pool * tensor.shape[-1] ** -0.5)


def _fill(tensor: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().view(-1)
    whole = flat.numel() // len(pool) * len(pool)
    flat[:whole].view(-1, len(pool)).copy_(pool)
    flat[whole:].copy_(pool[: flat.numel() - whole])
    return tensor
