"""NormLab's step as a run makes it, and the same model and mathematics without DeepSpeed."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from model import GPT
from training.engine.build import build_engine, free_engines, parameter_groups
from training.engine.compilation import wrap_blocks
from training.feed import Feed
from training.step import begin_step, train_step
from training.timing.throughput import Throughput
from training.watch.stop import StopRequest

from .bench import RATE, WEIGHT_DECAY, Bench, PlainLoss, Turn, timed


def normlab(bench: Bench, compiled: bool = True, plain_loss: bool = False) -> Turn:
    """NormLab's engine and loop: ZeRO-1, bf16, the next batch fetched meanwhile, times and norms logged.

    That is `train.py`'s step and line of metrics.jsonl; what looks out for stops between micro-batches stays
    on this rank.
    """
    gpt = bench.gpt(PlainLoss if plain_loss else GPT)
    wrap_blocks(gpt, compiled, bench.deepspeed, print)
    engine = build_engine(gpt, bench.deepspeed)
    throughput = Throughput(bench.flops_per_token, bench.device, bench.ranks.world_size)
    feed, stop = Feed(bench.loader(), bench.accumulation, {}), StopRequest()
    feed.fetch()

    def step(number: int) -> dict[str, float]:
        begin_step(engine, number, RATE)
        result = train_step(
            engine,
            feed,
            device=bench.device,
            eot=bench.eot,
            document_mask=False,
            fetch_next=number < bench.steps,
            stop=stop,
            phase=throughput.phase,
        )
        facts = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": RATE}
        return facts | throughput.step(result.tokens, result.seconds)

    try:
        return timed(bench, step)
    finally:
        free_engines()


def without_deepspeed(bench: Bench) -> Turn:
    """NormLab's model, compilation and loss in a loop of torch alone: what is left out is DeepSpeed's.

    bf16 weights; gradients are added up in fp32 as they come; one all-reduce; AdamW on fp32 master weights,
    which every rank holds whole.
    """
    gpt = bench.gpt()
    wrap_blocks(gpt, True, bench.deepspeed, print)
    gpt.to(torch.bfloat16)
    states = Float32States(gpt)
    optimizer = torch.optim.AdamW(states.groups, lr=RATE, betas=(0.9, 0.95), fused=True)

    def step(number: int) -> dict[str, float]:
        total = torch.zeros((), dtype=torch.float32, device=bench.device)
        for idx, targets in bench.batches(number):
            _, loss = gpt(idx, targets)
            (loss / bench.accumulation).backward()
            total += loss.detach()
        if bench.ranks.world_size > 1:
            dist.all_reduce(states.gradients)
            states.gradients.div_(bench.ranks.world_size)
        norm = nn.utils.clip_grad_norm_(states.masters, 1.0)
        optimizer.step()
        states.end_step()
        mean_loss, grad_norm = torch.stack([total / bench.accumulation, norm]).tolist()
        return {"loss": mean_loss, "grad_norm": grad_norm, "lr": RATE}

    return timed(bench, step)


class Float32States:
    """fp32 master weights and gradients of a model in bf16, each one tensor for all parameters of a group.

    The model's parameters become views of one bf16 tensor per group. The gradient of each is added to the
    fp32 one as soon as it is there, and freed.

    Attributes:
        gradients: those of all groups in one tensor, for one all-reduce.
        masters: the parameters that an optimizer moves, a tensor per group.
        groups: the same as the optimizer's groups.
    """

    def __init__(self, model: nn.Module) -> None:
        groups = parameter_groups(model, WEIGHT_DECAY)
        sizes = [sum(p.numel() for p in group["params"]) for group in groups]
        first = groups[0]["params"][0]
        self.gradients = torch.zeros(sum(sizes), device=first.device)
        self.masters, self.groups, self._weights = [], [], []
        for group, gradients in zip(groups, self.gradients.split(sizes), strict=True):
            weights = torch.cat([p.detach().flatten() for p in group["params"]])
            master = nn.Parameter(weights.float())
            master.grad = gradients
            lengths = [p.numel() for p in group["params"]]
            parts = zip(group["params"], weights.split(lengths), gradients.split(lengths), strict=True)
            for parameter, weight, gradient in parts:
                parameter.data = weight.view_as(parameter)
                parameter.register_post_accumulate_grad_hook(adds_to(gradient.view_as(parameter)))
            self.masters.append(master)
            self.groups.append({"params": [master], "weight_decay": group["weight_decay"]})
            self._weights.append(weights)

    def end_step(self) -> None:
        """The masters have moved: the weights follow, and the gradients begin anew."""
        for weights, master in zip(self._weights, self.masters, strict=True):
            weights.copy_(master.detach())
        self.gradients.zero_()


def adds_to(sums: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """A hook that adds a parameter's gradient to `sums`, of the same shape, and frees it."""

    def add(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        sums.add_(parameter.grad)
        parameter.grad = None

    return add
