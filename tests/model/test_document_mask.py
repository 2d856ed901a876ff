"""Documents kept apart by the attention mask, against themselves alone."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from model.blocks import PreNormBlock
from model.config import BlockConfig
from model.document_mask import dense_mask
from model.errors import UserError
from model.norms import LayerNorm
from tests.model.documents import DOCUMENTS, SHAPE, gpt_of, tokens

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
