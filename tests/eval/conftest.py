"""Run folders as train.py and the evaluation jobs leave them, with losses that a test chooses."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from .made_up_run import build_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(variant, init_seed, val_loss=…, tasks=…, …, recipe=…, engine=…, **summary) -> its folder."""
    return partial(build_run, tmp_path)
