"""Whatever passes the pre-flight check trains: every design, five steps in every shipped DeepSpeed JSON.

One process per JSON and number of ranks builds all designs in turn. On one rank each pair is trained, on two
a third of them, spread over designs and JSONs alike.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from model import GPT, VARIANTS, GPTConfig, designs_of_file
from model.preflight import preflight
from model.treatment import Treatment
from tests.distributed import run_on_ranks
from tests.own_designs import DESIGNS
from training.config import DeepSpeedConfig, read_deepspeed_config
from training.engine.build import build_engine
from training.engine.compilation import wrap_blocks
from training.engine.cpu_bf16 import bf16_arithmetic
from training.step import begin_step

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "ds_configs").glob("*.json"))
CASES = sorted((ROOT.parent / "shared" / "cases" / "designs").glob("*.py"))
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 64}
STEPS = 5
Designs = dict[str, tuple[dict[str, Any], Treatment]]


@pytest.fixture(scope="module")
def designs(tmp_path_factory: pytest.TempPathFactory) -> Designs:
    """Every design that the check lets pass, as fields of the config, and what the check found out."""
    found: Designs = {}
    for name in VARIANTS:  # tests/model/test_preflight.py checks that these pass
        found[name] = (SHAPE | dict(VARIANTS[name].design), Treatment())
    folder = tmp_path_factory.mktemp("designs")
    paths = list(CASES)
    for name, text in DESIGNS.items():
        paths.append(folder / f"{name}.py")
        paths[-1].write_text(text)
    for path in paths:
        fields = SHAPE | designs_of_file(str(path))
        report = preflight(GPTConfig(**fields), thorough=False)
        if report.passed:
            found[path.stem] = (fields, Treatment.of(report.numbers))
    return found


def train_all(rank: int, path: Path, designs: Designs, ranks: int) -> None:
    """DeepSpeed's profilers print what nobody reads here."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    torch.compiler.set_stance("force_eager")  # Muon's kernels
    torch.set_num_threads(1)
    small = {"train_batch_size": str(2 * ranks), "train_micro_batch_size_per_gpu": "2"}
    config = read_deepspeed_config(path, small | {"gradient_accumulation_steps": "1"}, ranks)
    problems = []
    for name, (fields, treatment) in designs.items():
        try:
            losses = five_losses(GPTConfig(**fields), treatment, config, rank)
            assert losses[-1] < losses[0], losses
        except Exception as error:
            if ranks > 1:  # the other waits for this one
                raise AssertionError(f"{name} passes the pre-flight check, but {error!r}") from error
            problems.append(f"{name}: {error!r}")
    assert not problems, "these pass the pre-flight check, but: " + "; ".join(problems)


def five_losses(shape: GPTConfig, treatment: Treatment, config: DeepSpeedConfig, rank: int) -> list[float]:
    torch.manual_seed(0)
    gpt = GPT(shape)
    gpt.treat(treatment)
    wrap_blocks(gpt, False, config, print)
    engine = build_engine(gpt, config)
    tokens = (torch.arange(17) + torch.arange(2)[:, None] + 2 * rank) % 64
    losses = []
    with bf16_arithmetic():
        for step in range(STEPS):
            begin_step(engine, step, 3e-3)  # at 1e-2 prmsnorm, over two features here, may jump
            _, loss = engine(tokens[:, :-1], tokens[:, 1:])
            engine.backward(loss)
            engine.step()
            assert engine.was_step_applied(), step
            losses.append(loss.item())
    engine.destroy()
    return losses


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_passes_trains_on_one_rank(path: Path, designs: Designs) -> None:
    run_on_ranks(train_all, 1, path, designs, 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_passes_trains_on_two_ranks(path: Path, designs: Designs) -> None:
    third = [name for i, name in enumerate(designs) if (i + FILES.index(path)) % 3 == 0]
    run_on_ranks(train_all, 2, path, {name: designs[name] for name in third}, 2)


def test_there_is_something_to_train(designs: Designs) -> None:
    assert len(FILES) >= 11 and len(designs) >= len(VARIANTS) + 5
