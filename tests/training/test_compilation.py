"""Blocks compiled and checkpointed in place: the same numbers, one graph for all layers, and what is said."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.fx.experimental.proxy_tensor import make_fx

from model import GPT, VARIANTS, GPTConfig
from tests.cpu_kinds import pretend_bf16
from training.config import DeepSpeedConfig
from training.engine import compilation
from training.engine.compilation import checkpoint_blocks, compile_blocks, wrap_blocks
from training.engine.cpu_bf16 import bf16_arithmetic
from training.engine.cpu_bf16_graphs import ProductsInFP32

TINY = {"n_layer": 4, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 64}
BREAKS = '''
from torch import nn


class Block(nn.Module):
    """Looks at a value, which no graph can hold."""

    def __init__(self, config):
        super().__init__()
        self.ln = config.norm(config.n_embd, bias=config.bias)

    def forward(self, x):
        y = self.ln(x)
        if y.sum().item() > 1e9:
            return x
        return x + y
'''
BREAKING_LINE = 1 + BREAKS.splitlines().index("        if y.sum().item() > 1e9:")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing compiled before counts, and the C++ compiler is left out: AOTAutograd's graph runs as it is.

    Afterwards torch.compile's settings and loggers are as they were.
    """
    torch._dynamo.reset()
    counters.clear()
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **given: compile_with(f, backend="aot_eager", **given))
    loggers = (compilation._GRAPH_BREAKS, compilation._CONVERSIONS)
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    with torch._dynamo.config.patch(suppress_errors=False):
        yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def gpt(**design: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**TINY, **design))


def gradients(model: GPT) -> list[torch.Tensor]:
    idx = torch.arange(32).view(2, 16)
    torch.manual_seed(5)  # what dropout draws
    _, loss = model(idx, idx)
    assert loss is not None
    return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]


def compiled(model: GPT) -> None:
    compile_blocks(model, pytest.fail)


def checkpointed(model: GPT) -> None:
    checkpoint_blocks(model, on_cpu=False)


def checkpointed_on_cpu(model: GPT) -> None:
    checkpoint_blocks(model, on_cpu=True)


def both(model: GPT) -> None:
    compiled(model)
    checkpointed(model)


@pytest.mark.parametrize("wrap", [compiled, checkpointed, checkpointed_on_cpu, both])
@pytest.mark.parametrize(
    "variant",
    ["vanilla", "value_residual", "value_embeddings", "hyper_connections", "mhc", "attention_residuals",
     "denseformer", "mudd", "stochastic_depth"],
)  # fmt: skip
def test_loss_and_gradients_stay_the_same(variant: str, wrap: Callable[[GPT], None]) -> None:
    plain, wrapped = gpt(**VARIANTS[variant].design), gpt(**VARIANTS[variant].design)
    names = list(wrapped.state_dict())
    wrap(wrapped)
    assert list(wrapped.state_dict()) == names
    for left, right in zip(gradients(plain), gradients(wrapped), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("variant", "graphs"),
    [("vanilla", 2), ("rmsnorm_parallel", 2), ("hyper_connections", 6), ("residual_warmup", 2)],
)
def test_one_graph_serves_all_layers(variant: str, graphs: int) -> None:
    """The final norm's, and a block's or its two branches'. Hyper-connections have one
    for what they write, and two for what they read, because the first streams are one tensor."""
    model = gpt(**VARIANTS[variant].design)
    compiled(model)
    gradients(model)
    assert counters["stats"]["unique_graphs"] == graphs
    gradients(model)
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_graph_serves_all_steps() -> None:
    plain, model = (gpt(block="residual_warmup", block_options={"steps": 4}) for _ in range(2))
    compiled(model)
    found = []
    for step in (0, 1, 2, 50):
        for one in (plain, model):
            one.set_training_step(step)
        found.append(gradients(model))
        for left, right in zip(gradients(plain), found[-1], strict=True):
            torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2
    assert len({loss.item() for loss, *_ in found}) == 4


def test_rotary_positions_and_a_gated_mlp_break_no_graph() -> None:
    modern = {"positions": "rotary", "qk_norm": "head", "mlp": "swiglu", "tied": False}
    plain, wrapped = gpt(**modern), gpt(**modern)
    both(wrapped)
    for left, right in zip(gradients(plain), gradients(wrapped), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2


def test_evaluation_runs_the_blocks_as_they_are() -> None:
    model = gpt().eval()
    compiled(model)
    idx = torch.zeros(3, 7, dtype=torch.long)
    assert torch.equal(model(idx)[0], gpt().eval()(idx)[0])
    assert counters["stats"]["unique_graphs"] == 0


def test_a_graph_break_is_a_warning_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text(BREAKS)
    said: list[str] = []
    model = gpt(block=f"{tmp_path}/breaks.py:Block")
    compile_blocks(model, said.append)
    for left, right in zip(
        gradients(model), gradients(gpt(block=f"{tmp_path}/breaks.py:Block")), strict=True
    ):
        torch.testing.assert_close(left, right)
    assert len(said) == 1, said
    assert f"breaks the graph at {tmp_path}/breaks.py:{BREAKING_LINE}" in said[0] and "item()" in said[0]


def test_what_cannot_be_compiled_runs_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no C++ compiler")

    compile_with = torch._dynamo.optimize
    monkeypatch.setattr(torch, "compile", lambda f, **_: compile_with(broken)(f))
    said: list[str] = []
    model = gpt()
    compile_blocks(model, said.append)
    for left, right in zip(gradients(model), gradients(gpt()), strict=True):
        torch.testing.assert_close(left, right)
    assert said and "no C++ compiler" in said[0] and "\n" not in said[0]


def saved_bytes(model: GPT) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden(torch.zeros(2, 16, dtype=torch.long))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert hidden.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in own)


def test_checkpointed_blocks_keep_their_inputs_only() -> None:
    plain, wrapped = gpt(), gpt()
    checkpointed(wrapped)
    assert saved_bytes(wrapped) < saved_bytes(plain) / 4


@pytest.mark.parametrize(
    ("ds_config", "sentence"),
    [
        ({"zero_optimization": {"stage": 3}}, "train.compile has no effect: ZeRO-3"),
        ({"flops_profiler": {"enabled": True}}, "train.compile has no effect: flops_profiler"),
    ],
)
def test_where_blocks_stay_uncompiled_it_is_said(ds_config: dict[str, Any], sentence: str) -> None:
    said: list[str] = []
    model = gpt()
    wrap_blocks(model, True, DeepSpeedConfig(ds_config), said.append)
    assert len(said) == 1 and said[0].startswith(sentence)
    gradients(model)
    assert counters["stats"]["unique_graphs"] == 0


@pytest.mark.parametrize(("folder", "is_used"), [("plain/inductor", True), ("[v1] x/inductor", False)])
def test_compiled_code_is_kept_where_the_compiler_takes_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, is_used: bool
) -> None:
    monkeypatch.setattr(compilation, "CACHE_DIR", tmp_path / folder)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compile_blocks(gpt(), pytest.fail)
    assert (os.environ.get("TORCHINDUCTOR_CACHE_DIR") == str(tmp_path / folder)) == is_used


def test_one_key_switches_it_off_and_the_jsons_section_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped: list[Any] = []
    monkeypatch.setattr(compilation, "compile_blocks", lambda *_, **__: wrapped.append("compiled"))
    monkeypatch.setattr(compilation, "checkpoint_blocks", lambda _, on_cpu: wrapped.append(on_cpu))
    for compiles, ds_config, expected in (
        (True, {}, ["compiled"]),
        (False, {}, []),
        (False, {"activation_checkpointing": {}}, [False]),
        (True, {"activation_checkpointing": {"cpu_checkpointing": True}}, ["compiled", True]),
    ):
        wrapped.clear()
        config = DeepSpeedConfig({"train_micro_batch_size_per_gpu": 2} | ds_config)
        wrap_blocks(gpt(), compiles, config, pytest.fail)
        assert wrapped == expected


def test_the_graph_pass_leaves_no_bf16_product() -> None:
    """Products and attention of a bf16 graph get fp32 inputs, and what reads them gets bf16."""
    torch.manual_seed(0)
    q = torch.randn(1, 2, 16, 8, dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(8, 8, dtype=torch.bfloat16, requires_grad=True)

    def products(q: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True) @ w
        return torch.autograd.grad(y.float().square().sum(), (q, w))

    graph = make_fx(products, tracing_mode="fake")(q, w)
    ProductsInFP32()(graph.graph)
    graph.recompile()
    seen = 0
    for node in graph.graph.nodes:
        name = str(node.target)
        if any(product in name for product in ("mm", "attention")):
            seen += 1
            inputs = [given.meta["val"] for given in node.all_input_nodes if "val" in given.meta]
            assert all(t.dtype != torch.bfloat16 for t in inputs if isinstance(t, torch.Tensor)), name
    assert seen >= 5
    exact = products(q.detach().double().requires_grad_(), w.detach().double().requires_grad_())
    for ours, truth in zip(graph(q, w), exact, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), truth, atol=0.02 * truth.abs().max().item(), rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("has_bf16", [False, True], ids=["fp32 products", "bf16 products"])
def test_compiled_by_inductor_in_bf16_the_step_is_the_uncompiled_one(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU with bf16 instructions and on one without, whichever this is."""
    monkeypatch.undo()
    pretend_bf16(has_bf16, monkeypatch)
    plain, wrapped = gpt().bfloat16(), gpt().bfloat16()
    compile_blocks(wrapped, pytest.fail)
    with bf16_arithmetic():
        theirs = gradients(plain)
        counters.clear()  # with bf16 instructions the loss has just compiled a kernel of its own
        ours = gradients(wrapped)
    assert counters["stats"]["unique_graphs"] == 2
    for left, right in zip(ours, theirs, strict=True):
        assert (left - right).float().norm() <= 0.05 * right.float().norm() + 1e-4


@pytest.mark.slow
def test_a_parallel_block_compiles_at_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums over so many rows are split; those of its two branches, fused, would get one name."""
    monkeypatch.undo()
    pretend_bf16(True, monkeypatch)
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 32, "block_size": 512, "vocab_size": 64}
    model = GPT(GPTConfig(**shape, **VARIANTS["rmsnorm_parallel"].design)).bfloat16()
    compile_blocks(model, pytest.fail)
    idx = torch.randint(64, (16, 512))
    with bf16_arithmetic():
        _, loss = model(idx, idx)
        loss.backward()
    assert torch.isfinite(loss)
