"""A run with every option of the fixed parts: stopped, resumed, evaluated and exported."""

import math
import pydoc_data.topics
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from data import open_tokenizer
from eval.export import export
from eval.scoring.lm import NormLabLM
from tests.jobs import arguments, make_job, run, run_until, steps_of, summary_of
from training.engine.weights import load_model

STEPS = 8
OPTIONS = ["--model.mlp", "swiglu", "--model.positions", "rotary", "--model.qk_norm", "head"]
OPTIONS += ["--model.tied", "false", "--model.z_loss", "0.05", "--model.logit_softcap", "15"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of every option on two ranks, to its end."""
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    folder = make_job(tmp_path_factory.mktemp("job"), texts, STEPS, tokenizer="bytes")
    result = run(arguments(folder, folder / "whole", *OPTIONS), ranks=2)
    assert result.returncode == 0, result.stderr
    assert "GPT-2 2L 2H 32d swiglu rotary untied z_loss=0.05 logit_softcap=15, " in result.stderr
    return folder


def test_killed_and_resumed_it_is_the_uninterrupted_bit_for_bit(job: Path) -> None:
    words = arguments(job, job / "killed", *OPTIONS)
    run_until(words, 5, signal.SIGKILL, ranks=2)
    assert summary_of(job / "killed")["status"] == "running"
    result = run(words, ranks=2)
    assert result.returncode == 0 and "resumed from" in result.stderr, result.stderr
    assert steps_of(job / "killed") == steps_of(job / "whole")


def test_the_loss_in_the_log_is_the_cross_entropy(job: Path) -> None:
    # A cross-entropy near that of guessing: a z-loss of 0.05 ln(320)^2 = 1.7 is not in it.
    first = steps_of(job / "whole")[0][3]
    assert first == pytest.approx(math.log(320), abs=0.1)


def test_it_is_evaluated_and_exported_alike(job: Path) -> None:
    gpt, _ = load_model(job / "whole")
    export(job / "whole", job / "out")
    theirs = AutoModelForCausalLM.from_pretrained(job / "out", trust_remote_code=True).eval()
    tokenizer = open_tokenizer("bytes")
    context, answer = tokenizer.encode("the argument ").tolist(), tokenizer.encode("list").tolist()
    with torch.no_grad():
        logits = theirs(torch.tensor([context + answer])).logits[0].double()
    assert logits.abs().max() <= 15
    expected = sum(logits[len(context) - 1 + i].log_softmax(-1)[t].item() for i, t in enumerate(answer))
    ((found, _),) = NormLabLM(gpt, tokenizer)._loglikelihood_tokens([(None, context, answer)])
    assert found == pytest.approx(expected, rel=1e-5)
