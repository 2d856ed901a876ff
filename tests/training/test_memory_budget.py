"""train.activation_memory_budget: fewer bytes kept for backward, the same numbers, and the plan of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._functorch import config as functorch

from model import GPT, GPTConfig
from model.errors import UserError
from training.config import DeepSpeedConfig, TrainConfig
from training.engine.compilation import checkpoint_blocks, compile_blocks, wrap_blocks
from training.plan import trace as plan
from training.plan.compiled import graphs_run_by

SIZES = {"train_micro_batch_size_per_gpu": 2}
SHAPE = GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=64)
SEQUENCES = 4
BUDGETS = (1.0, 0.3, 1.0)


@dataclass(frozen=True)
class Run:
    """A forward and backward: bytes kept between the two, loss and gradients, and what the caches found."""

    kept: int
    numbers: list[torch.Tensor]
    found: int


def kept_by(gpt: GPT, idx: torch.Tensor, documents: torch.Tensor | None = None) -> tuple[int, torch.Tensor]:
    """Bytes that autograd keeps of `gpt.hidden`, each storage once and no parameter, and its output."""
    weights = {parameter.untyped_storage()._cdata for parameter in gpt.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if (storage := x.untyped_storage())._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            alive.append(x)
        return x

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden = gpt.hidden(idx, documents)
    return sum(kept.values()), hidden


def planned_to_be_kept(
    config: GPTConfig, compiled: bool, budget: float = 1.0, documents: bool = False, checkpoint: bool = False
) -> int:
    """The same from the plan's tensors without memory."""
    live = plan.Live()
    with graphs_run_by(live.run, budget), plan.FakeTensorMode():
        gpt = GPT(config).train()
        if compiled:
            compile_blocks(gpt, pytest.fail, budget=budget)
        if checkpoint:
            checkpoint_blocks(gpt, on_cpu=False)
        idx = torch.zeros(SEQUENCES, config.block_size, dtype=torch.int64)
        with live:
            hidden = gpt.hidden(idx, idx if documents else None)
        assert hidden.requires_grad  # what is kept hangs on it
        return live.now - hidden.untyped_storage().nbytes()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Nothing compiled before counts, and torch's settings are what they were."""
    torch._dynamo.reset()
    torch._inductor.config.joint_custom_post_pass = None
    with functorch.patch(activation_memory_budget=1.0), torch._dynamo.config.patch(suppress_errors=False):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """The same model at each of `BUDGETS`, compiled by inductor with one folder for all its code."""
    return runs_of(SHAPE, BUDGETS, tmp_path_factory)


def runs_of(
    config: GPTConfig, budgets: Sequence[float], tmp_path_factory: pytest.TempPathFactory
) -> list[Run]:
    patch = pytest.MonkeyPatch()
    patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    made = []
    for budget in budgets:
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        gpt = GPT(config)
        compile_blocks(gpt, pytest.fail, budget=budget)
        idx = torch.arange(SEQUENCES * 32).mul(7).remainder(64).view(SEQUENCES, 32)
        torch.manual_seed(5)  # what dropout draws
        kept, hidden = kept_by(gpt, idx)
        loss = gpt.lm_head(hidden, idx.roll(-1))
        gradients = torch.autograd.grad(loss, list(gpt.parameters()))
        made.append(Run(kept, [loss.detach(), *gradients], counters["aot_autograd"]["autograd_cache_hit"]))
    patch.undo()
    functorch.activation_memory_budget = 1.0
    return made


@pytest.mark.slow
def test_a_budget_keeps_less_and_changes_no_number(runs: list[Run]) -> None:
    whole, budgeted, _ = runs
    # A block keeps 16 C per token without one, and with 0.3 neither attention's inputs nor the MLP's twice.
    assert budgeted.kept < 0.5 * whole.kept
    assert len(whole.numbers) == len(budgeted.numbers) > 20
    for left, right in zip(whole.numbers, budgeted.numbers, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_budget_computes_the_same_dropout_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    """torch alone draws another in backward: the gradients were of another function than the loss."""
    whole, budgeted = runs_of(replace(SHAPE, dropout=0.2), (1.0, 0.3), tmp_path_factory)
    assert budgeted.kept < 0.6 * whole.kept
    for left, right in zip(whole.numbers, budgeted.numbers, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_code_on_disk_is_found_at_its_own_budget_alone(runs: list[Run]) -> None:
    whole, budgeted, again = runs
    assert (whole.found, budgeted.found, again.found) == (0, 0, 2)  # a block, and the final norm
    assert again.kept == whole.kept


@pytest.mark.slow
def test_the_plan_knows_what_compiled_blocks_keep(runs: list[Run]) -> None:
    for budget, run in zip(BUDGETS, runs, strict=True):
        assert planned_to_be_kept(SHAPE, compiled=True, budget=budget) == pytest.approx(run.kept, rel=0.02)


@pytest.mark.slow
def test_the_plan_knows_what_compiled_streams_keep(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A topology's own code, compiled between the blocks, keeps as much as they do."""
    streams = replace(SHAPE, n_layer=1, topology="hyper_connections")
    (run,) = runs_of(streams, (1.0,), tmp_path_factory)
    assert planned_to_be_kept(streams, compiled=True) == pytest.approx(run.kept, rel=0.02)
    assert run.kept > 1.5 * planned_to_be_kept(replace(SHAPE, n_layer=1), compiled=True)


@pytest.mark.parametrize(
    ("options", "documents", "checkpoint"),
    [
        ({}, False, False),
        ({}, True, False),
        ({"dropout": 0.1}, False, False),
        ({"norm": "rmsnorm", "mlp": "swiglu", "positions": "rotary"}, False, False),
        ({}, False, True),
        ({"block": "parallel"}, True, True),
    ],
)
def test_the_plan_knows_what_uncompiled_blocks_keep(
    options: dict[str, Any], documents: bool, checkpoint: bool
) -> None:
    config = GPTConfig(**vars(SHAPE) | options)
    gpt = GPT(config)
    if checkpoint:
        checkpoint_blocks(gpt, on_cpu=False)
    idx = torch.zeros(SEQUENCES, 32, dtype=torch.int64)
    kept, _ = kept_by(gpt, idx, idx if documents else None)
    planned = planned_to_be_kept(config, False, documents=documents, checkpoint=checkpoint)
    assert planned == pytest.approx(kept, rel=0.1)


def compiled_and_counted(f: Any, *given: torch.Tensor) -> tuple[int, int]:
    """Bytes at the peak of the forward and of the backward of a compiled f, over what was there before."""
    peaks = []
    live = plan.Live()

    def run(graph: torch.fx.GraphModule, inputs: list[Any], is_backward: bool) -> Any:
        before, live.peak = live.now, live.now
        result = live.run(graph, inputs, is_backward)
        peaks.append(live.peak - before)
        return result

    with graphs_run_by(run, 1.0), plan.FakeTensorMode() as fake:
        inputs = [fake.from_tensor(x).requires_grad_() for x in given]
        compiled = torch.compile(f, dynamic=False)
        with live:
            compiled(*inputs).sum().backward()
    return peaks[0], peaks[1]


def test_pointwise_code_between_products_takes_no_memory_of_its_own() -> None:
    """tanh(x W) W: what lies in memory of (8, 8) fp32 tensors, 256 bytes each, counted by hand."""
    size = 8 * 8 * 4
    x, weight = torch.ones(8, 8), torch.ones(8, 8)
    f = lambda x, w: (x @ w).sin().mul(2).exp() @ w  # noqa: E731
    forward, backward = compiled_and_counted(f, x, weight)
    assert forward == 3 * size  # x W, what is multiplied again, the result; x and W were there
    # The gradient of what was multiplied again, of x W in its place, W's two and their sum, x's: at most
    # three of them at once beside what the forward has kept.
    assert 2 * size <= backward <= 4 * size


@pytest.mark.parametrize(
    ("compiled", "ds_config", "reason"),
    [
        (False, {}, "train.compile is false"),
        (True, {"zero_optimization": {"stage": 3}}, "train.compile has none"),
        (True, {"flops_profiler": {"enabled": True}}, "train.compile has none"),
        (True, {"activation_checkpointing": {}}, "activation_checkpointing keeps the inputs of blocks alone"),
    ],
)
def test_where_a_budget_does_nothing_it_is_said(
    compiled: bool, ds_config: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    wrap_blocks(GPT(SHAPE), compiled, DeepSpeedConfig(SIZES | ds_config), said.append, budget=0.5)
    (sentence,) = [one for one in said if "activation_memory_budget" in one]
    assert sentence.startswith(f"train.activation_memory_budget has no effect: {reason}")
    assert functorch.activation_memory_budget == 1.0


def test_nothing_is_said_where_it_works_or_is_left_out() -> None:
    for compiled, budget in ((True, 0.5), (True, 1.0), (False, 1.0)):
        wrap_blocks(GPT(SHAPE), compiled, DeepSpeedConfig(SIZES), pytest.fail, budget)
        assert functorch.activation_memory_budget == (budget if compiled else 1.0)
        wrap_blocks(GPT(SHAPE), True, DeepSpeedConfig(SIZES), pytest.fail)
        assert functorch.activation_memory_budget == 1.0  # not the one of the model before


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.01])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(UserError, match=r"train\.activation_memory_budget"):
        TrainConfig(activation_memory_budget=budget)


def test_attention_is_weighed_by_its_flops_on_cpus_too() -> None:
    """Otherwise torch takes it for free there, and computes it again before any product."""
    compile_blocks(GPT(SHAPE), pytest.fail, budget=0.5)
    q = torch.zeros(1, 2, 16, 8)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert counter.get_total_flops() == 2 * 2 * 2 * 16 * 16 * 8
