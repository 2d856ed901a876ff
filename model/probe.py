"""What the design itself says of its tensors: which buffers must be cast, which parameters get a gradient.

A parameter is left out of training only where autograd reaches it from the logits in no probe: whether a path
exists counts, never whether a gradient is 0. Probes are made in train mode with the initial weights and with
random ones, with a batch and with a single token, and at several training steps where the design reads the
step; before a parameter is given up, `SEARCH` more follow with other weights and longer texts. Whatever one
probe reaches trains, and so do its siblings where that depends on the input: of a mixture's experts some are
empty in every probe, but they are numbered alike. What no probe reaches and a later step uses all the same
stops the run with a sentence (`training.engine.unusual`): it never goes on without learning.
"""

import logging
import re
from collections.abc import Iterator

import torch

from .config import GPTConfig
from .designs import REGISTERED
from .gpt import GPT
from .preflight.candidate import (
    FIRST_STEPS,
    SEED,
    Candidate,
    at_step,
    each_layer,
    hidden,
    logits,
    one_thread,
    redraw,
)
from .treatment import Treatment

logger = logging.getLogger(__name__)
BATCH, LENGTH = 2, 24
SEARCH = 8
"""Further probes for parameters that none has reached."""


def probe(config: GPTConfig) -> Treatment:
    """How a design's tensors are treated, where no pre-flight check has said so.

    A design that does not run on this CPU at all has its buffers kept and all of its parameters trained.
    """
    with one_thread():
        candidate = Candidate.of(config, {}, thorough=False)
        candidate.exact = torch.float32
        candidate.treat(buffers(candidate))
        try:
            candidate.treat(parameters(candidate))
        except Exception as error:
            logger.debug("the design does not run here: %s", error)
    return candidate.treatment


def probe_unless_ours(config: GPTConfig) -> Treatment:
    """`probe` for a plan, which trusts NormLab's own designs to need no treatment."""
    if all(getattr(config, plug) in known for plug, known in REGISTERED.items()):
        return Treatment()
    return probe(config)


def buffers(candidate: Candidate) -> Treatment:
    """Whether floating buffers keep their precision: where the model and its blocks run and return their
    input's precision with fp32 and with bf16 parameters, and, where not, run so with buffers cast.

    A design that runs in neither way keeps its buffers, so that its checks say what is wrong.
    """
    model = candidate.model("initial", torch.float32)
    names = tuple(name for name, buffer in model.named_buffers() if buffer.is_floating_point())
    if not names or all(_runs(candidate, dtype) for dtype in (torch.float32, torch.bfloat16)):
        return Treatment()
    cast = Treatment("cast", names)
    runs = all(_runs(candidate, dtype, cast) for dtype in (torch.float32, torch.bfloat16))
    return cast if runs else Treatment()


def _runs(candidate: Candidate, dtype: torch.dtype, treatment: Treatment | None = None) -> bool:
    model = candidate.build().eval()
    model.treat(treatment or Treatment())
    model.to(dtype)
    idx = candidate.tokens(BATCH, candidate.length(LENGTH))
    with torch.no_grad():
        try:
            if hidden(model, idx).dtype != dtype:
                return False
        except Exception:
            return False
        try:
            outputs = each_layer(model.blocks, candidate.stream(BATCH, idx.shape[1], dtype=dtype))
        except Exception:  # blocks that need their topology
            return True
        return all(y.dtype == dtype for y in outputs if isinstance(y, torch.Tensor))


def parameters(candidate: Candidate) -> Treatment:
    """Which parameters no probe's gradient reaches, and which only some reach."""
    known = candidate.treatment
    model = candidate.model("initial", torch.float32).train()
    wanted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    batch = candidate.tokens(BATCH, candidate.length(LENGTH))
    token = candidate.tokens(1, 1)
    found = [_reached(model, batch)]
    drawn = candidate.model("random", torch.float32).train()
    found += [_reached(drawn, token), _reached(drawn, batch)]
    for step in FIRST_STEPS if candidate.reads_step() else ():
        with at_step(model, step):
            found.append(_reached(model, batch))
    ever = set().union(*found)
    for more in _search(candidate) if not ever.issuperset(wanted) else ():
        found.append(more)
        ever |= more
        if ever.issuperset(wanted):
            break
    always = set.intersection(*found)
    varying = {_family(name) for name in ever - always}
    unused = tuple(name for name in wanted if name not in ever and _family(name) not in varying)
    depends = ((name not in always or _family(name) in varying) and name not in unused for name in wanted)
    sometimes = tuple(name for name, does in zip(wanted, depends, strict=True) if does)
    return Treatment(known.buffers, known.buffer_names, unused, sometimes)


def _search(candidate: Candidate) -> Iterator[set[str]]:
    """What further probes reach: initial weights of other seeds, and random ones, in turn."""
    for number in range(SEARCH):
        model = candidate.build(seed=SEED + 1 + number).train()
        if number % 2:
            redraw(model, seed=SEED + 1 + number)
        yield _reached(model, candidate.tokens(4, candidate.length(128), SEED + 1 + number))


def _family(name: str) -> str:
    """A parameter's name but for the numbers inside its block: the experts of a layer have one."""
    block = re.match(r"transformer\.h\.\d+\.", name)
    start = block.end() if block else 0
    return name[:start] + re.sub(r"\d+", "*", name[start:])


def _reached(model: GPT, idx: torch.Tensor) -> set[str]:
    """The parameters to which a path leads from the logits of (B, T) ids."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    y = logits(model, idx)
    gradients = torch.autograd.grad(y.float().square().mean(), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
