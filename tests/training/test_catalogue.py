"""Every variant of the catalogue: compiled whole, and trained by DeepSpeed in bf16."""

import json
from pathlib import Path

import pytest
import torch

from model import GPT, VARIANTS, GPTConfig
from tests.distributed import run_on_ranks
from training.config import read_deepspeed_config
from training.engine.build import build_engine, set_learning_rate
from training.engine.cpu_bf16 import bf16_arithmetic

TINY = {"n_layer": 3, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 64}
DS_CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 1},
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1, "torch_adam": True}},
}
STEPS = 20


def train_all(rank: int, folder: Path, names: list[str]) -> None:
    ds_config = read_deepspeed_config(folder / "ds.json", {}, 1)
    # each token follows from the one before it
    tokens = torch.arange(33).mul(5).add(torch.arange(8)[:, None]).remainder(64)
    losses: dict[str, list[float]] = {}
    for name in names:
        torch.manual_seed(1)
        engine = build_engine(GPT(GPTConfig(**TINY, **VARIANTS[name].design)), ds_config)
        engine.train()
        losses[name] = []
        for step in range(STEPS):
            set_learning_rate(engine, 1e-2 * min(1, (step + 1) / 5))
            with bf16_arithmetic():
                _, loss = engine(tokens[:, :-1], tokens[:, 1:])
                engine.backward(loss)
                engine.step()
            assert engine.was_step_applied(), name
            losses[name].append(loss.item())
        engine.destroy()
    (folder / "losses.json").write_text(json.dumps(losses))


@pytest.mark.slow
def test_every_variant_trains_downhill_under_deepspeed_in_bf16(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(DS_CONFIG))
    run_on_ranks(train_all, 1, tmp_path, list(VARIANTS))
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert set(losses) == set(VARIANTS)
    for name, of_variant in losses.items():
        assert of_variant[0] == pytest.approx(torch.log(torch.tensor(64.0)).item(), abs=0.5), name
        assert of_variant[-1] < of_variant[0] - 0.2, (name, of_variant)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_compiles_whole(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**TINY, **VARIANTS[name].design))
    idx = torch.randint(0, 64, (2, 32))
    compiled = torch.compile(gpt.hidden, fullgraph=True, backend="eager")
    outputs = []
    for hidden in (gpt.hidden, compiled):
        torch.manual_seed(1)
        outputs.append(hidden(idx))
    torch.testing.assert_close(*outputs)
