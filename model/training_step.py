"""The training step, for designs that change over a run."""

import torch
from torch import nn


class TrainingStep(nn.Module):
    """The optimizer step that a model is at, one for all of its designs: `config.training_step`.

    A block or topology keeps it, `self.training_step = config.training_step`, and reads it in its forward:
    `self.training_step()`. What the forward makes of it is a pure function of the step, so that a run that is
    resumed, and a checkpoint that is evaluated, compute what the uninterrupted run did. It is no part of the
    model's state: `GPT.set_training_step` sets it before each step and after a checkpoint is loaded.

    Attributes:
        step: (1,) int64, which no conversion to another precision rounds.
    """

    step: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self) -> torch.Tensor:
        """The step, 0 for the first, as a 0-dim fp32 tensor: beside it activations keep their precision."""
        return self.step[0].float()

    def set(self, step: int) -> None:
        """Set it in place, so that compiled code sees it and nothing waits for the device."""
        self.step.fill_(step)
