"""The bench of designs: its table, its file, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model import GPT, VARIANTS, GPTConfig, flops_per_token
from tests.jobs import run
from tests.processes import ROOT

SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 64}


def main_of_bench(words: list[str]) -> int:
    sys.path.insert(0, str(ROOT / "scripts"))
    import bench_designs

    return bench_designs.main(words)


def bench(file: Path, *designs: str) -> subprocess.CompletedProcess[str]:
    numbers = SHAPE | {"micro_batch": 2, "rounds": 2, "steps": 1}
    options = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    words = [*options, "--device", "cpu", "--uncompiled", "--json", str(file), "--only", *designs]
    return run(words, main=main_of_bench)


def test_each_design_has_a_row_and_a_file_is_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "designs.json"
    done = bench(file, "gated_attention_element")
    assert done.returncode == 0, done.stderr
    first = json.loads(file.read_text())["designs"]
    done = bench(file, "gated_attention_element", "rmsnorm_no_gain")
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["designs"]
    assert rows["gated_attention_element"] == first["gated_attention_element"], "measured once"
    table = done.stdout.partition("|---|")[2]
    assert (
        "gated_attention_element" in table and "rmsnorm_no_gain" in table and "compiled False" in done.stdout
    )
    vanilla = GPT(GPTConfig(**SHAPE))
    for name, row in rows.items():
        gpt = GPT(GPTConfig(**SHAPE, **VARIANTS[name].design))
        assert row["flops_ratio"] == pytest.approx(flops_per_token(gpt) / flops_per_token(vanilla))
        assert row["parameters_ratio"] == pytest.approx(gpt.num_parameters() / vanilla.num_parameters())
        assert len(row["ms"][0]) == len(row["ms"][1]) == 2 and row["time_ratio"] > 0
        weights = 2 * gpt.num_parameters()  # in bf16, with two moments and a gradient of each
        assert row["design"]["memory"] > 4 * weights
    assert rows["gated_attention_element"]["memory_ratio"] > 1


def test_a_file_of_another_shape_and_an_unknown_design_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "designs.json"
    file.write_text(json.dumps({"setting": {"device": "CPU"}, "designs": {}}))
    for done, told in (
        (bench(file, "rmsnorm"), f"--json {file} was measured with torch None, not"),
        (bench(tmp_path / "new.json", "rmsnrom"), "--only names 'rmsnrom' (did you mean 'rmsnorm'?)"),
    ):
        assert done.returncode == 2 and told in done.stderr, done.stderr
