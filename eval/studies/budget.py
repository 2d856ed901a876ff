"""Designs that have more parameters or FLOPs than the baseline, and a baseline widened to have as many."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache

from model.config import GPTConfig
from model.errors import UserError

from ..judging.request import Trial
from .plan import Plan, resolve_baseline

BUDGET = 1.01
"""Times the baseline's parameters or FLOPs per token; a design beyond it is over budget."""
STEP = 8
"""The width of a widened MLP is a multiple of this."""


@dataclass(frozen=True)
class Shape:
    """What a model takes.

    Attributes:
        parameters: how many.
        flops_per_token: forward and backward.
    """

    parameters: int
    flops_per_token: int


def shape_of(config: GPTConfig) -> Shape:
    """Worked out without memory for weights, with torch. Raises UserError for a design that cannot be."""
    return _shape(json.dumps(asdict(config), sort_keys=True))


def flops_of_run(trial: Trial) -> float:
    """FLOPs of a whole run, forward and backward."""
    return float(shape_of(trial.recipe.model).flops_per_token * trial.tokens)


def with_equal_budgets(plan: Plan) -> Plan:
    """The plan with a widened baseline for each design that is over budget, at each size.

    Its MLP is as wide as it takes to have the design's parameters and FLOPs per token. A design that cannot
    be built has none: the pre-flight check says why.
    """
    trials, widened = dict(plan.trials), {}
    for size in plan.sizes:
        shared = plan.shared[size]
        its = plan.trials[size, plan.baseline, shared].recipe.model
        for design in plan.candidates:
            try:
                width = equal_width(its, plan.trials[size, design, shared].recipe.model)
            except UserError:
                continue
            if width is None:
                continue
            name = f"{plan.baseline}({width})"
            widened[size, design] = name
            for rate in plan.rates(size, plan.baseline):
                if (size, name, rate) not in trials:
                    like = plan.trials[size, plan.baseline, rate]
                    trials[size, name, rate] = resolve_baseline(
                        plan.study, like, {"model.n_inner": str(width)}
                    )
    return replace(plan, trials=trials, widened=widened)


def equal_width(its: GPTConfig, mine: GPTConfig) -> int | None:
    """The width of the baseline's MLP with which it has a design's parameters or FLOPs, whichever takes more.

    None for a design within budget, or a baseline whose MLP is not the usual one.
    """
    usual, wanted = shape_of(its), shape_of(mine)
    first, second = (shape_of(replace(its, n_inner=times * its.n_embd)) for times in (4, 8))
    widths = []
    for name in ("parameters", "flops_per_token"):
        now, then, least, more = (getattr(shape, name) for shape in (usual, wanted, first, second))
        if then > BUDGET * now and more > least:
            widths.append(4 * its.n_embd * (1 + (then - least) / (more - least)))
    return STEP * math.ceil(max(widths) / STEP - 1e-9) if widths else None


@cache
def _shape(config: str) -> Shape:
    from torch._subclasses.fake_tensor import FakeTensorMode  # torch costs seconds

    from model import GPT, flops_per_token

    fields: Mapping[str, object] = json.loads(config)
    with FakeTensorMode():
        gpt = GPT(GPTConfig(**fields))  # type: ignore[arg-type]
        return Shape(sum(parameter.numel() for parameter in gpt.parameters()), flops_per_token(gpt))
