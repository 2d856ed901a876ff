"""The published baselines against the protocol's formulas in fp64, and against scripts that hold them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from model import GPT, VARIANTS, GPTConfig, variant_name
from tests.model.published_script import script
from tests.model.random_models import with_random_weights

BASELINES = ["vanilla", "rmsnorm", "rmsnorm_parallel", "rmsnorm_post"]
SHAPE: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 24, "vocab_size": 96}
PROTOCOL: dict[str, Any] = SHAPE | {"bias": False, "mlp": "gelu"}


def ours(**design: Any) -> GPT:
    torch.manual_seed(0)
    return with_random_weights(GPT(GPTConfig(**PROTOCOL | design)))


def norm(kind: str, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True) if kind == "vanilla" else x
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain


def attention(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    B, T, C = x.shape
    q, k, v = (x @ w["attn.c_attn.weight"].T).reshape(B, T, 3, 4, C // 4).unbind(2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(C // 4)
    scores = scores + torch.full((T, T), -math.inf, dtype=x.dtype).triu(1)
    y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).reshape(B, T, C)
    return y @ w["attn.c_proj.weight"].T


def mlp(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    hidden = x @ w["mlp.c_fc.weight"].T
    return (hidden / 2 * (1 + torch.erf(hidden / math.sqrt(2)))) @ w["mlp.c_proj.weight"].T


def block(kind: str, x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """PROTOCOL: `rmsnorm`, `rmsnorm_parallel` with one norm, `rmsnorm_post` with four."""
    gains = [w[name] for name in w if name.startswith("ln_")]
    assert len(gains) == {"rmsnorm_parallel": 1, "rmsnorm_post": 4}.get(kind, 2)
    if kind == "rmsnorm_parallel":
        h = norm(kind, x, w["ln_1.weight"])
        return x + attention(h, w) + mlp(h, w)
    a = attention(norm(kind, x, w["ln_1.weight"]), w)
    x = x + (norm(kind, a, w["ln_1_out.weight"]) if kind == "rmsnorm_post" else a)
    m = mlp(norm(kind, x, w["ln_2.weight"]), w)
    return x + (norm(kind, m, w["ln_2_out.weight"]) if kind == "rmsnorm_post" else m)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_its_published_formula(name: str) -> None:
    gpt = ours(**VARIANTS[name].design).double()
    w = {key: value.detach() for key, value in gpt.named_parameters()}
    assert not [key for key in w if key.endswith("bias")]
    idx = torch.randint(0, 96, (2, 24))
    x = w["transformer.wte.weight"][idx] + w["transformer.wpe.weight"][:24]
    for layer in range(3):
        prefix = f"transformer.h.{layer}."
        x = block(name, x, {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)})
    logits = norm(name, x, w["transformer.ln_f.weight"]) @ w["transformer.wte.weight"].T
    torch.testing.assert_close(gpt(idx)[0].detach(), logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_its_published_script_forward_and_backward(name: str, tmp_path: Path) -> None:
    (tmp_path / "entry.py").write_text(script(name))
    published: dict[str, Any] = {"__name__": "published"}
    exec(compile(script(name), "entry.py", "exec"), published)
    theirs = published["GPT"](published["GPTConfig"](**SHAPE))
    as_variant = ours(**VARIANTS[name].design)
    # the same script brought in as a candidate
    entry = tmp_path / "entry.py"
    as_candidate = ours(norm=f"{entry}:LayerNorm", block=f"{entry}:Block")
    theirs.load_state_dict(as_variant.state_dict())
    as_candidate.load_state_dict(as_variant.state_dict())
    idx = torch.randint(0, 96, (2, 25))
    _, expected = theirs(idx[:, :-1], idx[:, 1:])
    expected.backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    for gpt in (as_variant, as_candidate):
        _, loss = gpt(idx[:, :-1], idx[:, 1:])
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        largest = max(float(g.abs().max()) for g in gradients.values())
        for key, p in gpt.named_parameters():
            torch.testing.assert_close(p.grad, gradients[key], rtol=1e-6, atol=1e-6 * largest, msg=key)


def test_what_the_names_meant_before_has_names_of_its_own() -> None:
    assert variant_name(GPTConfig(norm="rmsnorm", block="post")) == "postnorm_rms"
    assert variant_name(GPTConfig(norm="rmsnorm", block="parallel")) == "parallel_two_norms_rms"
    assert len({str(variant.design) for variant in VARIANTS.values()}) == len(VARIANTS)
