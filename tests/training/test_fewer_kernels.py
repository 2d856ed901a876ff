"""ZeRO-1's sums, norm and clipping in fewer kernels, against DeepSpeed's own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_on_ranks
from tests.engines import batches, engine_of, step, weights
from training.engine import build, fewer_kernels
from training.engine.ranks import deepspeed

CONFIG: dict[str, Any] = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 0.3,
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1, "torch_adam": True}},
}


def trained(folder: Path, immediate: bool) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    engine = engine_of(folder, CONFIG | {"bf16": {"enabled": True, "immediate_grad_update": immediate}})
    said = [step(engine, batch, 1e-3) for batch in batches(3)]
    return said, weights(engine)


def compare(_rank: int, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(build, "use_fewer_kernels", lambda _: None)
        for name in ("get_global_norm_of_tensors", "clip_tensors_by_global_norm"):
            theirs = getattr(deepspeed.runtime.utils, name)
            monkeypatch.setattr(deepspeed.runtime.bf16_optimizer, name, theirs)
        expected, exact = trained(folder, immediate=False)
    assert all(norm > 0.3 for _, norm in expected), "clipping has nothing to do"
    fewer_kernels._SLICE = 100  # so that parameters are added in parts, too
    for immediate in (False, True):
        found, after = trained(folder, immediate)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=0)
        for name, weight in after.items():
            torch.testing.assert_close(weight, exact[name], rtol=1e-5, atol=1e-7, msg=name)


def test_losses_norms_and_weights_are_deepspeeds(tmp_path: Path) -> None:
    run_on_ranks(compare, 2, tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_is_marked_as_deepspeed_does(bad: float) -> None:
    tensors = [torch.ones(3), torch.tensor([1.0, bad])]
    theirs = deepspeed.runtime.utils.get_global_norm_of_tensors(tensors)
    assert fewer_kernels._global_norm(tensors) == theirs == -1


def test_norm_and_clipping_by_hand() -> None:
    tensors = [torch.full((4,), 3.0), torch.tensor([8.0])]
    norm = fewer_kernels._global_norm(tensors)
    assert norm == 10
    fewer_kernels._clip(tensors, 20.0, norm)
    assert tensors[1] == 8
    fewer_kernels._clip(tensors, 1.0, norm)
    torch.testing.assert_close(torch.cat(tensors), torch.tensor([0.3, 0.3, 0.3, 0.3, 0.8]))
