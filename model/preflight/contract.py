"""The contract of a design: shapes, precisions, and an output that follows from input and weights alone."""

import copy

import torch

from ..errors import UserError
from ..gpt import GPT
from ..plugin import in_words
from ..topologies import State, takes_state
from .candidate import SEED, Candidate, each_layer, hidden, largest, logits, same, seed_all
from .report import Doubtful, Refused, Report, place

BATCH, LENGTH = 3, 40


def check_contract(candidate: Candidate, report: Report) -> bool:
    """Add the contract's checks; whether the design runs at all."""
    if not report.run("contract.builds", lambda: _builds(candidate)):
        return False
    if not report.run("contract.shapes", lambda: _shapes(candidate)):
        return False
    report.run("contract.device", lambda: _device(candidate))
    report.run("contract.float64", lambda: _float64(candidate))
    report.run("contract.input", lambda: _input(candidate))
    report.run("contract.repeatable", lambda: _repeatable(candidate))
    candidate.apart = report.run("contract.batch", lambda: _batch(candidate))
    report.run("contract.train_mode", lambda: _train_mode(candidate))
    report.run("contract.state_dict", lambda: _state_dict(candidate))
    report.run("contract.parameters", lambda: _parameters(candidate))
    report.run("contract.documents", lambda: _documents(candidate))
    return True


def _tokens(candidate: Candidate, seed: int = SEED) -> torch.Tensor:
    return candidate.tokens(BATCH, candidate.length(LENGTH), seed)


def _builds(candidate: Candidate) -> str:
    model = candidate.build()
    return (
        f"{model.config.n_layer} layers, {model.num_parameters():,} parameters at width {model.config.n_embd}"
    )


def _shapes(candidate: Candidate) -> str:
    """(B, T, C) -> (B, T, C) in the input's precision."""
    idx = _tokens(candidate)
    for dtype in (torch.float32, torch.bfloat16):
        model = candidate.model("initial", dtype)
        with torch.no_grad():
            found = hidden(model, idx)
            _check_shape("the model", found, (*idx.shape, model.config.n_embd), dtype)
            x = candidate.stream(BATCH, idx.shape[1], dtype=dtype)
            try:
                outputs = each_layer(model.blocks, x)
            except Exception:
                candidate.alone = False
                continue
            for layer, y in enumerate(outputs):
                _check_shape(f"layer {layer}", y, tuple(x.shape), dtype)
    if not candidate.alone:
        raise Doubtful(
            "the model runs, but its blocks do not run one by one: only the whole model is checked"
        )
    return "(B, T, C) -> (B, T, C) in fp32 and bf16"


def _check_shape(what: str, y: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(y, torch.Tensor):
        raise Refused(f"{what} returns {type(y).__name__}: it must return one tensor of shape (B, T, C)")
    if tuple(y.shape) != shape:
        raise Refused(f"{what} makes {tuple(y.shape)} of {shape}: it must return (B, T, C)")
    if y.dtype != dtype:
        raise Refused(
            f"{what} returns {y.dtype} in a {dtype} model: cast the result to the input's dtype, and keep "
            "constants as buffers"
        )


def _device(candidate: Candidate) -> str:
    """What the design makes follows its input to another device: here to the one that holds no values."""
    idx = _tokens(candidate).to("meta")
    model = copy.deepcopy(candidate.model("initial", torch.float32)).to("meta")
    try:
        with torch.no_grad():
            found = hidden(model, idx)
    except Exception as error:
        if "device" not in str(error):
            raise Doubtful(f"not checked: the design reads values ({in_words(error)[:200]})") from error
        raise Refused(
            f"does not run on another device than the CPU ({in_words(error)[:200]}{place(error)}): keep "
            "constants with register_buffer, and make new tensors with device=x.device"
        ) from error
    if found.device.type != "meta":
        raise Refused(
            f"the output is on {found.device}, the input on another device: it must follow its input"
        )
    return "parameters, buffers and new tensors follow the input to another device"


def _float64(candidate: Candidate) -> str:
    try:
        with torch.no_grad():
            found = logits(candidate.model(dtype=torch.float64), _tokens(candidate))
    except Exception as error:
        candidate.exact = torch.float32
        raise Doubtful(f"does not run in float64 ({error}): exact comparisons are made in fp32") from error
    if found.dtype != torch.float64:
        candidate.exact = torch.float32
        raise Doubtful(f"returns {found.dtype} in float64: exact comparisons are made in fp32")
    return "runs in float64, in which comparisons are exact"


def _input(candidate: Candidate) -> str:
    """No block writes to the stream that it is given."""
    if not candidate.alone:
        raise Doubtful("not checked: the blocks do not run one by one")
    model, x = candidate.model(), candidate.stream(BATCH, candidate.length(LENGTH))
    state: State = {}
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            given = x.clone()
            block(given, state) if takes_state(block) else block(given)
            if not torch.equal(given, x):
                raise Refused(
                    f"layer {layer} changes its input in place, by up to {largest(given - x):.2g}: the "
                    "residual stream belongs to the caller; write x = x + y, not x += y"
                )
    return "inputs are left as they are"


def _repeatable(candidate: Candidate) -> str:
    """The same input gives the same output, whatever was computed in between."""
    idx, other = _tokens(candidate), _tokens(candidate, SEED + 1)
    for training in (False, True):
        model = candidate.model().train(training)
        with torch.no_grad():
            first = logits(model, idx)
            again = logits(model, idx)
            logits(model, other)
            logits(model, other[:1, :2])
            last = logits(model, idx)
        for what, y in (("a second call", again), ("a call after other inputs", last)):
            if not same(first, y).all():
                raise Refused(
                    f"in {'train' if training else 'eval'} mode {what} with the same input and random "
                    f"numbers differs by up to {largest(first - y):.2g}: the output must follow from input "
                    "and weights alone; keep nothing from one forward to the next"
                )
    return "the same output in repeated and interleaved calls"


def _batch(candidate: Candidate) -> str:
    """A sequence's output does not depend on the other sequences of its batch."""
    idx, other = _tokens(candidate), _tokens(candidate, SEED + 1)
    for training in (False, True):
        model = candidate.model().train(training)
        with torch.no_grad():
            first = hidden(model, idx)
            for kept in range(BATCH):
                changed = other.clone()
                changed[kept] = idx[kept]
                y = hidden(model, changed)
                if not same(first[kept], y[kept]).all():
                    raise Refused(
                        f"sequence {kept} of {BATCH} changes by up to {largest(first[kept] - y[kept]):.2g} "
                        f"when the others change ({'train' if training else 'eval'} mode): statistics may "
                        "not run over the batch"
                    )
    model = candidate.model()
    leaf = _embedding_gradient(model, idx)
    if (size := largest(leaf[1:])) > 0 or size != size:
        raise Refused(
            f"the gradient of sequence 0 reaches other sequences, with up to {size:.2g}: a sequence must not "
            "read the others of its batch"
        )
    if not candidate.stochastic:
        with torch.no_grad():
            alone, scale = hidden(model, idx[:1]), largest(first)
        if (difference := largest(alone[0] - hidden(model, idx)[0])) > 1e-4 * scale:
            raise Refused(
                f"a sequence alone and the same one in a batch of {BATCH} differ by up to {difference:.2g} "
                f"of {scale:.2g}: the output may not depend on the batch size"
            )
    return "a sequence's output and gradient are its own"


def _embedding_gradient(model: GPT, idx: torch.Tensor) -> torch.Tensor:
    """d(sequence 0) / d(token embeddings): (B, T, C)."""
    leaf = model.transformer["wte"](idx).detach().requires_grad_()
    handle = model.transformer["wte"].register_forward_hook(lambda module, args, output: leaf)
    try:
        y = hidden(model, idx)[0]
    finally:
        handle.remove()
    if not y.requires_grad:
        raise Refused("no gradient reaches the token embeddings: the output is detached")
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((y * weights.to(y)).sum(), leaf, allow_unused=True)
    if gradient is None:
        raise Refused("no gradient reaches the token embeddings: the output does not depend on them")
    return gradient


def _train_mode(candidate: Candidate) -> str:
    """Train mode changes no buffer, and without dropout it computes what eval mode does."""
    idx = _tokens(candidate)
    model = candidate.build().to(candidate.exact)
    candidate.randomise(model)
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    first = logits(model, idx)
    first.square().mean().backward()
    for name, buffer in model.named_buffers():
        if name not in before or not same(before[name], buffer).all():
            raise Refused(
                f"a forward in train mode changes the buffer {name}: running statistics leak across steps "
                "and ranks, and differ between training and evaluation"
            )
    with torch.no_grad():
        candidate.stochastic = not same(logits(model, idx), logits(model, idx, SEED + 1)).all()
        if candidate.stochastic:
            raise Doubtful(
                "stochastic in train mode: every check draws the same random numbers before a forward"
            )
        evaluated = logits(model.eval(), idx)
    if not same(first, evaluated).all():
        raise Refused(
            f"train and eval mode differ by up to {largest(first - evaluated):.2g} without dropout: "
            "validation would score another model than the one that learns"
        )
    return "no buffer changes; train and eval mode agree"


def _state_dict(candidate: Candidate) -> str:
    """What is saved is all that matters: a copy and a reloaded model compute the same."""
    idx = _tokens(candidate)
    model = candidate.model()
    with torch.no_grad():
        expected = logits(model, idx)
        twin = copy.deepcopy(model)
        if not same(expected, logits(twin, idx)).all():
            raise Refused("a deep copy computes other outputs: the module keeps state that does not copy")
        other = candidate.build(seed=SEED + 7).to(candidate.exact)
        other.load_state_dict(model.state_dict())
        found = logits(other.eval(), idx)
    if not same(expected, found).all():
        raise Refused(
            f"after a state_dict round trip the outputs differ by up to {largest(expected - found):.2g}: "
            "something that matters is neither a parameter nor a buffer, so a checkpoint would lose it"
        )
    return "a copy and a reloaded model compute the same"


def _parameters(candidate: Candidate) -> str:
    """Every parameter gets a gradient."""
    model = candidate.model()
    model.zero_grad(set_to_none=True)
    logits(model, _tokens(candidate)).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    idle = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    model.zero_grad(set_to_none=True)
    if missing:
        raise Refused(
            f"{len(missing)} parameters are unused, first {missing[0]}: data-parallel training would wait "
            "for their gradients; do not create them"
        )
    # The last positions' embeddings are not reached by short sequences.
    if idle := [name for name in idle if not name.startswith("transformer.wpe")]:
        raise Doubtful(
            f"{len(idle)} parameters have a gradient of exactly 0 at random weights, first {idle[0]}"
        )
    return "every parameter gets a gradient"


def _documents(candidate: Candidate) -> str:
    """With a document mask, the second document of a sequence does not see the first."""
    model, idx = candidate.model(), _tokens(candidate)
    candidate.numbers["documents_apart"] = False
    try:
        model.check_document_mask()
    except UserError:
        raise Doubtful(
            "data.document_mask cannot be used: not every block attends through "
            "model.layers.CausalSelfAttention"
        ) from None
    cut = idx.shape[1] // 2
    if cut == 0:
        raise Doubtful("not checked: model.block_size is 1")
    documents = (torch.arange(idx.shape[1]) >= cut).int().expand_as(idx)
    changed = idx.clone()
    changed[:, :cut] = _tokens(candidate, SEED + 1)[:, :cut]
    with torch.no_grad():
        first = logits(model, idx, documents=documents)[:, cut:]
        second = logits(model, changed, documents=documents)[:, cut:]
        seed_all()
        model.hidden(idx)  # takes the mask away again
    if not same(first, second).all():
        raise Doubtful(
            f"data.document_mask cannot be used: the second document changes by up to "
            f"{largest(first - second):.2g} with the first; the design mixes positions outside attention"
        )
    candidate.numbers["documents_apart"] = True
    return "documents of a sequence are kept apart"
