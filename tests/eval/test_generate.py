"""The command that prints sample text, against transformers' own generation."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from data import open_tokenizer
from eval.export import export
from eval.generate import SEPARATOR, main
from model import GPT, GPTConfig
from tests.eval.tiny_runs import write_manifest
from training.samples import continue_text, next_token, write_samples

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 257}
PROMPTS = ["The tide ", "é", "Ships " * 12]


def make_run(folder: Path, norm: str) -> Path:
    """A run of step 1 whose model is sure of what it writes."""
    torch.manual_seed(5)
    gpt = GPT(GPTConfig(**SHAPE, norm=norm))
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    checkpoint = folder / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    file = checkpoint / "mp_rank_00_model_states.pt"
    torch.save({"module": gpt.state_dict()}, file)
    write_manifest(checkpoint)
    recipe = {"model": asdict(gpt.config), "data": {"tokenizer": "bytes"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_greedy_text_is_what_transformers_generates(norm, tmp_path, capsys) -> None:
    run, out = make_run(tmp_path / "run", norm), tmp_path / "out"
    export(run, out)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    tokenizer, expected = open_tokenizer("bytes"), []
    for prompt in PROMPTS[:2]:
        idx = torch.tensor([list(prompt.encode())])
        made = model.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=20, do_sample=False)
        made = [token for token in made[0, idx.shape[1] :].tolist() if token != 256]
        expected.append(prompt + tokenizer.decode(torch.tensor(made).numpy()))
    words = ["--temperature", "0", "--max_tokens", "20"]
    words += [word for prompt in PROMPTS[:2] for word in ("--prompt", prompt)]
    sources = (run, run / "checkpoints" / "step_00000001", out)
    for source in sources:
        assert main([str(source), *words]) == 0
        assert capsys.readouterr().out == f"\n{SEPARATOR}\n".join(expected) + "\n", source
    assert len({*expected[0][len(PROMPTS[0]) :]}) > 2, "more than one symbol again and again"


def test_a_long_prompt_is_read_from_its_last_block(tmp_path) -> None:
    gpt, tokenizer = tiny(), open_tokenizer("bytes")
    long, short = (
        continue_text(gpt, tokenizer, prompt, max_tokens=9) for prompt in (PROMPTS[2], PROMPTS[2][-32:])
    )
    assert len(PROMPTS[2]) > 32 and long.text == short.text and long.text


def tiny() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**SHAPE)).eval()


def test_text_stops_at_the_end_of_a_document() -> None:
    gpt, tokenizer, read = tiny(), open_tokenizer("bytes"), []
    with torch.no_grad():  # whatever it reads, the final norm gives the end of text's own embedding
        gpt.transformer["ln_f"].weight.zero_()
        gpt.transformer["ln_f"].bias.copy_(50 * gpt.lm_head.weight[256])
    gpt.lm_head.register_forward_hook(lambda *given: read.append(1))
    assert continue_text(gpt, tokenizer, "The ", max_tokens=50).text == "" and len(read) == 1
    assert continue_text(gpt, tokenizer, "", max_tokens=50).text == ""


def test_draws_follow_temperature_top_k_and_seed() -> None:
    logits, generator = torch.tensor([1.0, 3.0, 2.0, -1.0]), torch.Generator().manual_seed(0)
    draws = [next_token(logits, 2.0, 3, generator) for _ in range(4000)]
    weights = [math.exp(value / 2) for value in (1, 3, 2)]
    for token in range(3):
        assert draws.count(token) / 4000 == pytest.approx(weights[token] / sum(weights), abs=0.03)
    assert 3 not in draws
    # Of 0.47, 0.29 and less, the first two are the fewest that hold 0.6.
    draws = [next_token(logits, 2.0, None, generator, top_p=0.6) for _ in range(200)]
    assert {*draws} == {1, 2}
    assert {next_token(logits, 2.0, None, generator, top_p=0.4) for _ in range(50)} == {1}
    gpt, tokenizer = tiny(), open_tokenizer("bytes")

    def text(**options) -> str:
        return continue_text(gpt, tokenizer, "The ", max_tokens=15, **options).text

    assert text(temperature=1.0, seed=1) == text(temperature=1.0, seed=1) != text(temperature=1.0, seed=2)
    assert text(temperature=1.0, top_k=1, seed=3) == text()


def test_samples_of_steps_that_are_made_again_are_replaced(tmp_path) -> None:
    file = tmp_path / "samples.jsonl"
    for step, text in ((2, "a"), (4, "b"), (6, "c"), (4, "d")):
        write_samples(file, step, [continue_text(tiny(), open_tokenizer("bytes"), text, max_tokens=1)])
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in found] == [(2, "a"), (4, "d")]


def test_what_is_wrong_with_the_command_gets_one_sentence(tmp_path, capsys) -> None:
    run = make_run(tmp_path / "run", "layernorm")
    (bare := tmp_path / "bare").mkdir()
    (bare / "config.json").write_text("{}")
    for words, sentence in (
        (["--temperature", "-1"], "--temperature is -1.0, but it must be a number of at least 0"),
        (["--temperature", "inf"], "--temperature is inf, but it must be a number of at least 0"),
        (["--seed", str(2**63)], "--seed is 9223372036854775808, but it must be a number of at least"),
        (["--top_k", "0"], "--top_k is 0, but it must be a number of at least 1"),
        (["--step", "7"], "has no complete checkpoint of step 7; the steps there are 1"),
    ):
        assert main([str(run), "--prompt", "x", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert main([str(bare), "--prompt", "x"]) == 2
    assert "has no tokenizer: it holds none of tokenizer.json" in capsys.readouterr().err
