"""The contract of a design: shapes, precisions and devices, and what `independence` checks."""

import torch

from .. import probe
from ..plugin import in_words
from ..topologies import takes_state
from ..treatment import in_list
from . import independence
from .candidate import Candidate, difference, each_layer, hidden, logits, state_for
from .independence import BATCH, LENGTH, tokens
from .parts import documents
from .passes import runs
from .perturb import with_rounding
from .report import Doubtful, Refused, Report, raised_at


def check_contract(candidate: Candidate, report: Report) -> bool:
    """Add the contract's checks; whether the design runs at all."""
    if not report.run("contract.builds", lambda: _builds(candidate)):
        return False
    if not report.run("contract.runs", lambda: runs(candidate)):
        return False
    candidate.treat(probe.buffers(candidate))
    if not report.run("contract.shapes", lambda: _shapes(candidate)):
        return False
    report.run("contract.buffers", lambda: _buffers(candidate))
    report.run("contract.device", lambda: _device(candidate))
    report.run("contract.float64", lambda: _float64(candidate))
    report.run("contract.input", lambda: _input(candidate))
    report.run("contract.repeatable", lambda: independence.repeatable(candidate))
    candidate.apart = report.run("contract.batch", lambda: with_rounding(candidate, independence.batch))
    report.run("contract.train_mode", lambda: independence.train_mode(candidate))
    report.run("contract.state_dict", lambda: independence.state_dict(candidate))
    report.run("contract.parameters", lambda: _parameters(candidate))
    report.run("contract.documents", lambda: with_rounding(candidate, documents))
    return True


def _builds(candidate: Candidate) -> str:
    model = candidate.build()
    if others := model.brought_over:
        raise Doubtful(
            f"{len(others)} parameters are made in another precision or on another device than the model's, "
            f"and are brought to it: {in_list(others)}; make them as torch.ones(n), which follows the model"
        )
    return (
        f"{model.config.n_layer} layers, {model.num_parameters():,} parameters at width {model.config.n_embd}"
    )


def _shapes(candidate: Candidate) -> str:
    """(B, T, C) -> (B, T, C) in the input's precision."""
    idx = tokens(candidate)
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
            f"{what} returns {y.dtype} in a {dtype} model: cast the result to the input's dtype with "
            ".type_as(x)"
        )


def _buffers(candidate: Candidate) -> str:
    """Floating buffers keep their precision, whatever the parameters are cast to."""
    candidate.numbers |= candidate.treatment.facts()
    if warning := candidate.treatment.buffer_warning():
        raise Doubtful(warning)
    return "buffers keep the precision that the design gives them"


def _device(candidate: Candidate) -> str:
    """What the design makes follows its input to another device: here to the one that holds no values."""
    idx = tokens(candidate).to("meta")
    model = candidate.build().eval().to("meta")
    try:
        with torch.no_grad():
            found = hidden(model, idx)
    except Exception as error:
        if "device" not in str(error):
            raise Doubtful(f"not checked: the design reads values ({in_words(error)[:200]})") from error
        raise Refused(
            f"does not run on another device than the CPU ({in_words(error)[:200]}{raised_at(error)}): keep "
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
            found = logits(candidate.model(dtype=torch.float64), tokens(candidate))
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
    state = state_for(x)
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            given = x.clone()
            block(given, state) if takes_state(block) else block(given)
            if size := difference(given, x):
                raise Refused(
                    f"layer {layer} changes its input in place, by up to {size}: the residual stream "
                    "belongs to the caller; write x = x + y, not x += y"
                )
    return "inputs are left as they are"


def _parameters(candidate: Candidate) -> str:
    """Every parameter gets a gradient; one that never does is left out of training."""
    candidate.treat(probe.parameters(candidate))
    treatment = candidate.treatment
    candidate.numbers |= treatment.facts()
    model = candidate.model()
    model.zero_grad(set_to_none=True)
    logits(model, tokens(candidate)).square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    model.zero_grad(set_to_none=True)
    found = [warning] if (warning := treatment.parameter_warning()) else []
    # The last positions' embeddings are not reached by short sequences.
    if idle := [name for name in idle if not name.startswith("transformer.wpe")]:
        found.append(
            f"{len(idle)} parameters have a gradient of exactly 0 at random weights, first {idle[0]}"
        )
    if found:
        raise Doubtful("; ".join(found))
    return "every parameter gets a gradient"
