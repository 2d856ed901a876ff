"""An output follows from its own sequence and the weights: not from other sequences, calls or the mode."""

import copy

import torch

from ..errors import UserError
from ..gpt import GPT
from .candidate import SEED, Candidate, difference, embeddings, hidden, largest, logits, seed_all
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
    for training in (False, True):
        model = candidate.model().train(training)
        with torch.no_grad():
            first = hidden(model, idx)
            for kept in range(BATCH):
                changed = other.clone()
                changed[kept] = idx[kept]
                if size := difference(first[kept], hidden(model, changed)[kept]):
                    raise Refused(
                        f"sequence {kept} of {BATCH} changes by up to {size} when the others change "
                        f"({'train' if training else 'eval'} mode): statistics may not run over the batch"
                    )
    model = candidate.model()
    others = _embedding_gradient(model, idx)[1:]
    if size := difference(others, torch.zeros_like(others)):
        raise Refused(
            f"the gradient of sequence 0 reaches other sequences, with up to {size}: a sequence must not "
            "read the others of its batch"
        )
    if not candidate.stochastic:
        with torch.no_grad():
            alone, scale = hidden(model, idx[:1]), largest(first)
        if (gap := largest(alone[0] - hidden(model, idx)[0])) > 1e-4 * scale:
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


def documents(candidate: Candidate) -> str:
    """With a document mask, the second document of a sequence does not see the first."""
    model, idx = candidate.model(), tokens(candidate)
    candidate.numbers["documents_apart"] = False
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
    with torch.no_grad():
        first = logits(model, idx, documents=documents)[:, cut:]
        second = logits(model, changed, documents=documents)[:, cut:]
        seed_all()
        model.hidden(idx)  # takes the mask away again
    if size := difference(first, second):
        raise Doubtful(
            f"data.document_mask cannot be used: the second document changes by up to {size} with the first; "
            "the design mixes positions outside attention"
        )
    candidate.numbers["documents_apart"] = True
    return "documents of a sequence are kept apart"
