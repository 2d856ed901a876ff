"""Attention that keeps documents apart, in both of its forms, against attention written out here."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import flex_attention

from model.document_mask import attend, block_mask, dense_mask, document_mask
from tests.model.documents import DOCUMENTS, gpt_of, tokens


def explicit_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: torch.Tensor
) -> torch.Tensor:
    """Each document's positions by themselves, one query after the other, in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    result = torch.empty_like(v)
    for row, numbers in enumerate(documents.tolist()):
        for t, number in enumerate(numbers):
            seen = [s for s in range(t + 1) if numbers[s] == number]
            scores = torch.einsum("hd,hsd->hs", q[row, :, t], k[row][:, seen]) / q.shape[-1] ** 0.5
            result[row, :, t] = torch.einsum("hs,hsd->hd", scores.softmax(-1), v[row][:, seen])
    return result


def test_attention_equals_each_document_by_itself() -> None:
    torch.manual_seed(0)
    # Longer than the tiles of SDPA's and FlexAttention's kernels, so that some hold no pair of one document.
    documents = torch.stack([torch.arange(700) // 300, torch.arange(700) // 650])
    q, k, v = (torch.randn(2, 2, 700, 8, requires_grad=True) for _ in range(3))
    expected = explicit_attention(q, k, v, documents)
    ours = attend(q, k, v, dense_mask(documents), dropout=0.0)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(ours)
    for ours_grad, expected_grad in zip(
        torch.autograd.grad(ours, (q, k, v), upstream),
        torch.autograd.grad(expected, (q, k, v), upstream.double()),
        strict=True,
    ):
        torch.testing.assert_close(ours_grad, expected_grad, atol=1e-5, rtol=1e-4)


@pytest.fixture
def eager_flex(monkeypatch):
    """FlexAttention as CPUs have it. It refuses to differentiate there, for its compiled form cannot."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr("model.document_mask._flex_attention", flex_attention.flex_attention)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_sdpa(eager_flex) -> None:
    torch.manual_seed(0)
    documents = torch.randint(0, 2, (2, 300)).cumsum(1) // 40
    q, k, v = (torch.randn(2, 2, 300, 16, requires_grad=True) for _ in range(3))
    upstream = torch.randn(2, 2, 300, 16)
    both = []
    for mask in (block_mask(documents), dense_mask(documents)):
        result = attend(q, k, v, mask, dropout=0.0)
        both.append((result, *torch.autograd.grad(result, (q, k, v), upstream)))
    for flex, sdpa in zip(*both, strict=True):
        torch.testing.assert_close(flex, sdpa, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_gpt_with_flex_attention_trains_as_one_with_sdpa(eager_flex, monkeypatch) -> None:
    gpt, idx = gpt_of(), tokens()
    both = []
    for mask in (dense_mask, block_mask):
        monkeypatch.setattr("model.gpt.document_mask", lambda documents, dropout, mask=mask: mask(documents))
        _, loss = gpt(idx, idx, documents=DOCUMENTS)
        both.append((loss, *torch.autograd.grad(loss, list(gpt.parameters()))))
    for sdpa, flex in zip(*both, strict=True):
        torch.testing.assert_close(flex, sdpa, atol=1e-5, rtol=1e-4)


def test_one_compilation_serves_the_masks_of_all_batches() -> None:
    """Compiled, as on a GPU, and within a compiled part of the model, which reads the mask."""
    torch.manual_seed(0)
    masks = torch.compile(block_mask, dynamic=False)
    attends = torch.compile(attend, dynamic=False)
    q, k, v = (torch.randn(2, 2, 300, 16) for _ in range(3))
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for length in (40, 70, 300):
            documents = torch.randint(0, 2, (2, 300)).cumsum(1) // length
            mask = masks(documents)
            assert torch.equal(mask.to_dense(), block_mask(documents).to_dense())
            expected = attend(q, k, v, dense_mask(documents), 0.0)
            torch.testing.assert_close(attends(q, k, v, mask, 0.0), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_a_gpt_trains_as_on_the_cpu(gpu: torch.device) -> None:
    idx, losses, gradients = tokens(), [], []
    for device in ("cpu", gpu):
        gpt = gpt_of().to(device)
        _, loss = gpt(idx.to(device), idx.to(device), documents=DOCUMENTS.to(device))
        loss.backward()
        losses.append(loss.item())
        gradients.append(gpt.transformer.wpe.weight.grad.cpu())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-2)


def test_a_gpu_gets_flex_attentions_mask_unless_there_is_dropout(monkeypatch) -> None:
    monkeypatch.setattr("model.document_mask._block_mask", lambda documents: "flex")
    monkeypatch.setattr("model.document_mask.dense_mask", lambda documents: "dense")
    on_gpu, on_cpu = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)
    assert [document_mask(on_gpu, False), document_mask(on_gpu, True)] == ["flex", "dense"]
    assert [document_mask(on_cpu, False), document_mask(on_cpu, True)] == ["dense", "dense"]
