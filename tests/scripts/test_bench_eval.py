"""The bench of scoring: its counts of FLOPs by hand, and all of it on a tiny model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import TINY

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def backends():
    pytest.importorskip("accelerate", reason="lm-eval's hf backend needs accelerate")
    sys.path.insert(0, str(SCRIPTS))
    from contenders import backends

    yield backends
    sys.path.remove(str(SCRIPTS))


def test_flops_are_those_of_distinct_tokens_and_scored_logits(backends) -> None:
    from model import GPT, GPTConfig

    C, layers, vocab = TINY["n_embd"], TINY["n_layer"], TINY["vocab_size"]
    flops = backends.Flops(GPT(GPTConfig(**TINY)))
    token, pair, logits = 2 * 12 * C * C * layers, 4 * C * layers, 2 * C * vocab
    assert flops.of_batch(3, 5) == 3 * (5 * (token + logits) + 15 * pair)
    # 7 8 9 and 7 8 4, of which the last two and the last are scored: 7, 8, 9 and 4, at depths 1, 2, 3 and 3
    assert flops.at_least([([7, 8, 9], 2), ([7, 8, 4], 1)]) == 4 * token + 9 * pair + 3 * logits
    assert flops.at_least([([7, 8], 1), ([7, 8], 1)]) == 2 * token + 3 * pair + logits


def test_the_bench_prints_a_row_for_each_task() -> None:
    command = [sys.executable, str(SCRIPTS / "bench_eval.py"), "--items", "2", "--rounds", "1"]
    shape = ["--n_layer", "1", "--n_head", "1", "--n_embd", "16", "--block_size", "96"]
    done = subprocess.run([*command, *shape], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "1 thread(s)" in lines[1] and f"torch {torch.__version__}" in lines[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[3:] if "---" not in line]
    expected = {"task": "requests", "wikitext": "1", "lambada_openai": "2", "arc_easy": "8"}
    expected |= {"hellaswag": "8", "piqa": "4", "winogrande": "4"}
    assert {row[0]: row[1] for row in rows} == expected
    for row in map(lambda cells: dict(zip(rows[0], cells, strict=True)), rows[1:]):
        of_sums = 1e-2 if row["task"] == "wikitext" else 1e-4  # a page is tens of thousands of nats
        assert float(row["max difference"]) < of_sums and row["greedy equal"] == "yes"
        assert float(row["bound"]) > 1 and float(row["ratio"]) > 0


@pytest.mark.parametrize(
    ("option", "problem"), [("--tasks=piqua", "did you mean 'piqa'"), ("--rounds=0", "must be at least 1")]
)
def test_the_bench_refuses_what_cannot_be(option: str, problem: str) -> None:
    command = [sys.executable, str(SCRIPTS / "bench_eval.py"), option]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and problem in done.stderr
