"""Each diagnostic against a plain recomputation in fp64, from the weights and the formulas alone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import GPT, VARIANTS, GPTConfig
from training.diagnostics.attention import statistics
from training.diagnostics.measure import measure
from training.diagnostics.table import Row

L, H, C, T, V = 2, 2, 16, 24, 64
SHAPE: dict[str, Any] = {"n_layer": L, "n_head": H, "n_embd": C, "block_size": T, "vocab_size": V}
EOT = 3
CANDIDATE = """
import torch
import torch.nn as nn
import torch.nn.functional as F

class Own(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=False)
    def forward(self, x):
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
        return self.out(y.transpose(1, 2).flatten(2))

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = LayerNorm(config.n_embd, bias=config.bias)
        self.mixer_attention = Own(config)
        self.up = nn.Linear(config.n_embd, config.n_embd)
        self.scale = nn.Parameter(torch.tensor(0.5))
    def forward(self, x):
        x = self.norm(x + self.scale * self.mixer_attention(x))
        return x + torch.tanh(self.up(x))
"""
Tensors = dict[str, torch.Tensor]
Values = dict[tuple[str, int, str], float]


def layer_norm(x: torch.Tensor, w: Tensors, name: str) -> torch.Tensor:
    return F.layer_norm(x, (C,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def rms_norm(x: torch.Tensor, w: Tensors, name: str) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, sees: torch.Tensor) -> Any:
    """Heads, logits and weights of q, k, v (B, T, C), head by head."""
    heads, logits, weights = [], [], []
    for a, b, c in zip(q.split(C // H, -1), k.split(C // H, -1), v.split(C // H, -1), strict=True):
        logit = (a @ b.mT * scale).masked_fill(~sees, -math.inf)
        logits.append(logit)
        weights.append(logit.softmax(-1))
        heads.append(weights[-1] @ c)
    return torch.cat(heads, -1), torch.stack(logits, 1), torch.stack(weights, 1)


def gpt2_sublayers(x: torch.Tensor, z: torch.Tensor, w: Tensors, b: str, sees: torch.Tensor) -> Any:
    """What attention makes of x, with its logits and weights, and a function for the MLP."""
    q, k, v = (x @ w[f"{b}.attn.c_attn.weight"].T + w[f"{b}.attn.c_attn.bias"]).chunk(3, -1)
    y, logits, weights = attend(q, k, v, (C // H) ** -0.5, sees)
    attended = y @ w[f"{b}.attn.c_proj.weight"].T + w[f"{b}.attn.c_proj.bias"]
    hidden = F.gelu(z @ w[f"{b}.mlp.c_fc.weight"].T + w[f"{b}.mlp.c_fc.bias"], approximate="tanh")
    return attended, hidden @ w[f"{b}.mlp.c_proj.weight"].T + w[f"{b}.mlp.c_proj.bias"], logits, weights


def vanilla(x: torch.Tensor, w: Tensors, b: str, sees: torch.Tensor) -> Any:
    attended, _, logits, weights = gpt2_sublayers(layer_norm(x, w, f"{b}.ln_1"), x, w, b, sees)
    y = x + attended
    _, made, _, _ = gpt2_sublayers(y, layer_norm(y, w, f"{b}.ln_2"), w, b, sees)
    return y + made, {"attn": (attended, x), "mlp": (made, y)}, ("attn", logits, weights)


def rms_parallel(x: torch.Tensor, w: Tensors, b: str, sees: torch.Tensor) -> Any:
    normed = rms_norm(x, w, f"{b}.ln_1")
    attended, made, logits, weights = gpt2_sublayers(normed, normed, w, b, sees)
    return x + attended + made, {"attn": (attended, x), "mlp": (made, x)}, ("attn", logits, weights)


def candidate(x: torch.Tensor, w: Tensors, b: str, sees: torch.Tensor) -> Any:
    q, k, v = (x @ w[f"{b}.mixer_attention.qkv.weight"].T).chunk(3, -1)
    y, logits, weights = attend(q, k, v, 0.3, sees)
    attended = y @ w[f"{b}.mixer_attention.out.weight"].T
    z = layer_norm(x + w[f"{b}.scale"] * attended, w, f"{b}.norm")
    out = z + torch.tanh(z @ w[f"{b}.up.weight"].T + w[f"{b}.up.bias"])
    return out, {"mixer_attention": (attended, x)}, ("mixer_attention", logits, weights)


def recomputed(
    gpt: GPT, block: Callable[..., Any], norm: Any, tokens: torch.Tensor, eot: int | None
) -> Values:
    """All values by (name, layer, part), in fp64."""
    w = {name: p.detach().double().requires_grad_() for name, p in gpt.named_parameters()}
    idx, targets = tokens[:, :-1], tokens[:, 1:]
    n = idx.shape[1]
    sees = torch.ones(len(idx), n, n, dtype=torch.bool).tril()
    if eot is not None:
        for row, mask in zip(idx.tolist(), sees, strict=True):
            for t in range(n):
                begins = max((s for s in range(t + 1) if row[s] == eot), default=0)
                mask[t, :begins] = False
    x = w["transformer.wte.weight"][idx] + w["transformer.wpe.weight"][:n]
    found: Values = {}
    stream, places = [x], []
    for layer in range(L):
        x, branches, (part, logits, weights) = block(x, w, f"transformer.h.{layer}", sees)
        branches[""] = (x - stream[-1], stream[-1])
        stream.append(x)
        places += [(layer, part, branch, h) for part, (branch, h) in branches.items()]
        per_row = torch.zeros(len(idx), H, n, dtype=torch.float64)
        sink = torch.zeros_like(per_row)
        for b in range(len(idx)):
            for t in range(n):
                seen = sees[b, t].nonzero()[:, 0]
                p = weights[b, :, t, seen]
                per_row[b, :, t] = -torch.xlogy(p, p).sum(-1)
                sink[b, :, t] = p[:, 0]
        several = sees.sum(-1) > 1
        share = torch.stack([per_row[:, h][several] / sees.sum(-1)[several].log() for h in range(H)])
        later = sink[:, :, n // 2 :].mean((0, 2))
        found |= {
            ("attn_entropy", layer, part): per_row.mean().item(),
            ("attn_entropy_min", layer, part): per_row.mean((0, 2)).min().item(),
            ("attn_entropy_share", layer, part): share.mean().item(),
            ("attn_logit_max", layer, part): logits.max().item(),
            ("attn_sink", layer, part): later.mean().item(),
            ("attn_sink_heads", layer, part): (later > 0.3).double().mean().item(),
        }
    losses = []
    for layer, h in enumerate(stream):
        logits = norm(h, w, "transformer.ln_f") @ w["transformer.wte.weight"].T
        losses.append(F.cross_entropy(logits.mT, targets, reduction="none"))
        found["lens_loss", layer, ""] = losses[-1][:, [3, 7, 11, 15, 19, 23]].mean().item()
    found["loss", L, ""] = losses[-1].mean().item()
    gradients = torch.autograd.grad(losses[-1].mean(), [*w.values(), *stream], allow_unused=True)
    squares: dict[tuple[int, str], float] = {}
    for name, gradient in zip(w, gradients, strict=False):
        words = name.split(".")
        if words[1] == "h":
            keys = [(int(words[2]), "")] + ([(int(words[2]), words[3])] if len(words) > 4 else [])
        else:
            keys = [(L, "head")] if words[1] == "ln_f" else [(0, "embedding")]
        for key in keys:
            squares[key] = squares.get(key, 0.0) + float((gradient**2).sum())
    found |= {("grad_norm", *key): math.sqrt(square) for key, square in squares.items()}
    for layer, (h, gradient) in enumerate(zip(stream, gradients[len(w) :], strict=True)):
        s = (h**2).mean((0, 1))
        sizes = sorted(h.abs().flatten().tolist())
        median = sizes[(len(sizes) - 1) // 2]
        found |= {
            ("resid_rms", layer, ""): (h**2).mean().sqrt().item(),
            ("kurtosis", layer, ""): ((s**2).mean() / s.mean() ** 2).item(),
            ("kurtosis_token", layer, ""): ((h**4).mean(-1) / (h**2).mean(-1) ** 2).mean().item(),
            ("massive_max", layer, ""): sizes[-1],
            ("massive_count", layer, ""): sum(1.0 for x in sizes if x > 100 and x > 1000 * median),
            ("massive_ratio", layer, ""): sizes[-1] / median,
            ("resid_grad_norm", layer, ""): (gradient**2).sum().sqrt().item(),
        }
        if layer < L:
            found["layer_cos", layer, ""] = F.cosine_similarity(h, stream[layer + 1], dim=-1).mean().item()
    for layer, part, branch, h in places:
        found["branch_ratio", layer, part] = ((branch**2).sum(-1) / (h**2).sum(-1)).sqrt().mean().item()
        found["branch_cos", layer, part] = F.cosine_similarity(branch, h, dim=-1).mean().item()
    return found


def values(rows: list[Row]) -> Values:
    found = {(row.name, row.layer, row.part): row.value for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module", params=["vanilla", "rmsnorm_parallel", "candidate"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with weights that show what they do, and the plain forms of its block and its norm."""
    if request.param == "candidate":
        path = tmp_path_factory.mktemp("design") / "own.py"
        path.write_text(CANDIDATE)
        design, plain = {"block": f"{path}:Block"}, (candidate, layer_norm)
    else:
        design = dict(VARIANTS[request.param].design)
        plain = {"vanilla": (vanilla, layer_norm), "rmsnorm_parallel": (rms_parallel, rms_norm)}[
            request.param
        ]
    torch.manual_seed(1)
    gpt = GPT(GPTConfig(**SHAPE | design, dropout=0.1))
    for parameter in gpt.parameters():
        nn.init.normal_(parameter, std=0.4)
    with torch.no_grad():  # one feature holds massive activations
        gpt.transformer["wpe"].weight[0, 5] = 2000.0
    return gpt, plain


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    made = torch.randint(4, V, (2, T + 1), generator=torch.Generator().manual_seed(2))
    made[0, 9] = made[1, 0] = made[1, 17] = EOT
    return made


def test_every_value_equals_its_formula_in_fp64(case: Any, tokens: torch.Tensor) -> None:
    gpt, (block, norm) = case
    # the candidate's attention keeps no documents apart, so that no run has it with a document mask
    for eot in (None,) if block is candidate else (None, EOT):
        found, expected = values(measure(gpt, tokens, eot)), recomputed(gpt, block, norm, tokens, eot)
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5), eot
        assert expected["massive_count", 0, ""] > 0


def test_the_lens_of_the_last_layer_is_the_loss(case: Any, tokens: torch.Tensor) -> None:
    gpt, _ = case
    gpt.eval()
    _, losses = gpt(tokens[:, :-1], tokens[:, 1:], "none")
    found = values(measure(gpt, tokens))
    assert found["lens_loss", L, ""] == pytest.approx(losses[:, 3::4].mean().item(), abs=1e-5)
    assert found["loss", L, ""] == pytest.approx(losses.mean().item(), abs=1e-5)


def test_uniform_attention_has_the_entropy_of_what_it_sees() -> None:
    sees = torch.ones(1, 2, 128, 128, dtype=torch.bool).tril()
    found = statistics(torch.zeros(1, 2, 128, 128), sees)
    logs = [math.log(t + 1) for t in range(128)]
    assert found["attn_entropy"] == pytest.approx(sum(logs) / 128, rel=1e-6)
    assert found["attn_entropy_share"] == pytest.approx(1.0, rel=1e-6)
    assert found["attn_sink"] == pytest.approx(sum(1 / (t + 1) for t in range(64, 128)) / 64, rel=1e-6)
    assert found["attn_sink_heads"] == 0.0 and found["attn_logit_max"] == 0.0


def test_measuring_leaves_the_model_as_it_was(case: Any, tokens: torch.Tensor) -> None:
    gpt, _ = case
    gpt.train()
    for parameter in gpt.parameters():
        parameter.grad = torch.ones_like(parameter)
    attributes = [sorted(vars(module)) for module in gpt.modules()]
    random = torch.get_rng_state()
    measure(gpt, tokens, EOT)
    with pytest.raises(IndexError):
        measure(gpt, tokens + V)
    assert gpt.training and torch.equal(torch.get_rng_state(), random)
    assert [sorted(vars(module)) for module in gpt.modules()] == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in gpt.modules())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in gpt.parameters() if p.grad is not None)
    gpt.zero_grad()
