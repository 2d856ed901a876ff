"""Numerics: bf16 stays finite and near fp32, no float16 overflow, and a first loss of ln(vocab)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..catalogue import VARIANTS
from .candidate import FIRST_STEPS, SEED, Candidate, at_step, each_layer, embeddings, logits, seed_all
from .report import Doubtful, Refused, Report

SCALES = (1e-3, 1.0, 1e3)
BATCH, LENGTH = 2, 16
EMBEDDING_SIZE = 0.02
"""RMS of the embeddings at the start."""
WARN_ERROR, FAIL_ERROR = 4.0, 50.0
"""bf16's error beside vanilla's."""
WARN_LOSS, FAIL_LOSS = 0.5, 3.0
"""Nats from ln(vocab) at the start."""


class Watch(TorchDispatchMode):
    """Remembers the operations that use float16, and the first that makes +inf or NaN of finite numbers.

    -inf is what attention masks are made of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.half: str = ""
        self.broken: str = ""
        self.overflowed = False
        self.where = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # importing torch._dynamo would take longer than the check

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = str(func)
        if "empty" in name:
            return found
        for tensor in tree_leaves(found):
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                continue
            half = tensor.dtype == torch.float16
            if half and not self.half:
                self.half = name + self.where
            if not self.broken or (half and not self.overflowed):
                self._look(name, tensor, half, args)
        return found

    def _look(self, name: str, tensor: torch.Tensor, half: bool, args: Any) -> None:
        # A sum is finite only where every number is, and far cheaper than isfinite; the rest is exact.
        if math.isfinite(float(tensor.detach().float().sum())) and not half:
            return
        if half:
            bad = bool((~tensor.isfinite() & (tensor != -math.inf)).any()) or bool(
                (tensor == -math.inf).any() and not _has_minus_inf(args)
            )
        else:
            bad = bool((tensor.isnan() | (tensor == math.inf)).any())
        if bad and not any(_is_bad(given) for given in tree_leaves(args)):
            self.broken = self.broken or f"{name} ({tensor.dtype}){self.where}"
            if half:
                self.overflowed, self.broken = True, f"{name} (torch.float16){self.where}"


def _is_bad(given: Any) -> bool:
    return (
        isinstance(given, torch.Tensor)
        and given.is_floating_point()
        and bool((given.isnan() | (given == math.inf)).any())
    )


def _has_minus_inf(args: Any) -> bool:
    return any(isinstance(a, torch.Tensor) and bool((a == -math.inf).any()) for a in tree_leaves(args))


def check_numerics(candidate: Candidate, report: Report) -> None:
    """Add the checks of numerics."""
    watch = Watch()
    report.run("numerics.bf16", lambda: _bf16(candidate, watch))
    report.run("numerics.float16", lambda: _float16(watch))
    report.run("numerics.error", lambda: _error(candidate))
    report.run("numerics.initial_loss", lambda: _initial_loss(candidate))
    if candidate.reads_step():
        report.run("numerics.first_steps", lambda: _first_steps(candidate))


@contextmanager
def _at(watch: Watch, where: str, scale: float) -> Iterator[None]:
    """Watch the largest streams, which overflow first."""
    watch.where = f" in {where} with the stream scaled by {scale:g}"
    with watch if scale == max(SCALES) else nullcontext():
        yield


def _bf16(candidate: Candidate, watch: Watch) -> str:
    """Streams of ordinary size and 1000 times smaller and larger: outputs and gradients stay finite."""
    for scale in SCALES:
        if candidate.alone:
            _layers(candidate, watch, scale)
        _model(candidate, watch, scale)
    if watch.broken and not watch.overflowed:
        raise Doubtful(f"outputs are finite, but {watch.broken} makes +inf or NaN on the way")
    return "finite outputs and gradients, with streams 1000 times smaller and larger too"


def _layers(candidate: Candidate, watch: Watch, scale: float) -> None:
    model = candidate.model("initial", torch.bfloat16)
    x = candidate.stream(BATCH, candidate.length(LENGTH), dtype=torch.float32)
    x = (scale * x).bfloat16().requires_grad_()
    with _at(watch, "a layer", scale):
        outputs = each_layer(model.blocks, x)
        total = torch.stack([y.float().mean() for y in outputs]).sum()
        (gradient,) = torch.autograd.grad(total, x)
    for layer, y in enumerate(outputs):
        if not y.isfinite().all():
            raise Refused(f"layer {layer}: {_not_finite('the output', scale, watch)}")
    if not gradient.isfinite().all():
        raise Refused(_not_finite("the gradient of the layers' input", scale, watch))


def _model(candidate: Candidate, watch: Watch, scale: float) -> None:
    model = candidate.model("initial", torch.bfloat16)
    idx = candidate.tokens(BATCH, candidate.length(LENGTH))
    with embeddings(model, lambda x: x * (scale / EMBEDDING_SIZE)), _at(watch, "the model", scale):
        y = logits(model, idx)
        y.float().logsumexp(-1).mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    if not y.isfinite().all():
        raise Refused(_not_finite("the model's output", scale, watch))
    for name, gradient in gradients.items():
        if not gradient.isfinite().all():
            raise Refused(_not_finite(f"the gradient of {name}", scale, watch))


def _not_finite(what: str, scale: float, watch: Watch) -> str:
    first = f", first made by {watch.broken}" if watch.broken else ""
    return (
        f"{what} is not finite in bf16 with the residual stream scaled by {scale:g}{first}: compute "
        "statistics in fp32 and keep divisors away from 0"
    )


def _float16(watch: Watch) -> str:
    if watch.overflowed:
        raise Refused(
            f"float16 overflows in {watch.broken}: it ends at 65504; compute in fp32 or the input's dtype"
        )
    if watch.half:
        raise Doubtful(
            f"{watch.half} computes in float16, which ends at 65504: use fp32 or the input's dtype"
        )
    return "nothing is computed in float16"


def _error(candidate: Candidate) -> str:
    """The error of bf16 against fp32 with the same weights, beside vanilla's."""
    ours, theirs = _bf16_error(candidate, {}), _bf16_error(candidate, VARIANTS["vanilla"].design)
    ratio = ours / theirs if theirs else math.inf
    candidate.numbers |= {"bf16_error": ours, "bf16_error_vanilla": theirs, "bf16_error_ratio": ratio}
    found = f"bf16's error is {ours:.2g} of the output, {ratio:.1f} times vanilla's"
    if not ratio <= FAIL_ERROR:
        raise Refused(f"{found} (at most {FAIL_ERROR:g}): compute statistics in fp32")
    if ratio > WARN_ERROR:
        raise Doubtful(f"{found}: statistics in fp32 usually bring it below {WARN_ERROR:g}")
    return found


def _bf16_error(candidate: Candidate, design: dict[str, Any]) -> float:
    """|bf16 - fp32| / |fp32| of the logits at initial weights, rounded to bf16."""
    idx = candidate.tokens(BATCH, candidate.length(LENGTH))
    model = candidate.build(**design).bfloat16().eval()
    wide = candidate.build(**design).eval()  # anew: tables that the first call made would be bf16's
    wide.load_state_dict(model.state_dict())
    with torch.no_grad():
        a, b = logits(model, idx).float(), logits(wide, idx)
    return float((a - b).norm() / b.norm())


def _initial_loss(candidate: Candidate) -> str:
    """The loss at initial weights is that of guessing every token alike, about ln(vocab)."""
    # A narrow model or a small vocabulary would count what a tied head gives the token itself.
    vocab = candidate.config.vocab_size
    model = candidate.build(
        n_layer=min(candidate.small.n_layer, 4), n_embd=4 * candidate.small.n_embd, vocab_size=vocab
    )
    generator = torch.Generator().manual_seed(SEED)
    idx, targets = torch.randint(vocab, (2, 2, candidate.length(33)), generator=generator)
    with torch.no_grad():
        seed_all()
        _, loss = model.eval()(idx, targets)
    expected = math.log(vocab)
    found = float(loss)
    candidate.numbers |= {"initial_loss": found, "initial_loss_expected": expected}
    sentence = f"the loss begins at {found:.2f} nats, with ln(vocab) {expected:.2f}"
    if not abs(found - expected) <= FAIL_LOSS:
        raise Refused(f"{sentence}: scale the output down at the start")
    if abs(found - expected) > WARN_LOSS:
        raise Doubtful(f"{sentence}: logits are large from the start")
    return sentence


def _first_steps(candidate: Candidate) -> str:
    """bf16 as a run begins, for a design that reads the training step."""
    model = candidate.model("initial", torch.bfloat16)
    for step in FIRST_STEPS:
        with at_step(model, step):
            try:
                if candidate.alone:
                    _layers(candidate, Watch(), 1.0)
                _model(candidate, Watch(), 1.0)
            except Refused as refusal:
                raise Refused(f"at training step {step}: {refusal}") from refusal
    return f"finite outputs and gradients in bf16 at training steps {', '.join(map(str, FIRST_STEPS))} too"
