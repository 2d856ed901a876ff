"""Jobs with a batch that breaks a model: a design that gives NaN for one marked sequence, at one layer."""

from pathlib import Path
from typing import Any

import torch

import data
import training
from training.config.command_line import COMMAND  # noqa: F401

BLOCK = """
import sys
import torch

class Marked(Block):
    made = 0

    def __init__(self, config):
        super().__init__(config)
        self.layer, Marked.made = Marked.made % config.n_layer, Marked.made + 1

    def forward(self, x):
        x = super().forward(x)
        frame = sys._getframe()
        while "idx" not in frame.f_locals:
            frame = frame.f_back
        marked = torch.tensor({marks})
        hit = (frame.f_locals["idx"][:, None, :8] == marked).all(-1).any() and self.training
        return x * {factor} if self.layer == {layer} and hit else x
"""
