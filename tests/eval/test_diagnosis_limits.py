"""What a diagnosis says of designs that do not do what a measure takes for granted."""

from pathlib import Path

import pytest

from eval.diagnosis.measures import Diagnosis
from model import GPT
from model.errors import UserError
from tests.eval.test_diagnosis import N_LAYER, diagnosed, model_of, plain_loss, values, without_block

HEAD = """
import torch
from torch import nn

class Topology(nn.Module):
    def __init__(self, config, blocks):
        super().__init__()
        self.blocks = list(blocks)
"""
ADDS_THE_INPUT = """
    def forward(self, x):
        for block in self.blocks:
            x = x + block.mlp_branch(block.ln_1(x)) if CALLED_APART else x + block(x)
        return x
"""
MIXES = """
    def forward(self, x):
        first = x
        for block in self.blocks:
            x = 0.5 * block(x) + 0.25 * first
        return x
"""


def own(tmp_path: Path, text: str) -> GPT:
    (tmp_path / "topology.py").write_text(HEAD + text)
    return model_of(topology=f"{tmp_path / 'topology.py'}:Topology")


def names(found: Diagnosis) -> set[str]:
    return {row.name for row in found.rows}


def test_a_block_whose_input_is_added_to_it_is_left_out_as_zeros(tmp_path: Path) -> None:
    gpt = own(tmp_path, ADDS_THE_INPUT.replace("CALLED_APART", "False"))
    found, loss = diagnosed(gpt), plain_loss(gpt)
    costs = [plain_loss(without_block(gpt, layer)) - loss for layer in range(N_LAYER)]
    assert values(found, "layer_drop") == pytest.approx(costs, abs=1e-12)
    assert not found.notes()


def test_blocks_joined_in_an_unknown_way_are_not_left_out(tmp_path: Path) -> None:
    found = diagnosed(own(tmp_path, MIXES))
    assert not values(found, "layer_drop") and len(values(found, "layer_drop", "attn")) == N_LAYER
    assert not values(found, "effective_depth", "layer_drop")
    assert found.notes() == [
        "layer_drop of layers 0, 1, 2 is absent: its topology joins blocks in a way that leaves open what a "
        "block without effect is"
    ]


def test_blocks_that_are_called_in_parts_have_no_streams_and_no_costs(tmp_path: Path) -> None:
    found = diagnosed(own(tmp_path, ADDS_THE_INPUT.replace("CALLED_APART", "True")))
    assert names(found) == {"loss", "quant_gap", "layer_drop"}
    assert len(values(found, "layer_drop", "mlp")) == N_LAYER and not values(found, "layer_drop", "attn")
    absent = {note.partition(":")[0]: note for note in found.notes()}
    assert "what enters block 0 is not one tensor" in next(absent[key] for key in absent if "cka" in key)
    assert "the topology does not call it" in absent["layer_drop of layers 0, 1, 2 is absent"]


def test_a_layer_that_others_need_is_not_left_out() -> None:
    found = diagnosed(model_of(block="value_residual"))
    assert len(values(found, "layer_drop")) == N_LAYER - 1
    assert (
        "layer_drop of layer 0 is absent: the design fails then (KeyError: 'first_values')" in found.notes()
    )


def test_a_topology_with_an_end_of_its_own_has_no_lens() -> None:
    found = diagnosed(model_of(topology="residual", block="bare"))
    assert not values(found, "lens_kl") and values(found, "cka")
    assert [note.partition(":")[0] for note in found.notes()] == ["lens_kl is absent"]


def test_a_model_without_linear_layers_has_no_quantisation_gap(tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(
        "from torch import nn\n\nclass Block(nn.Module):\n    def __init__(self, config):\n"
        "        super().__init__()\n        self.ln = nn.LayerNorm(config.n_embd)\n"
        "    def forward(self, x):\n        return x + self.ln(x.cumsum(1))\n"
    )
    found = diagnosed(model_of(block=f"{tmp_path / 'block.py'}:Block"))
    assert not values(found, "quant_gap", "per_token")
    assert "quant_gap is absent: no part of the model before its head is a linear layer of torch" in (
        found.notes()
    )


def test_weights_without_a_loss_are_refused() -> None:
    gpt = model_of()
    gpt.blocks[1].mlp.c_proj.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="the loss of these weights is nan: choose a checkpoint from before"):
        diagnosed(gpt)
