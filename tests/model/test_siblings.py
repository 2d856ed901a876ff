"""A design is one file and the files beside it: found, loaded, fingerprinted, kept and exported."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from model import GPT, GPTConfig, design_fingerprint, designs_of_file, files_to_keep, to_hf
from model.errors import UserError
from model.plug_points import kept_design
from tests.tiny import TINY
from training.run.folder import RunFolder

NORMS = """
import torch
from torch import nn
from consts import {constant} as size

class RMSNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.full((ndim,), size))

    def forward(self, x):
        return x * self.weight

class Unused(nn.Module):
    pass

print("a helper of three lines")
raise SystemExit("this is training code")
"""
CONSTS = "SIZE = float(print('said once') or 3.0)\nprint('never run')\nOTHER = 5.0\n"
CANDIDATE = """
from .norms import RMSNorm
import consts
from . import consts as same

class LayerNorm(RMSNorm):
    pass

class Block(LayerNorm):
    def __init__(self, config):
        super().__init__(config.n_embd, config.bias)
        from .blocks import twice
        self.mlp, self.twice = MLP(config), twice
        assert consts is same and consts.OTHER == 5.0

    def forward(self, x):
        return x + self.twice(self.mlp(x))
"""
BLOCKS = "from model import GPT\ndef twice(x):\n    return 2 * x\nlearning_rate = 1\n"


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    """A file with siblings, two of which are called as modules of NormLab are."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "norms.py").write_text(NORMS.format(constant="SIZE"))
    (folder / "consts.py").write_text(CONSTS)
    (folder / "blocks.py").write_text(BLOCKS)
    (folder / "candidate.py").write_text(CANDIDATE)
    return folder / "candidate.py"


def config_of(path: Path) -> GPTConfig:
    return GPTConfig(**TINY, **designs_of_file(str(path)))


def test_siblings_win_over_normlabs_modules_of_their_names(candidate: Path) -> None:
    gpt, x = GPT(config_of(candidate)), torch.randn(2, 5, 32)
    assert torch.equal(gpt.transformer["ln_f"](x), 3.0 * x)
    block = gpt.blocks[0]
    assert torch.equal(block(x), x + 2 * block.mlp(x)) and type(block.mlp).__module__ == "model.layers"


def test_what_a_sibling_prints_is_said_once(candidate: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (candidate.parent / "consts.py").write_text(CONSTS.replace("once", str(candidate)))
    for _ in range(3):
        GPT(config_of(candidate))
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert f"candidate.py prints as it is loaded: said {candidate}\n" in captured.err


def test_the_fingerprint_is_of_what_siblings_give_too(candidate: Path) -> None:
    norms, first = candidate.parent / "norms.py", design_fingerprint(config_of(candidate))
    norms.write_text(norms.read_text() + "\nlearning_rate = 3\n")
    assert design_fingerprint(config_of(candidate)) == first
    norms.write_text(NORMS.format(constant="OTHER"))
    assert design_fingerprint(config_of(candidate)) != first
    assert torch.equal(GPT(config_of(candidate)).transformer["ln_f"].weight, torch.full((32,), 5.0))


def test_a_run_keeps_all_files_and_builds_from_them(candidate: Path, tmp_path: Path) -> None:
    config, run = config_of(candidate), RunFolder(tmp_path / "run", 0)
    (tmp_path / "run" / "designs").mkdir(parents=True)
    (tmp_path / "run" / "designs" / "norm.py").write_text("of a start before this one")
    run.keep_designs(files_to_keep(config))
    kept = {file.relative_to(run.path).as_posix() for file in run.path.rglob("*.py")}
    assert kept == {
        *(f"designs/norm/{name}.py" for name in ("candidate", "norms", "consts")),
        *(f"designs/block/{name}.py" for name in ("candidate", "norms", "consts", "blocks")),
    }
    for file in candidate.parent.glob("*.py"):
        file.unlink()
    names = {
        plug: kept_design(run.path / "designs", plug, getattr(config, plug)) for plug in ("norm", "block")
    }
    gpt = GPT(GPTConfig(**TINY, **names))
    assert torch.equal(gpt.transformer["ln_f"].weight, torch.full((32,), 3.0))


def test_an_export_holds_the_siblings_and_can_be_a_design_again(candidate: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    gpt = GPT(config_of(candidate)).eval()
    folder, idx = to_hf(gpt, tmp_path / "out"), torch.randint(0, 64, (1, 9))
    for file in candidate.parent.glob("*.py"):
        file.unlink()
    expected = gpt(idx)[0]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(model(input_ids=idx).logits, expected)
    again = GPT(
        GPTConfig(**TINY, norm=f"{folder}/design_norm.py:LayerNorm", block=f"{folder}/design_block.py:Block")
    )
    again.load_state_dict(gpt.state_dict())
    assert torch.equal(again(idx)[0], expected)
    assert {path.stem for path in files_to_keep(again.config).values()} == {
        "design_norm", "design_norm_norms", "design_norm_consts",
        "design_block", "design_block_norms", "design_block_consts", "design_block_blocks",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("from .helper import X", r"line 1 says 'from .helper import X', but no helper.py lies beside it"),
        ("from .layers import X", r"no layers.py lies beside it: .*; NormLab's own is model.layers"),
        ("from . import helper as X", r"no helper.py lies beside it: a design is one file and"),
        ("from ..pack import X", r"a design is one file and the files beside it"),
        ("from helper import X", r"line 1 fails: .*'helper': a design is one file and the files beside it"),
        ("from consts import X", r"line 1 imports X from consts.py, which does not define it"),
        ("from consts import broken as X", r"consts.py line 1 fails: ZeroDivisionError"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_gets_one_sentence(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "consts.py").write_text("broken = 1 / 0\n")
    file = tmp_path / "candidate.py"
    file.write_text(f"{line}\nfrom torch import nn\nclass LayerNorm(nn.Identity):\n    kind = X\n")
    with pytest.raises(UserError, match=sentence) as caught:
        GPT(config_of(file))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_relative_import_that_is_tried_may_fail(tmp_path: Path) -> None:
    file = tmp_path / "candidate.py"
    file.write_text(
        "from torch import nn\ntry:\n    from .norms import RMSNorm as Base\nexcept ImportError:\n"
        "    Base = nn.Identity\nclass LayerNorm(Base):\n    pass\n"
    )
    assert isinstance(GPT(config_of(file)).transformer["ln_f"], torch.nn.Identity)


def test_nanogpts_model_is_normlab_whatever_lies_beside(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class MLP:\n    pass\n")
    file = tmp_path / "candidate.py"
    file.write_text(
        "from torch import nn\nfrom model import MLP\n"
        "class Block(nn.Module):\n    def __init__(self, config):\n"
        "        super().__init__()\n        self.mlp = MLP(config)\n    def forward(self, x):\n"
        "        return x + self.mlp(x)\n"
    )
    assert type(GPT(config_of(file)).blocks[0].mlp).__module__ == "model.layers"
    assert files_to_keep(config_of(file)) == {"block.py": file}
