"""The loss without the logits, against the logits and torch's cross-entropy."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import GPT, IGNORED_TARGET, GPTConfig, loss
from model.sphere import unit

ROWS, WIDTH, VOCAB = 1100, 24, 333  # two chunks of a CPU and a part of a third


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, the head's rows and targets, some of them ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    rows = torch.randn(VOCAB, WIDTH, generator=generator).div(4).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    targets[3:90] = IGNORED_TARGET
    return hidden, rows, targets


def plain(hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Loss and gradients with all logits in memory."""
    value = F.cross_entropy((hidden @ rows.T).float(), targets, ignore_index=-1)
    if hidden.dtype == torch.float64:
        value = F.cross_entropy(hidden @ rows.T, targets, ignore_index=-1)
    return [value, *torch.autograd.grad(value, (hidden, rows))]


def chunked(hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    value = loss.linear_cross_entropy(hidden, rows, targets, "mean")
    # what the loss is multiplied by reaches the gradients
    return [value, *(g / 4 for g in torch.autograd.grad(4 * value, (hidden, rows)))]


@pytest.fixture(params=["torch's operator", "torch 2.11"])
def operator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`F.linear_cross_entropy`, which torch has from 2.13 on, and its absence, where nothing is compiled."""
    if request.param == "torch 2.11":
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
        monkeypatch.delattr(nn, "LinearCrossEntropyOptions", raising=False)
        monkeypatch.delattr(loss, "_compiled")


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_in_fp32_loss_and_gradients_are_the_plain_ones(dtype: torch.dtype, error: float) -> None:
    hidden, rows, targets = inputs(dtype)
    exact = plain(hidden.detach().double().requires_grad_(), rows.detach().double().requires_grad_(), targets)
    ours, theirs = chunked(hidden, rows, targets), plain(hidden, rows, targets)
    for left, right, truth in zip(ours, theirs, exact, strict=True):
        assert left.dtype == dtype
        assert (left - right).abs().max() <= error * max(1.0, right.abs().max().item())
        assert (left - truth).abs().max() <= error * max(1.0, truth.abs().max().item())


@pytest.mark.parametrize("most_rows", [2048, 512, 7], ids=["one chunk", "three", "158"])
def test_in_bf16_the_error_is_no_larger_than_the_plain_paths(
    bf16_products: bool, most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_IN_PLACE", {"cpu": most_rows})
    monkeypatch.setattr(loss, "SLICE", 100)
    hidden, rows, targets = inputs(torch.bfloat16)
    assert (loss.dtype_of_products(hidden) == torch.bfloat16) is bf16_products
    exact = plain(hidden.detach().double().requires_grad_(), rows.detach().double().requires_grad_(), targets)
    ours, theirs = chunked(hidden, rows, targets), plain(hidden, rows, targets)
    assert ours[0].dtype == torch.float32
    for left, right, truth in zip(ours, theirs, exact, strict=True):
        error, allowed = ((x.double() - truth).norm() / truth.norm() for x in (left, right))
        # a CPU rounds each chunk's part of the rows' gradient to bf16, and their sum once more
        assert error <= 1.25 * allowed + 1e-6, (error, allowed)


@pytest.mark.usefixtures("operator", "bf16_products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_of_single_targets(dtype: torch.dtype) -> None:
    hidden, rows, targets = (x.detach() for x in inputs(dtype))
    ours = loss.linear_cross_entropy(hidden, rows, targets, "none")
    theirs = F.cross_entropy(hidden.double() @ rows.double().T, targets, ignore_index=-1, reduction="none")
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)


@pytest.mark.usefixtures("operator")
def test_losses_of_single_targets_have_gradients() -> None:
    hidden, rows, targets = inputs(torch.float32)
    weights = torch.linspace(0, 1, ROWS)
    ours = (loss.linear_cross_entropy(hidden, rows, targets, "none") * weights).sum()
    theirs = (F.cross_entropy(hidden @ rows.T, targets, ignore_index=-1, reduction="none") * weights).sum()
    for left, right in zip(
        torch.autograd.grad(ours, (hidden, rows)), torch.autograd.grad(theirs, (hidden, rows)), strict=True
    ):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("variant", [{}, {"block": "ngpt", "topology": "sphere"}], ids=["gpt2", "ngpt"])
def test_a_models_loss_and_gradients_are_those_of_its_logits(variant: dict[str, str]) -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=256, **variant))
    idx, targets = torch.randint(0, 256, (2, 12, 64))
    targets[0, :9] = -1
    _, ours = gpt(idx, targets)
    theirs = F.cross_entropy(gpt(idx)[0].flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    gradients = [torch.autograd.grad(value, list(gpt.parameters())) for value in (ours, theirs)]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


def test_the_heads_rows_have_length_one_on_the_sphere() -> None:
    gpt = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=8, block="ngpt", topology="sphere"))
    torch.testing.assert_close(gpt.lm_head.rows(), unit(gpt.lm_head.weight))
    assert gpt.lm_head.weight._no_weight_decay


def test_under_autocast_the_products_are_in_bf16_where_that_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 1)
    for supported in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda known=supported: known)
        fast = torch.bfloat16 if supported else torch.float32
        assert loss.dtype_of_products(x) == torch.float32
        assert loss.dtype_of_products(x.bfloat16()) == fast
        with torch.autocast("cpu", torch.bfloat16):
            assert loss.dtype_of_products(x) == fast


def test_a_factor_of_the_loss_is_applied_in_fp32() -> None:
    """In bf16 a third would be 0.3340, and every gradient wrong by a five-hundredth."""
    gradient = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    factor = torch.tensor(1 / 3)
    assert torch.equal(loss._scaled(gradient, factor, torch.bfloat16), (gradient.float() * factor).bfloat16())
    assert torch.equal(
        loss._scaled(gradient.float(), factor, torch.bfloat16), (gradient.float() / 3).bfloat16()
    )
    assert loss._scaled(gradient, torch.tensor(1.0), torch.bfloat16) is gradient


@pytest.mark.parametrize(
    ("rows", "most", "chunk"), [(5000, 4096, 2500), (4096, 4096, 4096), (3, 8, 3), (0, 8, 0)]
)
def test_chunks_are_even(rows: int, most: int, chunk: int) -> None:
    assert loss.even_chunk(rows, most) == chunk


MEASURE = """
import os, resource, sys, torch
import torch.nn.functional as F
from model.loss import Head

def backward(path, rows):
    head, x = Head(16, 5_000), torch.randn(rows, 16, requires_grad=True)
    y = torch.randint(0, 5_000, (rows,))
    (F.cross_entropy(head(x), y) if path == "plain" else head(x, y)).backward()

for path in sys.argv[1:]:  # each in a process of its own, which begins with torch loaded
    if os.fork() == 0:
        if path == "torch 2.11":
            vars(F).pop("linear_cross_entropy", None)
        backward(path, 2)  # what is loaded by it does not count
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        backward(path, 32_768)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_the_logits_never_stand_in_memory() -> None:
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-c", MEASURE, "chunked", "torch 2.11", "plain"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True, timeout=120)
    chunked, without_operator, plain = map(float, done.stdout.split())
    logits = 32_768 * 5_000 * 4 / 2**20  # 625 MiB
    assert plain > logits and chunked < logits / 4 and without_operator < logits / 2, done.stdout
