"""`train.py --explain`: the whole run as it is resolved, in words; nothing is trained, no data are opened."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from data import MOST_LANES, open_tokenizer
from model import GPT, flops_per_token
from model.probe import probe_unless_ours

from .config import DeepSpeedConfig, Recipe
from .config.candidate import Overrides
from .engine.build import optimizer_groups
from .engine.compilation import why_no_budget
from .engine.environment import world_size_from_environment
from .schedule import ScheduleConfig, learning_rate

if TYPE_CHECKING:
    import torch

SCHEDULE_STEPS = 10
PRECISIONS = {
    "fp32": "fp32 parameters and products",
    "bf16": "bf16 parameters and products, fp32 master weights",
    "fp16": "fp16 parameters and products, fp32 master weights",
    "autocast_bf16": "fp32 parameters, bf16 autocast",
    "autocast_fp16": "fp32 parameters, fp16 autocast",
}


@dataclass(frozen=True)
class _Kind:
    """Parameters that differ in their layer only: their name with `*` for it, shape, number and start."""

    name: str
    shape: str
    count: int
    start: str
    weight_decay: float
    lr_mult: float


def explanation(recipe: Recipe, ds: DeepSpeedConfig, overrides: Overrides) -> str:
    """What a run is: design, model, initial weights, optimizer, schedule, numerics, data, scores.

    The model is built, as wide as it is, so that its initial weights are those that are told. No data are
    opened. Raises UserError for a design that cannot be built.
    """
    import torch

    torch.manual_seed(recipe.train.init_seed)
    gpt = GPT(recipe.model)
    gpt.treat(probe_unless_ours(recipe.model))
    start = f"drawn with init_seed {recipe.train.init_seed}"
    if source := recipe.train.init_from:
        from .engine.weights import load_weights

        gpt.load_state_dict(load_weights(source).state_dict())
        start = f"those of {source}"
    sections = {
        "design": _design(recipe),
        "model": _model(recipe, gpt),
        "initial weights and weight decay": _parameters(gpt, ds, start),
        "optimizer": [*_optimizer(ds), *overrides.sentences()],
        "learning rate": _schedule(recipe.schedule, ds.peak_lr, recipe.train.steps),
        "batch and length": _length(recipe, ds),
        "numerics": [
            f"{PRECISIONS[ds.precision]}; gradients summed in {ds.accumulation_dtype}, sent in {_sent(ds)}; "
            f"ZeRO-{ds.stage}",
            *_compiled(recipe, ds),
        ],
        "data": _data(recipe),
        "scores": _scores(recipe),
    }
    return "\n".join(
        line for title, lines in sections.items() for line in (title, *(f"  {one}" for one in lines))
    )


def _compiled(recipe: Recipe, ds: DeepSpeedConfig) -> list[str]:
    compiled, budget = recipe.train.compile, recipe.train.activation_memory_budget
    lines = [f"torch.compile of the blocks: {'yes' if compiled else 'no'}"]
    if budget < 1:
        because = why_no_budget(compiled, ds)
        lines.append(
            f"train.activation_memory_budget has no effect: {because}"
            if because
            else f"they keep {budget:g} of their activations for backward, and compute the rest again"
        )
    return lines


def _design(recipe: Recipe) -> list[str]:
    model = recipe.model
    parts = []
    for plug in ("norm", "block", "topology"):
        options = getattr(model, f"{plug}_options")
        parts.append(f"{plug} {getattr(model, plug)}{f' {options}' if options else ''}")
    return [f"{recipe.variant}: {', '.join(parts)}"]


def _model(recipe: Recipe, gpt: GPT) -> list[str]:
    model, tokenizer = recipe.model, open_tokenizer(recipe.data.tokenizer)
    shown = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "norm", "block", "topology")
    rest = [field.name for field in fields(model) if field.name.removesuffix("_options") not in shown]
    return [
        f"{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, context {model.block_size}, "
        f"vocabulary {tokenizer.vocab_size} ({tokenizer.name}) padded to {model.vocab_size}",
        ", ".join(f"{name} {getattr(model, name)}".lower() for name in rest),
        f"{gpt.num_parameters():,} parameters, {flops_per_token(gpt):.3g} FLOPs per token",
    ]


def _parameters(gpt: GPT, ds: DeepSpeedConfig, start: str) -> list[str]:
    groups = optimizer_groups(gpt, ds)
    rows = [("parameter", "shape", "tensors", "starts at", "decay", "rate")]
    rows += [
        (k.name, k.shape, str(k.count), k.start, f"{k.weight_decay:g}", f"x {k.lr_mult:g}")
        for k in _kinds(gpt, groups)
    ]
    table = tabulate(rows, tablefmt="plain", disable_numparse=True)
    lines = [line.rstrip() for line in table.splitlines()]
    decayed, others = (
        sum(p.numel() for group in groups if (group["weight_decay"] > 0) == decays for p in group["params"])
        for decays in (True, False)
    )
    return [start, *lines, f"{decayed:,} parameters decay, {others:,} do not"]


def _kinds(gpt: GPT, groups: Sequence[Mapping[str, Any]]) -> list[_Kind]:
    """The model's parameters by kind, in their order, with their optimizer group; a tied tensor counts once.

    One that does not train has a learning rate of 0 times the schedule's.
    """
    group_of = {id(p): group for group in groups for p in group["params"]}
    by_kind: dict[tuple[str, str], list[torch.nn.Parameter]] = {}
    for name, parameter in gpt.named_parameters():
        kind = re.sub(r"\.\d+\.", ".*.", name.removeprefix("transformer."))
        by_kind.setdefault((kind, " x ".join(map(str, parameter.shape))), []).append(parameter)
    not_trained = {"weight_decay": 0.0, "lr_mult": 0.0}
    return [
        _Kind(name, shape, len(same), _start(same), group["weight_decay"], group["lr_mult"])
        for (name, shape), same in by_kind.items()
        for group in (group_of.get(id(same[0]), not_trained),)
    ]


def _start(parameters: Sequence["torch.Tensor"]) -> str:
    """What the parameters hold: one value, or the standard deviation about their mean."""
    import torch

    with torch.no_grad():
        lowest = min(float(p.min()) for p in parameters)
        highest = max(float(p.max()) for p in parameters)
    if lowest == highest:
        return f"{lowest:g}"
    values = sum(p.numel() for p in parameters)
    mean = sum(float(p.detach().double().sum()) for p in parameters) / values
    square = sum(float(p.detach().double().square().sum()) for p in parameters) / values
    return f"sd {math.sqrt(max(square - mean * mean, 0.0)):.5f}, mean {mean:.1g}"


def _optimizer(ds: DeepSpeedConfig) -> list[str]:
    shown = ", ".join(f"{name} {value}" for name, value in ds.optimizer_params.items() if name != "lr")
    clipping = ds.raw.get("gradient_clipping") or 0
    clipped = f"gradients clipped to a norm of {clipping:g}" if clipping else "gradients not clipped"
    return [f"{ds.section('optimizer')['type']}: {shown}", clipped]


def _sent(ds: DeepSpeedConfig) -> str:
    if not ds.reduces_linear_layers_in_half:
        return ds.communication_dtype
    half = ds.precision.removeprefix("autocast_")
    return f"{half} for linear layers and fp32 for the rest"


def _schedule(schedule: ScheduleConfig, peak: float, steps: int) -> list[str]:
    warmup = schedule.warmup_steps
    formula = {"normlab": "(step + 1) / warm-up", "nanogpt": "(step + 1) / (warm-up + 1)"}
    return [
        f"peak {peak:g}; linear warm-up over {warmup} steps, {formula[schedule.warmup_formula]} of the peak; "
        f"{schedule.shape} to {schedule.floor:g} of it at step {schedule.steps}",
        *(
            f"step {step:>7,}: {learning_rate(step, peak, schedule):.6e}"
            for step in _shown_steps(warmup, steps)
        ),
    ]


def _shown_steps(warmup: int, steps: int) -> list[int]:
    """The first step, the warm-up's middle, its end and the peak, the last step, and some between."""
    fixed = {0, warmup // 2, max(warmup - 1, 0), min(warmup, steps - 1), steps - 1}
    wanted = min(SCHEDULE_STEPS, steps) - len(fixed)
    parts = wanted + 1
    between: Iterable[int] = (warmup + (steps - 1 - warmup) * k // parts for k in range(1, parts))
    return sorted(fixed | set(between))


def _length(recipe: Recipe, ds: DeepSpeedConfig) -> list[str]:
    ranks, block = world_size_from_environment(), recipe.model.block_size
    tokens = ds.train_batch_size * block
    return [
        f"{ds.train_batch_size} sequences of {block} tokens = {tokens:,} tokens per step "
        f"({ds.micro_batch} x {ds.accumulation} accumulation steps x {ranks} ranks)",
        f"{recipe.train.steps:,} steps, counted from 0 = {recipe.train.steps * tokens:,} tokens",
        *ds.notes,
    ]


def _data(recipe: Recipe) -> list[str]:
    data = recipe.data
    names = ("subset", "revision", "files", "split", "text_column")
    given = [f"{name} {value}" for name in names if (value := getattr(data, name, None))]
    held_out = data.validation_source or "its own part or split, else its end, which training never reads"
    by_source = f"up to {MOST_LANES} lanes, as many as the source has shards for"
    lanes = by_source if data.lanes is None else f"{data.lanes} lanes"
    masked = ", attention within a document" if data.document_mask else ""
    return [
        ", ".join([data.source, *given]),
        f"documents in an order fixed by seed {data.seed}, each followed by <|endoftext|>, in {lanes}; "
        f"packing {data.packing}{masked}",
        f"held out: {held_out}",
    ]


def _scores(recipe: Recipe) -> list[str]:
    when = ", scored when training ends" if recipe.eval.after_training else ""
    limit = f", the first {recipe.eval.limit} items each" if recipe.eval.limit else ""
    return [
        f"validation loss every {recipe.train.val_every} steps and after the last: whole documents of at "
        f"most {recipe.data.validation_tokens:,} tokens, the same for every run, each token once",
        f"tasks: {', '.join(recipe.eval.tasks)}{limit}{when}",
    ]
