"""Diagnostics of every design: all of the catalogue's, blocks taken apart, several streams, odd blocks."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model import GPT, VARIANTS, GPTConfig
from tests.own_designs import DESIGNS
from tests.tiny import THREE_LAYERS
from training.diagnostics.measure import measure
from training.diagnostics.plain_copy import PlainCopy
from training.diagnostics.recorder import fixed_batch

L = THREE_LAYERS["n_layer"]
TAKEN_APART = (
    "residual",
    "attention_residuals",
    "hyper_connections",
    "identity_connections",
    "mhc",
    "mhc_lite",
)
"""Topologies that call the branches of a block, and no block as a whole."""
TWICE = """
import torch.nn as nn

class Topology(nn.Module):
    def __init__(self, config, blocks):
        super().__init__()
        self.blocks = list(blocks)
    def forward(self, x):
        for block in (*self.blocks, self.blocks[1]):
            x = block(x)
        return x
"""


HOLDS_ITSELF = """
import torch
import torch.nn as nn

class LayerNorm(nn.LayerNorm):
    def __init__(self, ndim, bias):
        super().__init__(ndim, bias=bias)
        self.scaled = lambda x: x * self.weight
    def forward(self, x):
        return self.scaled(super().forward(x))
"""


def model(**design: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**THREE_LAYERS | design))


def tokens() -> torch.Tensor:
    return torch.randint(0, 512, (2, 25), generator=torch.Generator().manual_seed(1))


def counts(gpt: GPT) -> Counter[str]:
    return Counter(row.name for row in measure(gpt, tokens()))


def test_every_variant_of_the_catalogue_has_every_value() -> None:
    for name, variant in VARIANTS.items():
        found = counts(model(**variant.design))
        for of_stream in ("resid_rms", "lens_loss", "kurtosis", "massive_max", "resid_grad_norm"):
            assert found[of_stream] == L + 1, (name, of_stream)
        assert found["layer_cos"] == found["attn_entropy"] == found["attn_sink"] == L, name
        whole = 0 if variant.topology in TAKEN_APART else 1
        assert found["branch_ratio"] == (2 + whole) * L, name


@pytest.mark.parametrize("topology", ["hyper_connections", "identity_connections", "residual", "denseformer"])
def test_a_topology_that_begins_as_the_chain_has_the_chains_values(topology: str) -> None:
    """Hyper-connections begin with equal streams, whose mean is the chain's; ResiDual does not."""
    names = ("resid_rms", "resid_grad_norm", "kurtosis", "lens_loss", "branch_ratio", "attn_entropy")
    values = []
    for chosen in ("chain", topology):
        rows = measure(model(topology=chosen), tokens())
        values.append({row[:3]: row.value for row in rows if row.name in names})
    shared = values[0].keys() & values[1].keys()
    assert len(shared) >= 5 * L
    same = {key: values[0][key] for key in shared} == pytest.approx(
        {key: values[1][key] for key in shared}, rel=1e-4
    )
    assert same == (topology != "residual")


def test_streams_that_differ_are_measured_by_their_mean() -> None:
    gpt = model(topology="hyper_connections")
    connections = gpt.transformer["topology"].connections
    for connection in connections:
        nn.init.normal_(connection.depth)
        nn.init.normal_(connection.width)
    seen: list[torch.Tensor] = []
    handles = [c.register_forward_pre_hook(lambda m, a: seen.append(a[0])) for c in connections]
    rows = {row[:3]: row.value for row in measure(gpt, tokens())}
    for handle in handles:
        handle.remove()
    assert len(seen) == 2 * L
    for layer in range(1, L):
        h = sum(seen[2 * layer].unbind(2)) / 4
        assert rows["resid_rms", layer, ""] == pytest.approx(h.square().mean().sqrt().item(), rel=1e-5)
        assert not torch.allclose(seen[2 * layer][:, :, 0], h, rtol=0.1)


def test_own_designs_are_measured_as_far_as_they_show_themselves(tmp_path: Path) -> None:
    for name, text in DESIGNS.items():
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        plug = {"block": f"{path}:Block"} if "class Block" in text else {"norm": f"{path}:LayerNorm"}
        rows = measure(model(**plug), tokens())
        found = {(row.name, row.part) for row in rows}
        assert {("branch_ratio", ""), ("branch_ratio", "attn"), ("attn_entropy", "attn")} < found, name
        assert {("grad_norm", ""), ("grad_norm", "ln_1"), ("lens_loss", "")} < found, name
        assert (("branch_ratio", "mlp") in found) == (name != "own_experts"), name


def test_a_block_that_is_called_twice_has_no_stream(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(TWICE)
    rows = measure(model(topology=f"{tmp_path / 'twice.py'}:Topology"), tokens())
    for name, layers in (("resid_rms", {0, 2, 3}), ("attn_entropy", {0, 2}), ("grad_norm", {0, 1, 2, 3})):
        assert {row.layer for row in rows if row.name == name} == layers
    # h_0 and h_2 are no neighbours
    assert {row.layer for row in rows if row.name == "layer_cos"} == {2}


def test_a_copy_that_would_use_the_trained_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HOLDS_ITSELF)
    with pytest.raises(TypeError, match=r"transformer.h.0.ln_1 keeps a function around the trained model"):
        PlainCopy(model(norm=f"{tmp_path / 'held.py'}:LayerNorm"))
    assert PlainCopy(model()).size == model().num_parameters()


def test_what_is_not_finite_is_absent_and_not_0() -> None:
    gpt = model()
    with torch.no_grad():
        gpt.blocks[1].attn.c_attn.weight[0, 0] = torch.nan
    rows = measure(gpt, tokens())
    assert all(math.isfinite(row.value) for row in rows)
    layers = {name: {row.layer for row in rows if row.name == name} for name in {row.name for row in rows}}
    for name in ("resid_rms", "massive_count", "kurtosis", "lens_loss"):
        assert layers[name] == {0, 1}, name
    for name in ("attn_entropy", "attn_sink_heads", "attn_logit_max"):
        assert layers[name] == {0}, name
    assert layers["layer_cos"] == {0} and "loss" not in layers
    assert {(row.layer, row.part) for row in rows if row.name == "branch_cos"} == {
        (0, ""), (0, "attn"), (0, "mlp"),
    }  # fmt: skip


def test_the_batch_is_the_beginning_of_the_validation_set() -> None:
    class Validation:
        def __init__(self, count: int) -> None:
            self.tokens = torch.arange(count).numpy().astype("uint16")

    def rows(count: int) -> list[list[int]]:
        return fixed_batch(Validation(count), 4).tolist()  # type: ignore[arg-type]

    assert rows(30) == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert rows(8) == [[0, 1, 2, 3, 4]] and rows(4) == [[0, 1, 2, 3]]
