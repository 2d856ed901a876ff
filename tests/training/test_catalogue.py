"""Every variant of the catalogue: compiled whole, and trained by DeepSpeed in bf16."""

from pathlib import Path

import pytest
import torch

from model import GPT, VARIANTS, GPTConfig
from tests.distributed import run_on_ranks
from tests.engines import load
from tests.tiny import BF16, DS_CONFIG, TINY, zero
from training.engine.build import build_engine
from training.engine.cpu_bf16 import bf16_arithmetic
from training.step import begin_step

SHAPE = TINY | {"n_layer": 3, "block_size": 32}
STEPS = 20


def train_variant(rank: int, name: str, folder: Path) -> None:
    ds_config = DS_CONFIG | BF16 | zero(1) | {"train_micro_batch_size_per_gpu": 8}
    # each token follows from the one before it
    tokens = torch.arange(33).mul(5).add(torch.arange(8)[:, None]).remainder(64)
    torch.manual_seed(1)
    gpt = GPT(GPTConfig(**SHAPE, **VARIANTS[name].design))
    engine = build_engine(gpt, load(folder, ds_config, ranks=1))
    losses = []
    for step in range(STEPS):
        begin_step(engine, step, 1e-2 * min(1, (step + 1) / 5))
        with bf16_arithmetic():
            _, loss = engine(tokens[:, :-1], tokens[:, 1:])
            engine.backward(loss)
            engine.step()
        assert engine.was_step_applied()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.log(torch.tensor(64.0)).item(), abs=0.5)
    assert losses[-1] < losses[0] - 0.2, losses


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_downhill_under_deepspeed_in_bf16(name: str, tmp_path: Path) -> None:
    run_on_ranks(train_variant, 1, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_compiles_whole(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**SHAPE, **VARIANTS[name].design))
    idx = torch.randint(0, 64, (2, 32))
    compiled = torch.compile(gpt.hidden, fullgraph=True, backend="eager")
    outputs = []
    for hidden in (gpt.hidden, compiled):
        torch.manual_seed(1)
        outputs.append(hidden(idx))
    torch.testing.assert_close(*outputs)
