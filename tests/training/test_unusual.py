"""Parameters that DeepSpeed does not expect: scalars, unused ones, and experts that a rank leaves empty."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from model import GPT, GPTConfig, designs_of_file
from model.errors import UserError
from model.probe import probe
from model.treatment import Treatment
from tests.checkpoints import save_checkpoint
from tests.distributed import run_on_ranks
from tests.engines import load
from tests.own_designs import DESIGNS
from tests.tiny import BF16, DS_CONFIG, zero
from training.checkpoints.loading import load_checkpoint
from training.checkpoints.newest import read_state
from training.engine.build import build_engine, parameter_groups
from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.weights import fp32_weights
from training.state import TrainState
from training.step import begin_step

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 64}
UNCLIPPED = {k: v for k, v in DS_CONFIG.items() if k != "gradient_clipping"} | {"train_batch_size": 4}
FP32: dict[str, Any] = {}


def config_of(folder: Path, name: str) -> GPTConfig:
    path = folder / f"{name}.py"
    path.write_text(DESIGNS[name])
    return GPTConfig(**SHAPE, **designs_of_file(str(path)))


def tokens_of(rank: int, step: int) -> torch.Tensor:
    """(2, 17): rank 1 sees one token over and over, so that most of its experts are empty."""
    if rank == 1:
        return torch.full((2, 17), 7 + step)
    return (3 * torch.arange(17) + 5 * torch.arange(2)[:, None] + step) % 64


def engine_of(folder: Path, config: GPTConfig, keys: dict[str, Any], treatment: Treatment) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gpt = GPT(config)
    gpt.treat(treatment)
    return build_engine(gpt, load(folder, UNCLIPPED | keys, dist.get_world_size()))


def one_step(engine: Any, step: int) -> float:
    """The mean loss over the ranks."""
    begin_step(engine, step, 1e-2)
    tokens = tokens_of(dist.get_rank(), step)
    with bf16_arithmetic():
        _, loss = engine(tokens[:, :-1], tokens[:, 1:])
        engine.backward(loss)
        engine.step()
    total = loss.detach().float().clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def experts_of_stages(rank: int, folder: Path, config: GPTConfig, treatment: Treatment) -> None:
    """ZeRO decides where gradients lie, not which weight they belong to, whoever has them."""
    expected = losses_of_torch(config)
    for precision, stage in ((FP32, 0), (FP32, 1), (FP32, 2), (FP32, 3), (BF16, 1)):
        tolerance = 1e-3 if precision else 1e-5
        engine = engine_of(folder, config, precision | zero(stage), treatment)
        losses = [one_step(engine, step) for step in range(2)]
        assert losses == pytest.approx(expected, rel=tolerance), (stage, losses, expected)
        engine.destroy()


def losses_of_torch(config: GPTConfig) -> list[float]:
    """Two steps of torch's own AdamW, with a gradient of 0 where there is none."""
    torch.manual_seed(0)
    gpt = GPT(config)
    optimizer = torch.optim.AdamW(parameter_groups(gpt, 0.1), lr=1e-2, betas=(0.9, 0.95))
    found = []
    for step in range(2):
        for parameter in gpt.parameters():
            parameter.grad = torch.zeros_like(parameter)
        losses = []
        for rank in (0, 1):
            tokens = tokens_of(rank, step)
            _, loss = gpt(tokens[:, :-1], tokens[:, 1:])
            assert loss is not None
            (loss / 2).backward()
            losses.append(float(loss.detach()))
        optimizer.step()
        found.append(sum(losses) / 2)
    return found


def test_experts_that_a_rank_leaves_empty_train_as_one_rank_would(tmp_path: Path) -> None:
    config = replace(config_of(tmp_path, "own_experts"), n_layer=1)
    treatment = probe(config)
    assert treatment.unused == () and len(treatment.sometimes) == 16 * 2
    run_on_ranks(experts_of_stages, 2, tmp_path, config, treatment)


def save_and_resume(rank: int, folder: Path, config: GPTConfig, treatment: Treatment) -> None:
    for number, (precision, stage) in enumerate([(FP32, 0), (FP32, 1), (BF16, 1), (BF16, 2), (BF16, 3)]):
        checkpoints = folder / f"mode{number}"
        keys = precision | zero(stage)
        engine = engine_of(folder, config, keys, treatment)
        one_step(engine, 0)
        saved = save_checkpoint(engine, checkpoints, TrainState(step=1, data_fingerprint="of a test"), keep=1)
        ahead = [one_step(engine, step) for step in (1, 2)]
        engine.destroy()
        fresh = engine_of(folder, config, keys, treatment)
        load_checkpoint(fresh, saved, read_state(saved, ["of a test"]))
        assert [one_step(fresh, step) for step in (1, 2)] == ahead, (precision, stage)
        fresh.destroy()
        if rank == 0:
            whole = GPT(config)
            whole.load_state_dict(fp32_weights(saved))
            # What is left out stays where it began, and a scalar that trains has moved.
            torch.manual_seed(0)
            began = dict(GPT(config).named_parameters())
            scalars = [name for name, p in whole.named_parameters() if p.dim() == 0]
            assert len(scalars) == 2
            for name, parameter in whole.named_parameters():
                moved = not torch.equal(parameter, began[name])
                if name in treatment.unused:
                    torch.testing.assert_close(
                        parameter, began[name].bfloat16().float(), rtol=1e-2, atol=1e-3
                    )
                elif name in scalars:
                    assert moved, (name, stage)


def test_scalars_and_left_out_parameters_survive_a_checkpoint(tmp_path: Path) -> None:
    config = config_of(tmp_path, "own_leftover")
    treatment = probe(config)
    assert {name.rsplit(".", 2)[-2] for name in treatment.unused} == {"ln_2", "left_over"}
    run_on_ranks(save_and_resume, 2, tmp_path, config, treatment)


def left_out_and_used(rank: int, folder: Path, config: GPTConfig) -> None:
    for stage in (0, 1, 2, 3):
        name = "transformer.h.1.mlp.c_fc.weight"
        engine = engine_of(folder, config, zero(stage), Treatment(unused=(name,)))
        names = [n for group in engine.optimizer.param_groups for n in group["names"]]
        assert names and name not in names
        with pytest.raises(UserError, match=rf"{name} was left out of training,.* this step does"):
            one_step(engine, 0)
        engine.destroy()


def test_a_left_out_parameter_that_is_used_stops_the_run(tmp_path: Path) -> None:
    run_on_ranks(left_out_and_used, 1, tmp_path, GPTConfig(**SHAPE))


def transposed(rank: int, folder: Path) -> None:
    torch.manual_seed(rank)
    gpt = GPT(GPTConfig(**SHAPE))
    weight = gpt.blocks[0].mlp.c_fc.weight
    weight.data = weight.data.t().contiguous().t()
    build_engine(gpt, load(folder, DS_CONFIG | {"train_batch_size": 4} | zero(1), 2))
    gathered = [torch.empty_like(weight) for _ in range(2)]
    dist.all_gather(gathered, weight.data.contiguous())
    assert torch.equal(*gathered)
    torch.manual_seed(0)
    first = GPT(GPTConfig(**SHAPE)).blocks[0].mlp.c_fc
    assert isinstance(first, nn.Linear) and torch.equal(gathered[1], first.weight)


def test_all_ranks_begin_with_rank_0s_weights_in_any_layout(tmp_path: Path) -> None:
    run_on_ranks(transposed, 2, tmp_path)
