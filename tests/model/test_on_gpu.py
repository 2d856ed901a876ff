"""What only a GPU shows of the model: its loss, attention's kernels and compiled blocks in bf16."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from model import GPT, IGNORED_TARGET, GPTConfig
from model.layers import CausalSelfAttention
from model.loss import linear_cross_entropy
from training.engine.compilation import compile_blocks
from training.engine.cpu_bf16 import bf16_arithmetic

pytestmark = pytest.mark.gpu
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 128, "block_size": 128, "vocab_size": 512}


def relative_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    return ((value.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(
    "rows", [10_000, 4096, 300], ids=["a part of a chunk left", "whole chunks", "few rows"]
)
def test_the_loss_in_bf16_is_that_of_fp64_but_for_rounding(rows: int, gpu: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 64, generator=generator).bfloat16().to(gpu) for n in (rows, 1000))
    targets = torch.randint(0, 1000, (rows,), generator=generator).to(gpu)
    targets[3:90] = IGNORED_TARGET
    given = hidden.requires_grad_(), (head / 4).requires_grad_()
    exact_given = [x.detach().double().requires_grad_() for x in given]

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logits = x @ weight.T
        return F.cross_entropy(
            logits if logits.dtype == torch.float64 else logits.float(), targets, ignore_index=IGNORED_TARGET
        )

    ours, theirs = linear_cross_entropy(*given, targets, "mean"), plain(*given)
    exact = plain(*exact_given)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(exact.item(), rel=1e-3)
    for mine, other, truth in zip(
        torch.autograd.grad(4 * ours, given),
        torch.autograd.grad(4 * theirs, given),
        torch.autograd.grad(4 * exact, exact_given),
        strict=True,
    ):
        assert relative_error(mine, truth) <= 1.25 * relative_error(other, truth) + 1e-6


def test_attention_in_bf16_never_holds_all_scores(gpu: torch.device) -> None:
    """It runs in a kernel of FlashAttention's or cuDNN's, forward and backward."""
    attention = CausalSelfAttention(GPTConfig(**SHAPE)).to(gpu).bfloat16()
    x = torch.randn(2, 128, 128, device=gpu, dtype=torch.bfloat16, requires_grad=True)
    with torch.profiler.profile() as profile:
        attention(x).sum().backward()
    names = {event.key for event in profile.key_averages() if "dot_product" in event.key}
    kernels = {name for name in names if any(kind in name for kind in ("_flash_", "_cudnn_"))}
    assert any("backward" in name for name in kernels) and any("backward" not in name for name in kernels), (
        names
    )
    assert not any("math" in name or "efficient" in name for name in names), names


def test_compiled_blocks_in_bf16_err_no_more_than_uncompiled_ones(gpu: torch.device) -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    plain = GPT(GPTConfig(**SHAPE)).to(gpu).bfloat16()
    compiled, exact = (GPT(plain.config).to(gpu).to(dtype) for dtype in (torch.bfloat16, torch.float64))
    for other in (compiled, exact):
        other.load_state_dict(plain.state_dict())
    said: list[str] = []
    compile_blocks(compiled, said.append)
    idx = torch.randint(0, 512, (4, 128), generator=torch.Generator().manual_seed(1)).to(gpu)
    with bf16_arithmetic():
        losses = [gpt(idx, idx)[1] for gpt in (plain, compiled, exact)]
        gradients = [
            torch.autograd.grad(loss, list(gpt.parameters()))
            for loss, gpt in zip(losses, (plain, compiled, exact), strict=True)
        ]
    assert said == [] and counters["stats"]["unique_graphs"] > 0
    assert losses[1].item() == pytest.approx(losses[2].item(), rel=1e-3)
    flat = [torch.cat([part.double().flatten() for part in parts]) for parts in gradients]
    assert relative_error(flat[1], flat[2]) <= 1.25 * relative_error(flat[0], flat[2])
