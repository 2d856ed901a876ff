"""Runs that begin from given weights, and runs that say how their model writes."""

import json
import pydoc_data.topics
import signal
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from data import open_data, open_tokenizer
from data.config import DataConfig
from eval.export import export
from tests.jobs import arguments, make_job, run, run_until, steps_of, summary_of
from tests.tiny import BF16, DS_CONFIG, zero
from training.engine.weights import fingerprint, load_model, load_weights
from training.run.reader import read_recipe

STEPS = 6
PROMPTS = ["The ", "A statement é"]
SAMPLED = ["--eval.sample_text", json.dumps(PROMPTS)]
SHAPE = ["--model.vocab_size", "257", "--model.dropout", "0"]
SHORT = ["--train.steps", "2", "--schedule.warmup", "1"]
STILL = ["--ds.optimizer.params.lr", "1e-30"]  # too little to move a weight


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a recipe, and a GPT-2 as Hugging Face writes it in `published`."""
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    folder = make_job(tmp_path_factory.mktemp("job"), texts, STEPS, tokenizer="bytes")
    (folder / "zero3.json").write_text(json.dumps(DS_CONFIG | BF16 | zero(3)))
    torch.manual_seed(3)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=32, vocab_size=257)
    GPT2LMHeadModel(config).save_pretrained(folder / "published")
    return folder


def published_loss(job: Path, run_dir: Path) -> float:
    """What transformers' own model scores on the run's validation set, in blocks, nats per token."""
    model = GPT2LMHeadModel.from_pretrained(job / "published").eval()
    _, validation = open_data(DataConfig(**read_recipe(run_dir)["data"]))
    inputs, targets = validation.blocks(32)
    with torch.no_grad():
        logits = model(inputs).logits.double()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    return float(losses)


def test_a_run_from_published_weights_stops_and_goes_on_without_them(job: Path) -> None:
    words = [*SHAPE, "--train.init_from", str(job / "published")]
    result = run(arguments(job, job / "whole", *words))
    assert result.returncode == 0, result.stderr
    stopped = arguments(job, job / "stopped", *words, *SAMPLED)
    run_until(stopped, 4, signal.SIGTERM)
    (job / "published").rename(job / "gone")
    result = run(stopped)
    (job / "gone").rename(job / "published")
    assert result.returncode == 0 and "resumed from" in result.stderr, result.stderr
    # Sample text, a stop and missing weights: none of them changes a number.
    assert steps_of(job / "stopped") == steps_of(job / "whole")
    fingerprints = {summary_of(job / name)["init_fingerprint"] for name in ("stopped", "whole")}
    assert len(fingerprints) == 1

    lines = [json.loads(line) for line in (job / "stopped" / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [(s, p) for s in (4, 6) for p in PROMPTS]
    gpt, _ = load_model(job / "stopped")
    tokenizer, made = open_tokenizer("bytes"), []
    with torch.no_grad():
        for _ in range(40):
            idx = torch.tensor([[*PROMPTS[1].encode(), *made][-32:]])
            made.append(int(gpt(idx)[0][0, -1].argmax()))
    assert lines[-1]["text"] == tokenizer.decode(torch.tensor(made).numpy()) and 256 not in made
    assert f"step 6: {PROMPTS[1]!r} goes on {lines[-1]['text']!r}" in result.stderr


@pytest.mark.parametrize(("ds_config", "ranks"), [("fp32.json", 1), ("bf16.json", 2), ("zero3.json", 2)])
def test_the_first_weights_are_the_given_ones(job: Path, ds_config: str, ranks: int) -> None:
    run_dir = job / f"still_{ds_config}"
    options = [*SHAPE, *STILL, *SAMPLED, *SHORT]
    words = arguments(
        job, run_dir, *options, "--train.init_from", str(job / "published"), ds_config=ds_config
    )
    result = run(words, ranks)
    assert result.returncode == 0, result.stderr
    theirs = GPT2LMHeadModel.from_pretrained(job / "published").transformer
    gpt, _ = load_model(run_dir)
    # DeepSpeed makes its fp32 copies of the bf16 weights, of drawn and of given ones alike.
    dtype = torch.float32 if ds_config == "fp32.json" else torch.bfloat16
    assert torch.equal(gpt.transformer["wte"].weight, theirs.wte.weight.to(dtype).float())
    assert torch.equal(gpt.blocks[1].mlp.c_fc.weight, theirs.h[1].mlp.c_fc.weight.t().to(dtype).float())
    loss = summary_of(run_dir)["val_loss"]
    assert loss == pytest.approx(published_loss(job, run_dir), rel=1e-5 if ds_config == "fp32.json" else 1e-2)


def test_sample_text_changes_no_number_under_zero3_on_two_ranks(job: Path) -> None:
    for name, options in (("quiet", []), ("talking", SAMPLED)):
        result = run(arguments(job, job / name, *options, ds_config="zero3.json"), ranks=2)
        assert result.returncode == 0, result.stderr
    assert steps_of(job / "talking") == steps_of(job / "quiet")
    assert len((job / "talking" / "samples.jsonl").read_text().splitlines()) == 4
    assert not (job / "quiet" / "samples.jsonl").exists()


def test_a_run_its_checkpoint_and_its_export_are_the_same_start(job: Path) -> None:
    source = job / "source"
    result = run(arguments(job, source, "--train.steps", "4", "--model.variant", "rmsnorm"))
    assert result.returncode == 0, result.stderr
    export(source, job / "exported")
    checkpoint = source / "checkpoints" / "step_00000004"
    starts = {fingerprint(load_weights(of).state_dict()) for of in (source, checkpoint, job / "exported")}
    options = [*SHORT, "--model.variant", "rmsnorm", "--train.init_from", str(job / "exported")]
    result = run(arguments(job, job / "begun", *options))
    assert result.returncode == 0, result.stderr
    assert starts == {summary_of(job / "begun")["init_fingerprint"]}
    result = run(arguments(job, job / "wrong", "--train.init_from", str(source)))
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert f"train.init_from is {source}, a model with model.norm rmsnorm, but" in result.stderr
