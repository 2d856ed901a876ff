"""The names of all contenders, and what each of them runs."""

from collections.abc import Callable
from functools import partial

from .bench import Bench, Turn
from .huggingface import huggingface
from .normlab import normlab, without_deepspeed
from .torch_loops import ddp, nanogpt

CONTENDERS: dict[str, Callable[[Bench], Turn]] = {
    "NormLab": normlab,
    "NormLab, uncompiled, plain loss": partial(normlab, compiled=False, plain_loss=True),
    "bare loop without DeepSpeed": without_deepspeed,
    "nanoGPT's loop": nanogpt,
    "DDP fp32": partial(ddp, autocast=False, compiled=False),
    "DDP fp32, model compiled": partial(ddp, autocast=False, compiled=True),
    "DDP bf16 autocast": partial(ddp, autocast=True, compiled=False),
    "DDP bf16 autocast, model compiled": partial(ddp, autocast=True, compiled=True),
    "HF Trainer, same JSON": partial(huggingface, compiled=False),
    "HF Trainer, same JSON, compiled": partial(huggingface, compiled=True),
}
NORMLAB, _, BARE = OURS = list(CONTENDERS)[:3]
"""The first is what the others are compared with; the other two have its parts, and are no peers."""
