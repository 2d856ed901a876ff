"""Faults of numbers: a value that is not finite in one layer, and a loss that spikes."""

from .table import Fault, Scene, Seen

LAYER, STEP, STEPS = 1, 50, 60
"""Where and when; late enough for what a spike is compared with, the losses of forty steps."""
BLOCK = f"""
import torch.nn as nn

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.training_step, self.layer = config.training_step, config.layer_idx
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        is_now = self.training and self.layer == {LAYER} and int(self.training_step()) == {STEP - 1}
        return FAULT if is_now else x
"""


def with_block(scene: Scene, fault: str, *options: str) -> Seen:
    """The run with a block whose output at layer LAYER in step STEP is `fault`."""
    design = scene.bench.folder / "faulty.py"
    design.write_text(BLOCK.replace("FAULT", fault))
    return scene.end(scene.start("--model.block", f"{design}:Block", *options, "--train.steps", str(STEPS)))


def nan_in_a_layer(scene: Scene) -> Seen:
    return with_block(scene, "x * float('nan')", "--train.on_divergence", "stop")


def nan_rolled_back(scene: Scene) -> Seen:
    return with_block(
        scene, "x * float('nan')", "--train.on_divergence", "rollback", "--train.max_rollbacks", "1"
    )


def spike(scene: Scene) -> Seen:
    return with_block(scene, "x.flip(-1) * 8")


FAULTS = (
    Fault(
        "NaN at layer 1", 60, 3, "diverged", rf"step {STEP}\D.*(layer {LAYER}|h\.{LAYER})", "", nan_in_a_layer
    ),
    Fault(
        "NaN at layer 1, rolled back",
        60,
        3,
        "diverged",
        r"(?i)rollback|rolled back|goes back",
        "",
        nan_rolled_back,
    ),
    Fault("spike", 60, 0, "finished", r"is a spike", "", spike),
)
