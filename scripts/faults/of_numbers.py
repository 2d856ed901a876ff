"""Faults of numbers: a value that is not finite in one layer, and a loss that spikes."""

from .table import Fault, Scene, Seen

LAYER = 1
NAN_STEP, SPIKE_STEP = 25, 140
"""A spike is told from the forty losses before it, which must not fall any more."""
BLOCK = """
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
        is_now = self.training and self.layer == LAYER and int(self.training_step()) + 1 == STEP
        return FAULT if is_now else x
"""


def with_block(scene: Scene, step: int, fault: str, *options: str) -> Seen:
    """The run with a block whose output at layer LAYER in a step is `fault`."""
    design = scene.bench.folder / "faulty.py"
    code = BLOCK
    for name, value in {"LAYER": LAYER, "STEP": step, "FAULT": fault}.items():
        code = code.replace(name, str(value))
    design.write_text(code)
    length = ["--train.steps", str(step + 5), "--train.val_every", "20"]
    return scene.end(scene.start(*length, "--model.block", f"{design}:Block", *options))


def nan_in_a_layer(scene: Scene) -> Seen:
    return with_block(scene, NAN_STEP, "x * float('nan')", "--train.on_divergence", "stop")


def nan_rolled_back(scene: Scene) -> Seen:
    """It comes again at the same step, whatever the batch: the second time is one too many."""
    policy = ["--train.on_divergence", "rollback", "--train.max_rollbacks", "1"]
    return with_block(scene, NAN_STEP, "x * float('nan')", *policy)


def spike(scene: Scene) -> Seen:
    return with_block(scene, SPIKE_STEP, "x.flip(-1) * 8")


NAMED = rf"diverged at step {NAN_STEP}\b.*h\.{LAYER}\b"
BACK = rf"step {NAN_STEP}: .*back to step 24"
FAULTS = (
    Fault("NaN at layer 1", 60, (3,), "diverged", NAMED, "", nan_in_a_layer),
    Fault("NaN rolled back once", 60, (3,), "diverged", BACK, "", nan_rolled_back),
    Fault("spike", 60, (0,), "finished", rf"step {SPIKE_STEP}: .*is a spike", "", spike),
)
