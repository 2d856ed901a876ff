"""Checkpoints in every ZeRO stage: the fp32 weights that evaluation reads, and another number of ranks."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import load_file

from model import GPT, GPTConfig
from tests.checkpoints import save_checkpoint
from tests.distributed import run_on_ranks
from training.checkpoints.loading import load_checkpoint
from training.checkpoints.newest import newest_checkpoint, read_state
from training.config import read_deepspeed_config
from training.engine.build import build_engine, set_learning_rate
from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.weights import joined_weights, load_model
from training.state import TrainState

pytestmark = pytest.mark.slow

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=128, dropout=0.1)
ADAMW = {
    "type": "AdamW",
    "params": {"lr": 1e-2, "betas": [0.9, 0.95], "weight_decay": 0.1, "torch_adam": True},
}
MUON = {"type": "Muon", "params": {"lr": 1e-2, "muon_lr": 0.02, "weight_decay": 0.1}}
BF16 = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


def zero(stage: int, *sections: dict[str, Any], **keys: Any) -> dict[str, Any]:
    config = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0}
    for section in sections:
        config |= section
    return {"optimizer": ADAMW, **config, "zero_optimization": {"stage": stage, **keys}}


MODES = {
    "fp32_zero0": zero(0),
    "fp32_zero1": zero(1),
    "fp32_zero2": zero(2),
    "fp32_zero3": zero(3),
    "bf16_zero0": zero(0, {"bf16": {"enabled": True}}),
    "bf16_zero1": zero(1, BF16),
    "bf16_zero2": zero(2, BF16),
    "bf16_zero3": zero(3, BF16),
    "bf16_zero1_offload": zero(1, BF16, **OFFLOAD),
    "bf16_muon": zero(1, BF16, {"optimizer": MUON}),
    # DeepSpeed keeps autocast on for later engines of this process.
    "autocast_zero1": zero(1, AUTOCAST),
}


def batches() -> torch.Tensor:
    """(steps, sequences of the global batch, T + 1): four steps."""
    return torch.randint(0, 128, (4, 8, 17), generator=torch.Generator().manual_seed(5))


def engine_of(folder: Path, mode: str, world_size: int, **checkpoint: Any) -> Any:
    path = folder / f"{mode}_{dist.get_rank()}.json"
    path.write_text(json.dumps(MODES[mode] | {"checkpoint": checkpoint}))
    torch.manual_seed(0)
    gpt = GPT(TINY)
    gpt.transformer.ln_f.weight._lr_mult = 0.5
    return build_engine(gpt, read_deepspeed_config(path, {}, world_size))


def train(engine: Any, rank: int, world_size: int, first: int, last: int) -> list[float]:
    """Losses of the global batches `first` to `last`, exclusive, without dropout."""
    losses = []
    engine.eval()
    for batch in batches()[first:last]:
        set_learning_rate(engine, 1e-2)
        total = torch.zeros(())
        for part in batch[rank::world_size].split(2):
            _, loss = engine(part[:, :-1], part[:, 1:])
            engine.backward(loss)
            engine.step()
            total += loss.detach() / 4
        dist.all_reduce(total)
        losses.append(float(total))
    return losses


def save_all_modes(rank: int, folder: Path) -> None:
    torch.compiler.set_stance("force_eager")  # Muon would be compiled in every process
    with bf16_arithmetic():
        for mode in MODES:
            engine = engine_of(folder, mode, 2)
            losses = train(engine, rank, 2, 0, 2)
            run = folder / mode
            state = TrainState(step=2, data_fingerprint="d")
            save_checkpoint(engine, run, state, keep=1)
            stage = engine.zero_optimization_stage()
            whole = safe_get_full_fp32_param if stage else lambda parameter: parameter.detach()
            weights = {name: whole(p).float().clone() for name, p in engine.module.named_parameters()}
            if rank == 0:
                (run / "recipe.yaml").write_text(yaml.safe_dump({"model": asdict(TINY)}))
                torch.save(weights, run / "weights.pt")
            losses += train(engine, rank, 2, 2, 4)
            if rank == 0:
                (run / "losses.json").write_text(json.dumps(losses))
            engine.destroy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps in every mode, on two ranks, in a folder whose path DeepSpeed would take for a pattern."""
    folder = tmp_path_factory.mktemp("modes") / "[v1] *"
    folder.mkdir()
    run_on_ranks(save_all_modes, 2, folder)
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_reads_the_fp32_weights_of_every_mode(saved: Path, mode: str) -> None:
    gpt, step = load_model(saved / mode)
    assert step == 2
    masters = torch.load(saved / mode / "weights.pt")
    checkpoint = saved / mode / "checkpoints" / "step_00000002"
    stored, joined = load_file(checkpoint / "model.safetensors"), joined_weights(checkpoint)
    assert joined.keys() - stored.keys() == {"lm_head.weight"}  # it is tied
    assert all(torch.equal(stored[name], joined[name].float()) for name in stored)
    for name, parameter in gpt.named_parameters():
        expected = masters[name]
        if mode == "bf16_zero0":  # DeepSpeed gives only the rounded weights there
            assert not torch.equal(parameter, expected)
            parameter = parameter.bfloat16().float()
        assert torch.equal(parameter, expected), name
    assert gpt.lm_head.weight is gpt.transformer.wte.weight


def resume(rank: int, world_size: int, folder: Path, modes: list[str], universal: bool) -> None:
    torch.compiler.set_stance("force_eager")  # Muon would be compiled in every process
    with bf16_arithmetic():
        for mode in modes:
            engine = engine_of(folder, mode, world_size, load_universal=universal)
            before = [{k: v for k, v in g.items() if k != "params"} for g in engine.optimizer.param_groups]
            run = folder / mode
            checkpoint = newest_checkpoint(run / "checkpoints", print)
            assert checkpoint is not None
            state = read_state(checkpoint, ["d"], any_ranks=universal)
            torch.manual_seed(1000 + rank)
            untouched = torch.get_rng_state()
            load_checkpoint(engine, checkpoint, state)
            # a rank beyond those of the checkpoint draws from its own seed on
            assert torch.equal(torch.get_rng_state(), untouched) == (rank >= 2)
            groups = [{k: v for k, v in g.items() if k != "params"} for g in engine.optimizer.param_groups]
            assert groups == before and len({g["lr_mult"] for g in groups}) > 1
            dist.barrier()
            assert not [path for path in checkpoint.parent.iterdir() if "universal" in path.name]
            expected = json.loads((run / "losses.json").read_text())[2:]
            (loss,) = train(engine, rank, world_size, 2, 3)
            assert engine.global_steps == 3  # two before, one now
            # On as many ranks the same numbers; else the same global batch, summed in fp32 in another order.
            tolerance = 0.0 if world_size == 2 else 1e-6
            assert abs(loss - expected[0]) <= tolerance * expected[0], (mode, loss, expected)
            # After a step from there gradients, moments and decay have gone into it. In bf16 (also between
            # ranks) each rank's gradient is of other sequences, so other numbers are rounded by up to 2^-9.
            tolerance *= 1 if mode.startswith("fp32") else 1e3
            (loss,) = train(engine, rank, world_size, 3, 4)
            assert abs(loss - expected[1]) <= tolerance * expected[1], (mode, loss, expected)
            engine.destroy()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_checkpoint_goes_on_on_another_number_of_ranks(saved: Path, world_size: int) -> None:
    modes = [mode for mode in MODES if mode != "bf16_muon"]  # which is refused
    run_on_ranks(resume, world_size, world_size, saved, modes, True)


@pytest.mark.slow
def test_on_the_same_ranks_it_needs_no_conversion(saved: Path) -> None:
    run_on_ranks(resume, 2, 2, saved, list(MODES), False)
