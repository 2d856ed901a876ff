"""Checkpoints as the loop writes them, and an engine that stands in for DeepSpeed's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from model import GPT, GPTConfig
from tests.tiny import TINIEST
from training.checkpoints.writing import Checkpoints
from training.config.recipe import TrainConfig
from training.run.reader import checkpoint_name
from training.state import TrainState


def save_checkpoint(engine: Any, run_dir: Path, state: TrainState, keep: int = 1) -> Path:
    """Write one checkpoint of the run in `run_dir` and wait for it. All ranks call it."""
    writer = checkpoints(engine, run_dir, keep_checkpoints=keep)
    writer.save(state)
    assert (problem := writer.wait()) is None, problem
    return run_dir / "checkpoints" / checkpoint_name(state.step)


def checkpoints(engine: Any, run_dir: Path, said: list[Any] | None = None, **train: Any) -> Checkpoints:
    """What writes them; `said` gets what it asks for, and what it reports."""
    told: list[Any] = [] if said is None else said

    def note(*what: Any) -> None:
        told.append(what)

    return Checkpoints(engine, run_dir, TrainConfig(**train), note, note)


class FileEngine:
    """Stands in for DeepSpeed's without ZeRO: its checkpoint is two files, one of them in a folder below."""

    def __init__(self, value: float = 1.0) -> None:
        self.module = GPT(GPTConfig(**TINIEST))
        for parameter in self.module.parameters():
            parameter.data.fill_(value)
        self.moments = torch.full((1000,), value)
        self.optimizer = SimpleNamespace(param_groups=[])
        self._config = SimpleNamespace()
        self.checkpoint_engine: Any = None

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        assert not save_latest  # a `latest` file would name a folder that is renamed
        self.checkpoint_engine.create(None)
        weights = {"module": self.module.state_dict(), "optimizer": None}
        self.checkpoint_engine.save(weights, f"{folder}/{tag}/mp_rank_00_model_states.pt")
        self.checkpoint_engine.save({"moments": self.moments}, f"{folder}/{tag}/optimizer/rank0.pt")

    def load_universal_checkpoint(self) -> bool:
        return False

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str | None, dict[str, Any]]:
        file = Path(folder, tag, "mp_rank_00_model_states.pt")
        if not file.is_file():
            return None, {}
        self.module.load_state_dict(torch.load(file, weights_only=False)["module"])
        return str(file), {}
