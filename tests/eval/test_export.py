"""The export command on run folders."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from data import open_tokenizer
from eval.export import export, main
from model import GPT, GPTConfig
from tests.eval.tiny_runs import write_manifest

ROOT = Path(__file__).parents[2]
SHAPE = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=50304)
TEXT = "  Tides turn twice a day; élan <|endoftext|>\n"
BLOCK = """
import torch.nn as nn

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)

    def forward(self, x):
        return x + self.attn(self.ln_1(x))
"""


def make_run(folder: Path, config: GPTConfig, tokenizer: str = "gpt2") -> GPT:
    """A run folder with checkpoints of steps 1 and 2, and the model of step 2."""
    for step in (1, 2):
        torch.manual_seed(step)
        gpt = GPT(config)
        checkpoint = folder / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        file = checkpoint / "mp_rank_00_model_states.pt"
        torch.save({"module": gpt.state_dict()}, file)
        write_manifest(checkpoint)
    recipe = {"model": asdict(config), "data": {"tokenizer": tokenizer}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return gpt.eval()


def logits(model: Any, idx: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=idx).logits


def test_a_vanilla_run_becomes_gpt2_with_its_tokenizer(tmp_path) -> None:
    gpt, out = make_run(tmp_path / "run", SHAPE), tmp_path / "out"
    said = export(tmp_path / "run", out)
    assert f"{out} holds vanilla at step 2 of {tmp_path / 'run'}" in said
    assert f'AutoModelForCausalLM.from_pretrained("{out}")' in said
    model = AutoModelForCausalLM.from_pretrained(out)
    assert isinstance(model, GPT2LMHeadModel)
    assert model.generation_config.eos_token_id == 50256
    idx = torch.randint(0, 50257, (1, 20))
    torch.testing.assert_close(logits(model, idx), gpt(idx)[0].detach(), atol=1e-5, rtol=1e-5)
    assert f'AutoTokenizer.from_pretrained("{out}")' in said
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.eos_token_id == 50256
    ours = open_tokenizer("gpt2").encode(TEXT).tolist()
    assert tokenizer(TEXT)["input_ids"] == ours


def test_a_candidate_file_brings_its_code_and_the_step_can_be_chosen(tmp_path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    (run / "designs").mkdir(parents=True)
    (run / "designs" / "block.py").write_text(BLOCK)  # as the run keeps it
    config = replace(SHAPE, norm="rmsnorm", block=f"{run}/designs/block.py:Block", vocab_size=257)
    make_run(run, config, "bytes")
    recipe = (run / "recipe.yaml").read_text().replace(str(run / "designs"), "/gone")
    (run / "recipe.yaml").write_text(recipe)
    said = export(run, out, step=1)
    assert f'from_pretrained("{out}", trust_remote_code=True)' in said
    torch.manual_seed(1)
    gpt, idx = GPT(config).eval(), torch.randint(0, 257, (1, 20))
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    torch.testing.assert_close(logits(model, idx), gpt(idx)[0].detach(), atol=1e-5, rtol=1e-5)
    assert model.generation_config.eos_token_id == 256


def test_a_tokenizer_file_goes_along(tmp_path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"</s>": 0, "tide": 1, "turns": 2, "[UNK]": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    make_run(tmp_path / "run", replace(SHAPE, vocab_size=64, block="post"), str(tmp_path / "words.json"))
    said = export(tmp_path / "run", tmp_path / "out")
    assert f'AutoTokenizer.from_pretrained("{tmp_path / "out"}", trust_remote_code=True)' in said
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert tokenizer("turns tide")["input_ids"] == [2, 1] and tokenizer.eos_token_id == 0


def test_what_is_wrong_with_the_command_gets_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("run"), replace(SHAPE, vocab_size=64))
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    for words, sentence in (
        ("nowhere --out out", "there is no run folder nowhere"),
        ("run --out out --step 3", "run has no complete checkpoint of step 3; the steps there are 1, 2"),
        ("run --out full", "full is there already: choose another --out, or remove it"),
    ):
        assert main(words.split()) == 2
        assert capsys.readouterr().err == f"error: {sentence}\n"
    assert not Path("out").exists()


def test_the_command_says_where_the_model_is_and_nothing_else(tmp_path) -> None:
    make_run(tmp_path / "run", replace(SHAPE, vocab_size=300, norm="rmsnorm"), "bytes")
    done = run_command(tmp_path / "run", "--out", tmp_path / "out")
    assert done.returncode == 0 and done.stdout == "", done.stderr
    said = done.stderr.splitlines()
    assert said[0].startswith(f"{tmp_path / 'out'} holds rmsnorm at step 2") and len(said) == 3


def test_a_run_whose_design_needs_other_files_gets_one_sentence(tmp_path) -> None:
    block = BLOCK.replace("import", "from eval.command import run_job\nimport").replace(
        "self.ln_1 =", "self.ln_1 = run_job and"
    )
    (tmp_path / "own.py").write_text(block)
    make_run(tmp_path / "run", replace(SHAPE, vocab_size=300, block=f"{tmp_path}/own.py:Block"), "bytes")
    done = run_command(tmp_path / "run", "--out", tmp_path / "out")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "own.py is not self-contained: 'from eval.command import run_job' finds nothing" in done.stderr
    assert not (tmp_path / "out").exists()


def run_command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eval.export", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
