"""Every variant but GPT-2 as a folder that transformers loads where there is no NormLab."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from model import GPT, VARIANTS, from_hf, to_hf, variant_name
from model.designs import REGISTERED
from model.errors import UserError
from tests.model.random_models import our_gpt

CANDIDATE = '''
"""A nanoGPT script."""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
from model import BlockConfig, GPTConfig as Theirs
from model.blocks import ResidualBlock

START = 0.5  # of the gain

@dataclass
class GPTConfig:
    block_size: int = 1024
    gate: float = 0.25

def mix(x, y, gate):
    """A helper."""
    return x + gate * y

class LayerNorm(nn.Module):
    def __init__(self, ndim, bias, *, power: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((ndim,), START))
        self.power = power
        self.register_buffer("table", torch.linspace(1, 2, ndim), persistent=False)
        self.constant = torch.tensor(1.5)

    def forward(self, x):
        return x * self.weight * (self.table * self.power / self.constant).to(x.dtype)

class Block(nn.Module):
    def __init__(self, config: BlockConfig):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.gate = config.gate

    def forward(self, x):
        return mix(x, self.attn(self.ln_1(x)), self.gate)

dataset = load("a file that is not there")
'''
BRANCHES = """
import torch.nn as nn
from model.blocks import ResidualBlock

class Branches(ResidualBlock):  # its LayerNorm is the chosen norm
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.ln_2 = (LayerNorm(config.n_embd, bias=config.bias) for _ in range(2))
        self.attn, self.mlp = CausalSelfAttention(config), MLP(config)

    def attention_branch(self, x):
        return self.attn(self.ln_1(x))

    def mlp_branch(self, x):
        return self.mlp(self.ln_2(x))
"""
SHARED = """
import torch.nn as nn

try:
    import no_such_kernel
except ImportError:
    no_such_kernel = None

mlps = {}

class Shared(nn.Module):  # one MLP for all layers
    def __init__(self, config):
        super().__init__()
        if config.layer_idx == 0:
            mlps[0] = MLP(config)
        self.mlp = mlps[0]
        self.kernel = no_such_kernel

    def forward(self, x):
        return x + self.mlp(x)
"""
LOAD = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging
logging.disable_progress_bar()

for folder in sorted(Path(sys.argv[1]).iterdir()):
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True)
    assert not any(loading.values()), (folder.name, loading)
    model.eval()
    expected = torch.load(folder / "expected.pt")
    idx = expected["idx"]
    out = model(input_ids=idx, labels=idx)
    for name in ("logits", "loss"):
        torch.testing.assert_close(out[name], expected[name], atol=1e-5, rtol=1e-5, msg=folder.name + name)
    text = model.generate(idx[:, :4], attention_mask=torch.ones(2, 4), max_new_tokens=3, do_sample=False)
    assert text.shape == (2, 7)
    if (folder / "first").exists():  # loaded, saved again, and loaded
        half = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
        assert half.dtype == torch.bfloat16 and half(input_ids=idx).logits.dtype == torch.bfloat16
        model.save_pretrained(sys.argv[2])
        again = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True).eval()
        assert torch.equal(again(input_ids=idx).logits, out.logits)
assert "model" not in sys.modules and not any(name.startswith("model.") for name in sys.modules)
"""


def load_elsewhere(folder: Path, tmp_path: Path) -> None:
    """Load all folders of `folder` in a process that does not find NormLab."""
    (tmp_path / "elsewhere").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, str(folder), str(tmp_path / "again")],
        cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def export(gpt: GPT, folder: Path) -> None:
    """Write a model with what it says; it must come back as it went, and go out again."""
    before = to_hf(gpt, folder.parent.parent / "before" / folder.name)
    to_hf(from_hf(before).eval(), folder)
    idx = torch.randint(0, gpt.config.vocab_size, (2, 30))
    with torch.no_grad():
        (logits, _), (_, loss) = gpt(idx), gpt(idx[:, :-1], idx[:, 1:])
        torch.testing.assert_close(from_hf(folder).eval()(idx)[0], logits)
    torch.save({"idx": idx, "logits": logits, "loss": loss}, folder / "expected.pt")


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A folder on the path with candidate files and a package."""
    folder = tmp_path / "files"
    (folder / "mine").mkdir(parents=True)
    (folder / "candidate.py").write_text(CANDIDATE)
    (folder / "branches.py").write_text(BRANCHES)
    (folder / "shared.py").write_text(SHARED)
    (folder / "mine" / "__init__.py").write_text("from .norms import Scale\n")
    (folder / "mine" / "norms.py").write_text(
        "import torch\n\nfrom mine.helper import twice\n\nclass Scale(torch.nn.Module):\n"
        "    def __init__(self, ndim, bias):\n        super().__init__()\n        self.ndim = twice(ndim)\n\n"
        "class Half(torch.nn.Module):\n    def __init__(self, ndim, bias):\n        super().__init__()\n\n"
        "    def forward(self, x):\n        return x / 2\n"
    )
    (folder / "lab.py").write_text(
        "from model.huggingface import to_hf\nfrom torch import nn\n\n"
        "class Norm(nn.Identity):\n    export = to_hf\n"
    )
    (folder / "mine" / "helper.py").write_text("def twice(n):\n    return 2 * n\n")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_variants_load_where_there_is_no_normlab(files: Path, tmp_path: Path) -> None:
    candidate, branches = files / "candidate.py", files / "branches.py"
    designs: dict[str, dict[str, Any]] = {
        "rmsnorm": {"norm": "rmsnorm"},
        "without_biases": {"bias": False},
        "options": {"norm": "rmsnorm", "norm_options": {"gain": "one_plus", "eps": 1e-3}, "qk_norm": "head"},
        "parallel": {"block": "parallel", "block_options": {"shared_norm": True}},
        "candidate": {"norm": f"{candidate}:LayerNorm", "block": f"{candidate}:Block"},
        "branches": {"norm": "rmsnorm", "norm_options": {"eps": 1e-3}, "block": f"{branches}:Branches"},
        "both": {
            "norm": f"{candidate}:LayerNorm",
            "norm_options": {"power": 2.0},
            "block": f"{branches}:Branches",
        },
        "shared": {"block": f"{files / 'shared.py'}:Shared"},
        "module": {"norm": "mine.norms:Half", "block": "model.blocks:PostNormBlock"},
    }
    others = [name for name in REGISTERED["topology"] if name != "chain"]
    designs |= {f"topology_{name}": {"topology": name} for name in others[:1]}
    for name, design in designs.items():
        export(our_gpt(**design), tmp_path / "out" / name)
    (tmp_path / "out" / "candidate" / "first").touch()
    for path in (candidate, branches):
        path.unlink()
    load_elsewhere(tmp_path / "out", tmp_path)


@pytest.mark.slow
def test_every_variant_loads_where_there_is_no_normlab(tmp_path: Path) -> None:
    for name, variant in VARIANTS.items():
        export(our_gpt(**variant.design, n_layer=4), tmp_path / "out" / name)
        back = from_hf(tmp_path / "out" / name)
        assert variant_name(back.config) == name
    load_elsewhere(tmp_path / "out", tmp_path)


def test_the_exported_design_is_readable(files: Path, tmp_path: Path) -> None:
    folder = to_hf(
        our_gpt(norm="rmsnorm", norm_options={"eps": 1e-3}, block=f"{files / 'branches.py'}:Branches"),
        tmp_path,
    )
    block = (folder / "design_block.py").read_text()
    assert "from .blocks import ResidualBlock\n" in block and "from .chosen_norm import LayerNorm\n" in block
    assert BRANCHES.partition("\n\n")[2] in block
    assert str(files) not in "".join(file.read_text() for file in folder.glob("*.[pj]*"))
    chosen = (folder / "chosen_norm.py").read_text()
    assert 'with_options("model.norm_options", REGISTERED["norm"]["rmsnorm"], 2, {\'eps\': 0.001})' in chosen


@pytest.mark.parametrize(
    ("norm", "sentence"),
    [
        ("mine.norms:Scale", "norms.py is not self-contained: 'from mine.helper import twice' finds nothing"),
        ("mine:Scale", "__init__.py does not define the class itself"),
        ("mine/norms.py:Scale", "norms.py is not self-contained: 'from mine.helper import twice'"),
        ("lab.py:Norm", "lab.py is not self-contained: 'from model.huggingface import to_hf'"),
    ],
)
def test_a_design_that_needs_other_files_is_not_exported(
    files, tmp_path, monkeypatch, norm, sentence
) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(UserError, match=f"^model.norm '{norm}' is not exported: .*{sentence}") as caught:
        to_hf(our_gpt(norm=norm), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory) -> tuple[Any, GPT]:
    """A variant as transformers loads it, and as ours."""
    gpt = our_gpt(norm="rmsnorm", block="post")
    folder = to_hf(gpt, tmp_path_factory.mktemp("wrapped") / "rmsnorm_post")
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval(), gpt


def test_padding_on_either_side_changes_nothing(wrapped) -> None:
    model, gpt = wrapped
    idx = torch.randint(0, 512, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    mask[1, 9:] = 0
    logits = model(input_ids=idx, attention_mask=mask).logits
    torch.testing.assert_close(logits[0, 5:], gpt(idx[:1, 5:])[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1, :9], gpt(idx[1:, :9])[0][0], atol=1e-5, rtol=1e-5)
    labels = idx.masked_fill(mask == 0, -100)
    labels[0, 5] = -100  # as in transformers, a text's first token would be predicted from the padding
    one, two = (gpt(x[:, :-1], x[:, 1:], reduction="none")[1].sum() for x in (idx[:1, 5:], idx[1:, :9]))
    loss = model(input_ids=idx, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(loss, (one + two) / (6 + 8), atol=1e-4, rtol=1e-4)
    mask[0, 8] = 0
    with pytest.raises(ValueError, match="padding inside a text"):
        model(input_ids=idx, attention_mask=mask)


@pytest.mark.parametrize("use_cache", [False, True])
def test_generation_follows_the_logits(wrapped, use_cache: bool) -> None:
    model, gpt = wrapped
    idx = torch.randint(0, 512, (1, 6))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), idx], 1)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    settings = {"max_new_tokens": 5, "do_sample": False, "use_cache": use_cache, "eos_token_id": None}
    text = model.generate(padded, attention_mask=mask, **settings)[:, 3:]
    for _ in range(5):
        idx = torch.cat([idx, gpt(idx)[0][:, -1:].argmax(-1)], 1)
    assert text.tolist() == idx.tolist()


def test_the_loaded_module_comes_back_and_its_head_is_tied(wrapped, tmp_path) -> None:
    model, gpt = wrapped
    idx = torch.randint(0, 512, (1, 6))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert torch.equal(from_hf(model).eval()(idx)[0], gpt(idx)[0])
    model.save_pretrained(tmp_path)
    assert "gpt.lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(from_hf(tmp_path).eval()(idx)[0], gpt(idx)[0])
