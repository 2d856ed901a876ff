"""What a constructor gets because it names it, and what is said of one that cannot be built."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from model import GPT, GPTConfig, to_hf
from model.errors import UserError
from tests.tiny import TINY

NORM = """
import torch
from torch import nn

class LayerNorm(nn.Module):
    def __init__(self, ndim, bias, {parameters}):
        super().__init__()
        self.given = {given}
        self.weight = nn.Parameter(nn.init.ones_(torch.empty(ndim)))

    def forward(self, x):
        return x * self.weight {use}
"""
BLOCK = """
from torch import nn

class GPTConfig:
    depth_scale: float = 0.25

class Block(nn.Module):
    def __init__(self, config, {parameters}):
        super().__init__()
        self.given = {given}
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.ln_2 = config.norm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))
"""


def write(folder: Path, text: str, parameters: str, given: str, use: str = "") -> Path:
    path = folder / f"{'block' if 'Block' in text else 'norm'}_file.py"
    path.write_text(text.format(parameters=parameters, given=given, use=use))
    return path


@pytest.mark.parametrize(
    ("parameters", "given", "expected"),  # the last two are options of the block's own
    [
        ("layer_idx", "layer_idx", [0, 1, 2]),
        ("layer_idx=None", "layer_idx", [0, 1, 2]),
        ("layer_idx=0", "layer_idx", [0, 1, 2]),
        ("n_layer, layer_idx", "(n_layer, layer_idx)", [(3, 0), (3, 1), (3, 2)]),
        ("*, n_head=None, dropout=0.5", "(n_head, dropout)", [(2, 0.1)] * 3),
        ("depth_scale, n_layer=12", "(depth_scale, n_layer)", [(0.25, 3)] * 3),
        (
            "positions='ABCD', mlp=True",
            "(positions, mlp)",
            [("ABCD", True)] * 3,
        ),
        ("scale=2.0", "scale", [2.0] * 3),
    ],
)
def test_a_block_gets_what_it_names(tmp_path: Path, parameters: str, given: str, expected: list) -> None:
    path = write(tmp_path, BLOCK, parameters, given)
    gpt = GPT(GPTConfig(**{**TINY, "n_layer": 3, "dropout": 0.1}, block=f"{path}:Block"))
    assert [block.given for block in gpt.blocks] == expected


def test_an_option_that_is_given_is_stronger_than_the_config(tmp_path: Path) -> None:
    path = write(tmp_path, BLOCK, "layer_idx, n_layer=1", "(layer_idx, n_layer)")
    gpt = GPT(GPTConfig(**TINY, block=f"{path}:Block", block_options={"n_layer": "7"}))
    assert [block.given for block in gpt.blocks] == [(0, 7), (1, 7)]


@pytest.mark.parametrize(
    ("parameters", "final"), [("layer_idx", 3), ("layer_idx=None", None), ("layer_idx=-1", -1)]
)
@pytest.mark.parametrize("options", [{}, {"eps": 1e-3}])
def test_a_norm_knows_its_layer_however_it_is_built(
    tmp_path: Path, parameters: str, final: int | None, options: dict[str, float]
) -> None:
    norm = write(tmp_path, NORM, f"{parameters}, eps=1e-5", "(layer_idx, eps)")
    block = write(tmp_path, BLOCK, "*, unused=0", "None")
    shape = GPTConfig(
        **{**TINY, "n_layer": 3}, norm=f"{norm}:LayerNorm", norm_options=options, block=f"{block}:Block"
    )
    gpt, eps = GPT(shape), options.get("eps", 1e-5)
    for layer, made in enumerate(gpt.blocks):
        assert made.ln_1.given == made.ln_2.given == (layer, eps)
    assert gpt.transformer["ln_f"].given == (final, eps)
    assert [b.ln_1.given for b in GPT(GPTConfig(**TINY, norm=shape.norm)).blocks] == [(0, 1e-5), (1, 1e-5)]


def test_an_export_passes_layers_too(tmp_path: Path) -> None:
    norm = write(tmp_path, NORM, "layer_idx, n_layer", "layer_idx", "/ (1 + self.given)")
    block = write(tmp_path, BLOCK, "layer_idx", "layer_idx")
    gpt = GPT(GPTConfig(**TINY, norm=f"{norm}:LayerNorm", block=f"{block}:Block")).eval()
    folder, idx = to_hf(gpt, tmp_path / "out"), torch.randint(0, 64, (1, 9))
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(model(input_ids=idx).logits, gpt(idx)[0])


@pytest.mark.parametrize(
    ("plug", "parameters", "sentence"),
    [
        (
            "norm",
            "power",
            r"needs power, .*norm_file.py line 6.* file, or --model.norm_options.power V",
        ),
        ("block", "a, *, b", r"needs a and b, .*block_file.py line 8.*, or --model.block_options.a VALUE"),
    ],
)
def test_a_required_option_names_both_ways_to_give_it(
    tmp_path: Path, plug: str, parameters: str, sentence: str
) -> None:
    path = write(tmp_path, NORM if plug == "norm" else BLOCK, parameters, parameters.replace("*, ", ""))
    name = f"{path}:{'LayerNorm' if plug == 'norm' else 'Block'}"
    with pytest.raises(UserError, match=sentence) as caught:
        GPT(GPTConfig(**TINY, **{plug: name}))
    assert "\n" not in str(caught.value)
    options = dict.fromkeys(parameters.replace("*, ", "").split(", "), "2.5")
    gpt = GPT(GPTConfig(**TINY, **{plug: name, f"{plug}_options": options}))
    given = (gpt.transformer["ln_f"] if plug == "norm" else gpt.blocks[1]).given
    assert given == (2.5 if plug == "norm" else (2.5, 2.5))


@pytest.mark.parametrize(
    ("plug", "text", "sentence"),
    [
        ("norm", "dim, eps=1e-6", r"built as LayerNorm\(ndim, bias=...\), but own.py line 3 has __init__"),
        ("norm", "", r"has __init__\(self\): let it take bias too"),
        ("block", "", r"built as Block\(config\), but own.py line 3 .*\(self\): let it take the conf"),
        ("topology", "config", r"built as Topology\(config, blocks\), but own.py line 3 has __init__"),
    ],
)  # fmt: skip
def test_a_constructor_of_another_contract_gets_one_sentence(
    tmp_path: Path, plug: str, text: str, sentence: str
) -> None:
    kind = {"norm": "LayerNorm", "block": "Block", "topology": "Topology"}[plug]
    (tmp_path / "own.py").write_text(
        f"from torch import nn\nclass {kind}(nn.Module):\n"
        f"    def __init__(self{', ' if text else ''}{text}):\n"
        "        super().__init__()\n"
    )
    with pytest.raises(UserError, match=sentence) as caught:
        GPT(GPTConfig(**TINY, **{plug: f"{tmp_path / 'own.py'}:{kind}"}))
    assert "\n" not in str(caught.value)


def test_a_constructor_that_fails_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, BLOCK, "layer_idx", "config.no_such_field")
    with pytest.raises(UserError, match=r"cannot be built: AttributeError: .*no_such_field.*file.py line 10"):
        GPT(GPTConfig(**TINY, block=f"{path}:Block"))
