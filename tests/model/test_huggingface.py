"""GPT-2 from and to Hugging Face's classes."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from model import GPT, PRESETS, GPTConfig, from_hf, to_hf
from model.errors import UserError
from tests.model.random_models import our_gpt, with_random_weights

THEIRS: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 64, "n_positions": 48, "vocab_size": 512}
SIZES = dict(zip(("", "-medium", "-large", "-xl"), PRESETS, strict=True))


@pytest.fixture
def theirs() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return with_random_weights(GPT2LMHeadModel(GPT2Config(**THEIRS)))


def test_logits_equal_hugging_face_gpt2(theirs) -> None:
    idx = torch.randint(0, 512, (2, 48))
    logits, loss = from_hf(theirs).eval()(idx)
    torch.testing.assert_close(logits, theirs(idx).logits, atol=1e-5, rtol=1e-5)
    assert loss is None


def test_loss_and_gradients_equal_hugging_face_gpt2(theirs) -> None:
    idx = torch.randint(0, 512, (2, 48))
    ours = from_hf(theirs).eval()
    _, loss = ours(idx[:, :-1], idx[:, 1:])
    reference = theirs(idx, labels=idx).loss  # shifts by one itself
    torch.testing.assert_close(loss, reference)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(ours.lm_head.weight.grad, theirs.lm_head.weight.grad)
    block, their_block = ours.transformer.h[1], theirs.transformer.h[1]
    torch.testing.assert_close(block.mlp.c_fc.weight.grad, their_block.mlp.c_fc.weight.grad.t())
    torch.testing.assert_close(block.ln_1.weight.grad, their_block.ln_1.weight.grad)


def test_vanilla_goes_out_as_gpt2_and_comes_back(theirs, tmp_path) -> None:
    idx = torch.randint(0, 512, (1, 20))
    for eps in (1e-5, 1e-3):
        theirs = with_random_weights(GPT2LMHeadModel(GPT2Config(**THEIRS, layer_norm_epsilon=eps)))
        ours = from_hf(theirs)
        assert ours.config.norm_options == ({} if eps == 1e-5 else {"eps": eps})
        folder = to_hf(ours, tmp_path / str(eps))
        reloaded, loading = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
        assert not any(loading.values())
        torch.testing.assert_close(reloaded.eval()(idx).logits, theirs(idx).logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(from_hf(folder).eval()(idx)[0], ours.eval()(idx)[0])
        files = {"config.json", "generation_config.json", "model.safetensors"}
        assert {file.name for file in folder.iterdir()} == files


@pytest.mark.parametrize("size", SIZES)
def test_the_keys_and_shapes_of_gpt2s_four_sizes(size: str) -> None:
    shape = PRESETS[SIZES[size]]
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(GPT2Config(**shape)).state_dict()
        ours = GPT(GPTConfig(**shape, vocab_size=50257)).state_dict()
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    expected = {n: tuple(t.shape)[::-1] if n.endswith(turned) else tuple(t.shape) for n, t in theirs.items()}
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_layout_of_the_first_gpt2_checkpoints(theirs, tmp_path, dtype) -> None:
    """No `transformer.` before the keys, no head, and the causal masks among them."""
    theirs.to(dtype).save_pretrained(tmp_path)
    state = {n.removeprefix("transformer."): t for n, t in load_file(tmp_path / "model.safetensors").items()}
    state.pop("lm_head.weight", None)
    for layer in range(3):
        state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 48, 48).tril()
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = from_hf(tmp_path).eval()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    idx = torch.randint(0, 512, (1, 20))
    torch.testing.assert_close(ours(idx)[0], theirs.float()(idx).logits, atol=1e-5, rtol=1e-5)


def test_gpt2_without_its_head(theirs) -> None:
    bare = GPT2Model(theirs.config)
    bare.load_state_dict(theirs.transformer.state_dict())
    idx = torch.randint(0, 512, (1, 20))
    assert torch.equal(from_hf(bare).eval()(idx)[0], from_hf(theirs).eval()(idx)[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"attn_pdrop": 0.0}, "its three dropouts differ"),
    ],
)
def test_what_is_no_plain_gpt2_is_refused(changes: dict[str, Any], sentence: str, tmp_path) -> None:
    model = with_random_weights(GPT2LMHeadModel(GPT2Config(**THEIRS | changes)))
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path):
        with pytest.raises(UserError, match=f"is not a plain GPT-2: {sentence}$"):
            from_hf(source)


def test_a_folder_that_does_not_hold_a_whole_gpt2_is_refused(theirs, tmp_path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        from_hf(tmp_path / "nowhere")
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, sentence in (
        ({"n_layer": 4}, "do not fit its config: transformer.h.3"),
        ({"n_embd": 32}, "do not fit its config: transformer."),
        ({"model_type": "llama"}, "is no GPT-2: its model_type is 'llama'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=sentence) as caught:
            from_hf(tmp_path)
        assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_refused(tmp_path) -> None:
    folder = to_hf(our_gpt(norm="rmsnorm"), tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["gpt.transformer.h.1.ln_1.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"transformer\.h\.1\.ln_1\.weight have no match"):
        from_hf(folder)
