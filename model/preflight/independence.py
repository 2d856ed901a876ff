"""An output follows from its own sequence and the weights: not from other sequences, calls or the mode."""

import copy
import itertools
from dataclasses import replace

import torch

from ..gpt import GPT
from ..siblings import loaded_afresh
from .candidate import SEED, Candidate, difference, embeddings, hidden, largest, logits, seed_all
from .perturb import WINDOW, Change, beyond_rounding, change, first_change, tail_mask
from .report import Doubtful, Refused

BATCH, LENGTH = 3, 40


def tokens(candidate: Candidate, seed: int = SEED) -> torch.Tensor:
    """Random token ids (BATCH, LENGTH), fewer columns where the block size is smaller."""
    return candidate.tokens(BATCH, candidate.length(LENGTH), seed)


def repeatable(candidate: Candidate) -> str:
    """The same input gives the same output, whatever was computed in between."""
    idx, other = tokens(candidate), tokens(candidate, SEED + 1)
    for training in (False, True):
        model = candidate.model().train(training)
        with torch.no_grad():
            first = logits(model, idx)
            again = logits(model, idx)
            logits(model, other)
            logits(model, other[:1, :2])
            last = logits(model, idx)
        for what, y in (("a second call", again), ("a call after other inputs", last)):
            if size := difference(first, y):
                raise Refused(
                    f"in {'train' if training else 'eval'} mode {what} with the same input and random "
                    f"numbers differs by up to {size}: the output must follow from input and weights alone; "
                    "keep nothing from one forward to the next"
                )
    return "the same output in repeated and interleaved calls"


def batch(candidate: Candidate) -> str:
    """A sequence's output does not depend on the other sequences of its batch."""
    idx, other = tokens(candidate), tokens(candidate, SEED + 1)

    def find() -> Change | None:
        first = hidden(model, idx)
        for kept in range(BATCH):
            changed = other.clone()
            changed[kept] = idx[kept]
            words = f"sequence {kept} of {BATCH} changes by up to {{}} when the others change"
            if found := change(words, first[kept], hidden(model, changed)[kept]):
                return found
        return None

    for mode in ("eval", "train"):
        model = candidate.model().train(mode == "train")
        with torch.no_grad():
            if found := beyond_rounding(candidate, find):
                raise Refused(f"{found} ({mode} mode): statistics may not run over the batch")
    model = candidate.model()
    others = _embedding_gradient(model, idx)[1:]
    if size := difference(others, torch.zeros_like(others)):
        raise Refused(
            f"the gradient of sequence 0 reaches other sequences, with up to {size}: a sequence must not "
            "read the others of its batch"
        )
    if not candidate.stochastic:
        with torch.no_grad():
            alone, whole = hidden(model, idx[:1]), hidden(model, idx)
        if (gap := largest(alone[0] - whole[0])) > 1e-4 * (scale := largest(whole)):
            raise Refused(
                f"a sequence alone and the same one in a batch of {BATCH} differ by up to {gap:.2g} of "
                f"{scale:.2g}: the output may not depend on the batch size"
            )
    return "a sequence's output and gradient are its own"


def _embedding_gradient(model: GPT, idx: torch.Tensor) -> torch.Tensor:
    """d(sequence 0) / d(token embeddings): (B, T, C)."""
    leaf = model.transformer["wte"](idx).detach().requires_grad_()
    with embeddings(model, lambda x: leaf):
        y = hidden(model, idx)[0]
    if not y.requires_grad:
        raise Refused("no gradient reaches the token embeddings: the output is detached")
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((y * weights.to(y)).sum(), leaf, allow_unused=True)
    if gradient is None:
        raise Refused("no gradient reaches the token embeddings: the output does not depend on them")
    return gradient


def train_mode(candidate: Candidate) -> str:
    """Train mode changes no buffer, and without dropout it computes what eval mode does."""
    idx = tokens(candidate)
    model = candidate.build().to(candidate.exact)
    candidate.randomise(model)
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    first = logits(model, idx)
    first.square().mean().backward()
    for name, buffer in model.named_buffers():
        if name not in before or difference(before[name], buffer):
            raise Refused(
                f"a forward in train mode changes the buffer {name}: running statistics leak across steps "
                "and ranks, and differ between training and evaluation"
            )
    with torch.no_grad():
        candidate.stochastic = bool(difference(logits(model, idx), logits(model, idx, SEED + 1)))
        if candidate.stochastic:
            raise Doubtful(
                "stochastic in train mode: every check draws the same random numbers before a forward"
            )
        evaluated = logits(model.eval(), idx)
    if size := difference(first, evaluated):
        raise Refused(
            f"train and eval mode differ by up to {size} without dropout: validation would score another "
            "model than the one that learns"
        )
    return "no buffer changes; train and eval mode agree"


def state_dict(candidate: Candidate) -> str:
    """What is saved is all that matters: a copy and a reloaded model compute the same."""
    idx = tokens(candidate)
    model = candidate.model()
    with torch.no_grad():
        expected = logits(model, idx)
        twin = copy.deepcopy(model)
        if difference(expected, logits(twin, idx)):
            raise Refused("a deep copy computes other outputs: the module keeps state that does not copy")
        other = candidate.build(seed=SEED + 7).to(candidate.exact)
        other.load_state_dict(model.state_dict())
        found = logits(other.eval(), idx)
    if size := difference(expected, found):
        raise Refused(
            f"after a state_dict round trip the outputs differ by up to {size}: something that matters is "
            "neither a parameter nor a buffer, so a checkpoint would lose it"
        )
    return "a copy and a reloaded model compute the same"


def memory(candidate: Candidate) -> str:
    """Outputs up to a cut stay the same when calls with other futures come before, also after a backward."""
    length = candidate.length(40)
    cut = length // 2 - 1
    if cut < 0:
        raise Doubtful("not checked: model.block_size is 1")
    _check_first_calls(candidate)
    tail = tail_mask([cut] * 2, length)

    def find() -> Change | None:
        # Other tokens each time, so that what is remembered of the first ones is not met again.
        seed = next(seeds)
        idx = candidate.tokens(2, length, seed)
        futures = [torch.where(tail, candidate.tokens(2, length, seed + 1 + i), idx) for i in range(2)]
        outputs = []
        for number, given in enumerate((idx, idx, futures[0], futures[0], futures[1], idx)):
            y = hidden(model, given)
            outputs.append(y.detach())
            if model.training and number == 2:
                y.square().mean().backward()
                model.zero_grad(set_to_none=True)
        return next(filter(None, (first_change(outputs[0], y, tail) for y in outputs[1:])), None)

    for training in (False, True):
        model, seeds = candidate.model().train(training), itertools.count(SEED, 100)
        if found := beyond_rounding(candidate, find):
            raise Refused(
                f"in repeated calls {found}: a forward remembers an earlier one's input, and so its future; "
                "keep nothing from one forward to the next"
            )
        idx = candidate.tokens(2, length)
        whole, alone = (hidden(model, given).detach() for given in (idx, idx[:, : cut + 1]))
        whole, scale = whole[:, : cut + 1], largest(whole)
        if not (candidate.stochastic and training) and (size := largest(whole - alone)) > 1e-3 * scale:
            raise Refused(
                f"the first {cut + 1} tokens alone and the same as the beginning of {length} differ by "
                f"{size:.2g} of {scale:.2g}: the output depends on the sequence's length or on an earlier "
                "call"
            )
    return "no call remembers another's future, and a beginning alone computes the same"


def _check_first_calls(candidate: Candidate) -> None:
    """Raises Refused where a future reaches the first call that a new model gets, of which a design may keep
    a table: every later call of that shape would look innocent."""
    length = candidate.length(WINDOW)
    tail = tail_mask([length // 2 - 1] * 2, length)
    idx = candidate.tokens(2, length)
    inputs = (idx, torch.where(tail, candidate.tokens(2, length, SEED + 1), idx))
    weights = candidate.model().state_dict()
    for training, dtype in ((False, candidate.exact), (True, candidate.exact), (False, torch.bfloat16)):

        def find(training: bool = training, dtype: torch.dtype = dtype) -> Change | None:
            outputs = []
            for given in inputs:
                with loaded_afresh():
                    model = replace(candidate, _models={}).model("initial", dtype)
                model.load_state_dict(weights)
                outputs.append(hidden(model.train(training), given))
            return first_change(outputs[0], outputs[1], tail)

        with torch.no_grad():
            if found := beyond_rounding(candidate, find):
                raise Refused(
                    f"in the first call of a new model {found}: what it keeps from then on holds the future; "
                    "keep nothing that follows from values"
                )


def targets(candidate: Candidate) -> str:
    """What the head reads is the same with targets, with other targets and without."""
    model, idx = candidate.model().train(), candidate.tokens(2, candidate.length(40))
    read: list[torch.Tensor] = []
    handle = model.lm_head.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    try:
        with torch.no_grad():
            for targets in (None, idx.roll(-1, 1), idx.flip(1)):
                seed_all()
                model(idx, targets)
    finally:
        handle.remove()
    for other in read[1:]:
        if size := difference(read[0], other):
            raise Refused(
                f"what the head reads changes by up to {size} with the targets: the model may not see what "
                "it must predict"
            )
    return "targets do not reach the model's output"
