"""GPTs of topologies over branches, and such topologies with weights large enough to show what they do."""

import torch

from model import GPT, GPTConfig
from model.norms import RMSNorm
from tests.tiny import TINIEST


def gpt_of(topology: str, block: str | None = None, n_layer: int = 3, **options) -> GPT:
    torch.manual_seed(0)
    block = block or ("bare" if topology == "residual" else "pre")
    return GPT(
        GPTConfig(**TINIEST | {"n_layer": n_layer}, block=block, topology=topology, topology_options=options)
    )


def randomised(topology: str, **options):
    """A topology with random weights in fp64, and its branches as functions; its RMSNorms have no eps."""
    gpt = gpt_of(topology, **options).double()
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    topology = gpt.transformer["topology"]
    for module in topology.modules():
        if isinstance(module, RMSNorm):
            module.eps = 0.0
    branches = [f for block in gpt.blocks for f in (block.attention_branch, block.mlp_branch)]
    return topology, branches
