"""Documents kept apart by the attention mask, against attention written out here and against themselves."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import flex_attention
from torch.utils.checkpoint import checkpoint

from model import GPT, GPTConfig
from model.blocks import PreNormBlock
from model.config import BlockConfig
from model.document_mask import attend, block_mask, dense_mask, document_mask
from model.errors import UserError
from model.norms import LayerNorm
from tests.tiny import TINY

SHAPE = TINY | {"block_size": 48}
# Rows of 48 tokens; documents may be one token long, and their numbers say nothing but which is which.
DOCUMENTS = torch.stack(
    [
        torch.tensor([7] * 10 + [3] * 25 + [4] * 13),
        torch.tensor([0] + [1] * 46 + [2]),
    ]
)

NANOGPT = """
import torch.nn as nn

class Block(nn.Module):  # nanoGPT's, unchanged
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x

class OwnAttention(Block):
    def __init__(self, config):
        super().__init__(config)
        self.attn = nn.Identity()

class OwnAttentionAtTheEnd(Block):
    def __init__(self, config):
        super().__init__(config)
        if config.layer_idx == config.n_layer - 1:
            self.attn = nn.Identity()

class Subclass(CausalSelfAttention):
    def forward(self, x):
        return self.c_proj(self.c_attn(x)[..., : self.n_embd])

class OwnForward(Block):
    def __init__(self, config):
        super().__init__(config)
        self.attn = Subclass(config)
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "nanogpt.py"
    path.write_text(NANOGPT)
    return path


def gpt_of(**settings) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**SHAPE, **settings))
    for parameter in gpt.parameters():  # GPT-2's small weights would hide what flows between tokens
        torch.nn.init.normal_(parameter, std=0.2)
    return gpt


def tokens() -> torch.Tensor:
    return torch.randint(0, 64, DOCUMENTS.shape)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_gpt_trains_as_on_the_cpu() -> None:
    idx, losses, gradients = tokens(), [], []
    for device in ("cpu", "cuda"):
        gpt = gpt_of().to(device)
        _, loss = gpt(idx.to(device), idx.to(device), documents=DOCUMENTS.to(device))
        loss.backward()
        losses.append(loss.item())
        gradients.append(gpt.transformer.wpe.weight.grad.cpu())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-2)


def test_a_gpu_gets_flex_attentions_mask_unless_there_is_dropout(monkeypatch) -> None:
    monkeypatch.setattr("model.document_mask.block_mask", lambda documents: "flex")
    monkeypatch.setattr("model.document_mask.dense_mask", lambda documents: "dense")
    on_gpu, on_cpu = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)
    assert [document_mask(on_gpu, False), document_mask(on_gpu, True)] == ["flex", "dense"]
    assert [document_mask(on_cpu, False), document_mask(on_cpu, True)] == ["dense", "dense"]


def test_dropout_counts_in_training_only(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("model.gpt.document_mask", lambda _, dropout: asked.append(dropout))
    for dropout in (0.0, 0.1):
        for training in (False, True):
            gpt_of(dropout=dropout).train(training)(tokens(), documents=DOCUMENTS)
    assert asked == [False, False, False, True]


@pytest.mark.parametrize("block", ["pre", "post", "parallel", "nanogpt"])
def test_a_document_sees_no_other(block: str, plugin) -> None:
    gpt, idx = gpt_of(block=f"{plugin}:Block" if block == "nanogpt" else block), tokens()
    hidden, plain = gpt.hidden(idx, DOCUMENTS), gpt.hidden(idx)
    for number in DOCUMENTS.unique():
        inside = number == DOCUMENTS
        others = torch.where(inside, idx, (idx + torch.randint(1, 64, idx.shape)) % 64)
        torch.testing.assert_close(gpt.hidden(others, DOCUMENTS)[inside], hidden[inside], atol=0, rtol=0)
        alone = gpt.hidden(others)[inside]
        # Without the mask the others matter, but to a row's first document.
        assert torch.allclose(alone, plain[inside], atol=1e-3) == (number in DOCUMENTS[:, 0])


def test_the_first_document_of_a_row_is_as_it_is_without_the_others() -> None:
    gpt, idx = gpt_of(), tokens()
    hidden = gpt.hidden(idx, DOCUMENTS)
    torch.testing.assert_close(hidden[:1, :10], gpt.hidden(idx[:1, :10]), atol=1e-4, rtol=1e-4)


def test_later_documents_are_as_they_are_alone_at_their_positions() -> None:
    gpt, idx = gpt_of(), tokens()
    hidden = gpt.hidden(idx, DOCUMENTS)
    x = gpt.transformer.wte(idx[:1, 10:35]) + gpt.transformer.wpe(torch.arange(10, 35))
    gpt.hidden(idx[:1])  # no mask from here on
    for block in gpt.transformer.h:
        x = block(x)
    torch.testing.assert_close(hidden[:1, 10:35], gpt.transformer.ln_f(x), atol=1e-4, rtol=1e-4)


def test_the_loss_of_a_document_has_no_gradient_in_another() -> None:
    gpt, idx = gpt_of(), tokens()
    embedded = []
    gpt.transformer.drop.register_forward_hook(
        lambda *hook: embedded.append(hook[2]) or hook[2].retain_grad()
    )
    for number in DOCUMENTS.unique():
        inside = number == DOCUMENTS
        _, loss = gpt(idx, torch.where(inside, idx, -1), documents=DOCUMENTS)
        loss.backward()
        gradient = embedded.pop().grad.abs().amax(-1)  # (B, T)
        assert gradient[~inside].max() == 0 and gradient[inside].min() > 0


def test_one_document_a_row_is_plain_causal_attention() -> None:
    gpt, idx = gpt_of(), tokens()
    one = torch.tensor([[5], [6]]).expand(2, 48)
    torch.testing.assert_close(gpt(idx, documents=one)[0], gpt(idx)[0], atol=1e-4, rtol=1e-4)


def test_a_mask_does_not_outlive_its_call() -> None:
    gpt, idx = gpt_of(), tokens()
    plain, masked = gpt(idx)[0], gpt(idx, documents=DOCUMENTS)[0]
    assert not torch.allclose(plain, masked, atol=1e-2)
    with pytest.raises(IndexError):
        gpt(torch.full_like(idx, 64), documents=DOCUMENTS)  # fails: no such token
    for _ in range(2):
        assert torch.equal(gpt(idx)[0], plain)
        assert torch.equal(gpt.hidden(idx), gpt.hidden(idx, None))
        assert torch.equal(gpt(idx, documents=DOCUMENTS)[0], masked)
    torch.testing.assert_close(gpt(idx[:1, :9])[0], plain[:1, :9], atol=1e-4, rtol=1e-4)  # another shape


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    idx, gradients = tokens(), []
    for recompute in (False, True):
        gpt = gpt_of()
        if recompute:
            for block in gpt.transformer.h:
                forward = block.forward
                block.forward = lambda x, f=forward: checkpoint(f, x, use_reentrant=reentrant)
        for documents in (DOCUMENTS, None, DOCUMENTS.flip(0)):
            _, loss = gpt(idx, idx, documents=documents)
            loss.backward()
        gradients.append([parameter.grad for parameter in gpt.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients, strict=True))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_block_compiles_whole_and_once_for_all_masks(backend: str) -> None:
    torch._dynamo.reset()
    block = PreNormBlock(
        BlockConfig(**SHAPE, dropout=0.0, bias=True, qk_norm="none", layer_idx=0, norm=LayerNorm)
    )
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    x = torch.randn(2, 48, 32)
    with torch._dynamo.config.patch(error_on_recompile=False):
        expected = []
        for mask in (None, dense_mask(DOCUMENTS)):
            block.attn.document_mask = mask
            expected.append(block(x))
            torch.testing.assert_close(compiled(x), expected[-1], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(*expected, atol=1e-3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for mask in (None, dense_mask(DOCUMENTS.flip(0)), dense_mask(DOCUMENTS)):
            block.attn.document_mask = mask
            torch.testing.assert_close(compiled(x), block(x), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("bf16_products")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_bf16_trains_with_finite_gradients(dropout: float) -> None:
    gpt, idx = gpt_of(dropout=dropout).bfloat16(), tokens()
    _, loss = gpt(idx, idx, documents=DOCUMENTS)
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in gpt.parameters())


@pytest.mark.usefixtures("bf16_products")
def test_bf16_autocast_is_close_to_fp32() -> None:
    gpt, idx = gpt_of(), tokens()
    _, expected = gpt(idx, idx, documents=DOCUMENTS)
    with torch.autocast("cpu", torch.bfloat16):
        _, loss = gpt(idx, idx, documents=DOCUMENTS)
    torch.testing.assert_close(loss, expected, atol=0.0, rtol=0.02)


def test_the_mask_is_no_part_of_the_models_state() -> None:
    gpt = gpt_of()
    names = list(gpt.state_dict())
    gpt(tokens(), documents=DOCUMENTS)
    assert list(gpt.state_dict()) == names and not list(gpt.buffers())


@pytest.mark.parametrize(
    ("block", "index"), [("OwnAttention", 0), ("OwnAttentionAtTheEnd", 1), ("OwnForward", 0)]
)
def test_a_block_with_its_own_attention_is_refused(plugin, block: str, index: int) -> None:
    gpt, idx = gpt_of(block=f"{plugin}:{block}"), tokens()
    sentence = (
        rf"^data\.document_mask is true, but block {index} of model\.block '.*:{block}' does not attend"
    )
    with pytest.raises(UserError, match=sentence) as caught:
        gpt.check_document_mask()
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=sentence):
        gpt(idx, idx, documents=DOCUMENTS)
    _, loss = gpt(idx, idx)
    assert loss.isfinite()


def test_blocks_with_our_attention_pass_the_check(plugin) -> None:
    for block in ("pre", "post", "parallel", f"{plugin}:Block"):
        gpt_of(block=block).check_document_mask()


def test_documents_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"documents has shape \(2, 48\), but the tokens' is \(2, 47\)"):
        gpt_of()(tokens()[:, :-1], documents=DOCUMENTS)
