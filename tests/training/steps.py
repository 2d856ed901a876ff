"""The result of a step, for tests of what is made of it."""

from typing import Any

from training.step import StepResult

STEP = StepResult(
    loss=2.0,
    tokens=128,
    applied=True,
    grad_norm=0.5,
    seconds=1.0,
    data_wait=0.0,
    stop=False,
    cursors={},
    bad_documents={},
)


def step_result(**changes: Any) -> StepResult:
    return STEP._replace(**changes)
