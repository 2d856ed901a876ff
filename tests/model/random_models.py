"""Models with weights large enough to show what they do."""

from typing import Any

import torch
from torch import nn

from model import GPT, GPTConfig
from tests.tiny import THREE_LAYERS


def with_random_weights(model: Any) -> Any:
    for parameter in model.parameters():  # biases and gains start at 0 and 1, where mistakes would not show
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def our_gpt(**design: Any) -> GPT:
    torch.manual_seed(0)
    return with_random_weights(GPT(GPTConfig(**THREE_LAYERS | design)))
