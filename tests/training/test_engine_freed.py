"""The memory of an engine that has trained, for what follows in the same process."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import run_forked
from tests.tiny import BF16, DS_CONFIG, ENGINE_TINY, zero


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_an_engines_memory_is_given_back(tmp_path: Path, stage: int) -> None:
    config = DS_CONFIG | (BF16 | zero(stage) if stage else {})
    (tmp_path / "ds.json").write_text(json.dumps(config))
    run_forked(train_and_free, tmp_path)


def train_and_free(folder: Path) -> None:
    from model import GPT
    from training.config.deepspeed import read_deepspeed_config
    from training.engine.build import build_engine, free_engines
    from training.engine.ranks import join_ranks

    join_ranks()
    before = bytes_of_tensors()
    gpt = GPT(ENGINE_TINY)
    weights = gpt.num_parameters()  # before ZeRO-3 splits them
    engine: Any = build_engine(gpt, read_deepspeed_config(folder / "ds.json", {}, 1))
    tokens = torch.randint(128, (2, 17))
    for _ in range(4):
        engine.backward(engine(tokens[:, :-1], tokens[:, 1:])[1])
        engine.step()
    states = [weakref.ref(state) for of in engine.optimizer.state.values() for state in of.values()]
    assert states or engine.zero_optimization()
    assert bytes_of_tensors() - before > 12 * weights  # weights and two moments in fp32
    del engine, gpt
    free_engines()
    assert not [state for state in states if state() is not None]
    left = bytes_of_tensors() - before
    assert left < 4 * weights, f"{left} bytes for {weights} weights"


def bytes_of_tensors() -> int:
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(storages.values())
