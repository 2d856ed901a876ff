"""Candidate files: the classes that are asked for, what they need, and none of the training code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import GPT, GPTConfig, design_files, design_fingerprint, designs_of_file, variant_name
from model.designs import find_designs
from model.errors import UserError
from model.plugin import extract
from tests.tiny import TINY

OURS = ("LayerNorm", "CausalSelfAttention", "MLP", "GPTConfig")
SCRIPT = '''
"""A nanoGPT-derived training script: everything below the classes would train, or fail."""
from __future__ import annotations
import inspect
import math
import os
from contextlib import nullcontext
from dataclasses import dataclass

import no_such_package_for_training
import torch
import torch.nn as nn
from torch.nn import functional as F
from model import GPT, MLP
try:
    import no_such_kernels as kernels
    FUSED = True
except ImportError:
    FUSED = False
if torch.cuda.is_available():
    DEVICE_EPS = 1e-6
else:
    DEVICE_EPS = 1e-5

out_dir = 'out'
eval_interval = 2000
learning_rate = 6e-4 # max learning rate
GAIN = math.sqrt(2) / 2
config_keys = [k for k, v in globals().items() if not k.startswith('_')]
exec(open('configurator.py').read())
config = {k: globals()[k] for k in config_keys}

@dataclass
class GPTConfig:
    block_size: int = 1024
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    branch_scale: float = 0.5 # ours
    groups: tuple = (1, 2)

def rms(x, eps):  # the norm's statistic
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

class LayerNorm(nn.Module):
    """RMS norm with a smaller gain."""

    def __init__(self, ndim, bias):
        super().__init__()
        assert not FUSED
        self.weight = nn.Parameter(torch.full((ndim,), GAIN))

    def forward(self, input):
        return self.weight * input * rms(input, DEVICE_EPS)

class Block(nn.Module):

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.scale = config.branch_scale

    def forward(self, x):
        model = x + self.scale * self.attn(self.ln_1(x))
        return model + self.scale * self.mlp(self.ln_2(model))

def patched(self, x):
    return Block.plain_forward(self, x)

Block.plain_forward = Block.forward
Block.forward = patched

X, Y = get_batch('train')
model = GPT(config)
model.to('cuda')
while True:
    loss = model(X, Y)[1]
    loss.backward()
    break
if __name__ == '__main__':
    raise SystemExit('training')
'''


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "candidate.py").write_text(SCRIPT)
    return tmp_path / "candidate.py"


def names_of(part: ast.Module | list[ast.stmt]) -> set[str]:
    body = part.body if isinstance(part, ast.Module) else part
    return {getattr(statement, "name", "") for statement in body} - {""}


def test_a_nanogpt_scripts_training_code_never_runs(script: Path) -> None:
    design = designs_of_file(str(script))
    assert design == {"norm": f"{script}:LayerNorm", "block": f"{script}:Block"}
    gpt = GPT(GPTConfig(**TINY, **design))
    block = gpt.blocks[0]
    assert type(block.ln_1) is type(gpt.transformer["ln_f"]) or block.ln_1.weight[0] == 0.5**0.5
    assert type(block.attn).__module__ == "model.layers" and block.scale == 0.5
    x = torch.randn(2, 7, 32)
    norm = lambda x: 0.5**0.5 * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()  # noqa: E731
    half = x + 0.5 * block.attn(norm(x))
    torch.testing.assert_close(block(x), half + 0.5 * block.mlp(norm(half)), atol=1e-5, rtol=1e-5)
    assert variant_name(gpt.config) == "candidate"


def test_only_what_the_class_needs_is_taken_with_its_comments(script: Path) -> None:
    norm = extract(script, ["LayerNorm"], OURS)
    assert names_of(norm.body) == {"rms", "LayerNorm"} and norm.ours == set()
    assert "# the norm's statistic" in norm.source and "nullcontext" not in norm.source
    assert "inspect" not in norm.source and "GPT" not in norm.source
    block = extract(script, ["Block"], OURS)
    assert names_of(block.body) == {"rms", "LayerNorm", "Block", "patched"}
    assert block.ours == {"CausalSelfAttention", "MLP"}
    assert block.config_defaults["branch_scale"] == 0.5 and block.config_defaults["groups"] == (1, 2)
    assert "from model import" not in block.source
    compile(block.source, "design.py", "exec")


def test_the_fields_that_a_script_adds_to_the_config_have_its_defaults(script: Path) -> None:
    designs = find_designs(GPTConfig(**TINY, block=f"{script}:Block"))
    seen = []

    class Recorder(designs.block):  # type: ignore[name-defined]
        def __init__(self, config: object) -> None:
            seen.append(config)
            super().__init__(config)

    object.__setattr__(designs, "block", Recorder)
    designs.blocks(GPTConfig(**TINY))
    assert [(config.layer_idx, config.branch_scale, config.n_embd) for config in seen] == [
        (0, 0.5, 32),
        (1, 0.5, 32),
    ]


def test_the_fingerprint_is_the_designs_whatever_the_training_code(script: Path) -> None:
    config = GPTConfig(**TINY, **designs_of_file(str(script)))
    before = design_fingerprint(config)
    script.write_text(SCRIPT.replace("learning_rate = 6e-4", "learning_rate = 1e-3"))
    assert design_fingerprint(config) == before
    script.write_text(SCRIPT.replace("math.sqrt(2) / 2", "math.sqrt(2) / 3"))
    assert design_fingerprint(config) != before
    assert design_files(config) == {"norm": script, "block": script}
    assert design_fingerprint(GPTConfig()) is None


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "norm.py"
    for value in (2.0, 3.0):
        file.write_text(
            "import torch.nn as nn\nclass LayerNorm(nn.Module):\n    def __init__(self, ndim, bias):\n"
            f"        super().__init__()\n    def forward(self, x):\n        return x * {value}\n"
        )
        gpt = GPT(GPTConfig(**TINY, norm=f"{file}:LayerNorm"))
        assert gpt.transformer["ln_f"](torch.ones(3)).tolist() == [value] * 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("class Block(nn.Module:\n", r"candidate.py line 1 is not Python"),
        ("import torch\n", r"defines none of LayerNorm, Block, Topology"),
        (
            "import torch.nn as nn\nclass Block(nn.Module):\n"
            "    def forward(self, x):\n        return x * scale\n"
            "for scale in range(3):\n    print(scale)\n",
            r"line 2 uses 'scale', which the file does not define at its top level: only imports",
        ),
        (
            "import torch.nn as nn\nimport no_such_module\nclass Block(nn.Module):\n"
            "    width = no_such_module.WIDTH\n",
            r"candidate.py line 2 fails: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("class Block:\n    pass\n", r"which is no nn.Module"),
        (
            "import torch.nn as nn\nclass Block(nn.Module):\n    def __init__(self, config):\n"
            "        super().__init__()\n        self.width = config.no_such_field\n",
            r"cannot be built: AttributeError: .*no_such_field",
        ),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "candidate.py"
    file.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        GPT(GPTConfig(**TINY, **designs_of_file(str(file))))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_gets_one_sentence() -> None:
    with pytest.raises(UserError, match=r"model.variant is 'no/such.py', but there is no file"):
        designs_of_file("no/such.py")


def test_star_imports_and_globals_that_a_function_sets(tmp_path: Path) -> None:
    file = tmp_path / "candidate.py"
    file.write_text(
        "from torch.nn import *\nimport torch\ncalls = 0\n"
        "class LayerNorm(Module):\n    def __init__(self, ndim, bias):\n        super().__init__()\n"
        "        self.inner = Identity()\n    def forward(self, x):\n        global calls\n"
        "        calls += 1\n        return self.inner(x)\n"
    )
    gpt = GPT(GPTConfig(**TINY, **designs_of_file(str(file))))
    gpt(torch.zeros(1, 4, dtype=torch.long))
    module = sys.modules[type(gpt.transformer["ln_f"]).__module__]
    assert module.calls == 5


WITHOUT_TORCH = """
import sys
from typing import get_type_hints
from model import PRESETS, VARIANTS, GPTConfig, variant_name
from model import design_files, design_fingerprint, designs_of_file
from model.values import describe_type

config = GPTConfig(**PRESETS["gpt2_small"], **designs_of_file(sys.argv[1]))
assert variant_name(config) == "candidate" and variant_name(GPTConfig(**VARIANTS["lns"].design)) == "lns"
assert len(design_files(config)) == 2 and design_fingerprint(config)
assert describe_type(get_type_hints(GPTConfig)["n_layer"]) == "an integer"
import model.preflight
assert "torch" not in sys.modules
"""


def test_names_and_files_are_read_without_torch(script: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(script)], cwd=root, check=True, timeout=60)
