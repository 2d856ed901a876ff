"""Rows of several documents, and a GPT that they show something of."""

import torch

from model import GPT, GPTConfig
from tests.tiny import TINY

SHAPE = TINY | {"block_size": 48}
# Rows of 48 tokens; documents may be one token long, and their numbers say nothing but which is which.
DOCUMENTS = torch.stack(
    [
        torch.tensor([7] * 10 + [3] * 25 + [4] * 13),
        torch.tensor([0] + [1] * 46 + [2]),
    ]
)


def gpt_of(**settings) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**SHAPE, **settings))
    for parameter in gpt.parameters():  # GPT-2's small weights would hide what flows between tokens
        torch.nn.init.normal_(parameter, std=0.2)
    return gpt


def tokens() -> torch.Tensor:
    return torch.randint(0, 64, DOCUMENTS.shape)
