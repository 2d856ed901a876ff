"""Designs for the pre-flight check: broken ones, cheating ones and honest ones, and how they are checked."""

from pathlib import Path

from model import GPTConfig
from model.preflight import Report, preflight
from tests.tiny import TINY

SHAPE = TINY | {"block_size": 80}

BLOCK = """
import torch
from torch import nn
import torch.nn.functional as F

KEPT = {{}}
calls = []

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = config.layer_idx
        self.ln_1 = config.norm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = config.norm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.shape(config)

    def shape(self, config):
        {init}

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        {change}
        return x + self.mlp(self.ln_2(x))
"""

NORM = """
import torch
from torch import nn

KEPT = {{}}

class LayerNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        {init}

    def forward(self, x):
        {body}
"""

CAUSAL_CONVOLUTION = (
    "self.conv = nn.Conv1d(config.n_embd, config.n_embd, 3)",
    "x = x + self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)",
)
FUTURE_MEAN = "x.flip(1).cumsum(1).flip(1) / x.shape[1]"

# name: (what __init__ adds, what forward adds, the checks that may refuse it)
BLOCKS = {
    "cumulative statistic from the end": ("pass", f"x = x + {FUTURE_MEAN}", "causality.layers"),
    "mean over the sequence": ("pass", "x = x - x.mean(1, keepdim=True)", "causality.layers"),
    "mean over the batch": ("pass", "x = x - x.mean(0, keepdim=True)", "contract.batch"),
    "bidirectional convolution": (
        "self.conv = nn.Conv1d(config.n_embd, config.n_embd, 3, padding=1)",
        "x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)",
        "causality.layers",
    ),
    "leak behind a gate that starts at zero": (
        "self.gate = nn.Parameter(torch.zeros(()))",
        "x = x + self.gate * x.roll(-1, 1)",
        "causality.layers",
    ),
    "tiny constant coefficient": ("pass", "x = x + 1e-9 * x.mean(1, keepdim=True)", "causality.layers"),
    "coefficient below float64's resolution": (
        "pass",
        "x = x + 1e-30 * x.mean(1, keepdim=True)",
        "causality.gradient",
    ),
    "only in the last layer": (
        "pass",
        "x = x + x.roll(-1, 1) if self.layer == 1 else x",
        "causality.layers",
    ),
    "only in sequences of 48 tokens or more": (
        "pass",
        "x = x + x.roll(-1, 1) if x.shape[1] >= 48 else x",
        "causality.layers",
    ),
    "only at the full block size": (
        "pass",
        "x = x + x.roll(-1, 1) if x.shape[1] == 80 else x",
        "causality.lengths",
    ),
    "only in batches of three": (
        "pass",
        "x = x + x.roll(-1, 1) if x.shape[0] == 3 else x",
        "causality.lengths",
    ),
    "only in train mode": (
        "pass",
        "x = x + x.roll(-1, 1) if self.training else x",
        "causality.lengths",
    ),
    "only in bf16": (
        "pass",
        "x = x + x.roll(-1, 1) if x.dtype == torch.bfloat16 else x",
        "causality.lengths",
    ),
    "only at the target's width": (
        "pass",
        "x = x + x.roll(-1, 1) if x.shape[2] == 48 else x",
        "causality.width",
    ),
    "detached": (
        "pass",
        "x = x + x.detach().roll(-1, 1)",
        "causality.layers",
    ),
    "under no_grad": (
        "pass",
        "with torch.no_grad(): late = x.flip(1).cumsum(1).flip(1)\n        x = x + late",
        "causality.layers",
    ),
    "largest position of a window of 16": (
        "pass",
        "n = x.shape[1] // 16 * 16\n"
        "        top = x[:, :n].unflatten(1, (-1, 16)).amax(2, keepdim=True).expand(-1, -1, 16, -1)\n"
        "        x = x + F.pad(top.flatten(1, 2), (0, 0, 0, x.shape[1] - n))",
        "causality.layers",
    ),
    "one position peeks one ahead": (
        "pass",
        "x = torch.cat([x[:, :17], x[:, 17:18] + x[:, 18:19], x[:, 18:]], 1) if x.shape[1] > 18 else x",
        "causality.gradient",
    ),
    "memory of the call before": (
        "self.kept = None",
        "kept, self.kept = self.kept, x.detach()\n"
        "        x = x + kept if kept is not None and kept.shape == x.shape and kept.dtype == x.dtype else x",
        "contract.repeatable",
    ),
    "memory of a call with the same first token": (
        "pass",
        "key = (self.layer, x.shape, x.dtype, x[:, 0].sum().item())\n"
        "        kept = KEPT.setdefault(key, x.detach().clone())\n"
        "        x = x + kept.roll(-1, 1) * 0.1",
        "causality.memory",
    ),
    "running statistics": (
        "self.bn = nn.BatchNorm1d(config.n_embd)",
        "x = self.bn(x.transpose(1, 2)).transpose(1, 2)",
        "contract.train_mode",
    ),
    "counter in a buffer": (
        "self.register_buffer('seen', torch.zeros(()))",
        "self.seen += self.training",
        "contract.train_mode",
    ),
    "in-place change of the input": ("pass", "x = x", "contract.runs"),
    "constant that is not saved": (
        "self.constant = torch.randn(config.n_embd)",
        "x = x + self.constant.to(x)",
        "contract.state_dict",
    ),
    "constant on the CPU": (
        "self.constant = torch.ones(config.n_embd)",
        "x = x + self.constant.to(x.dtype)",
        "contract.device",
    ),
    "another precision": ("pass", "x = x.float()", "contract.shapes"),
    "float16 overflow": (
        "pass",
        "x = x + (x.half().square().mean(-1, keepdim=True)).clamp(max=9.0).to(x) * 1e-3",
        "numerics.float16",
    ),
    "division by a variance of zero": (
        "pass",
        "x = x / (x - x.mean(-1, keepdim=True) - x).std(-1, keepdim=True)",
        "numerics.bf16",
    ),
    "reading the tokens from the caller's frame": (
        "import sys; self.sys = sys",
        "frame = self.sys._getframe()\n"
        "        while frame and not (frame.f_code.co_name == 'hidden' and 'idx' in frame.f_locals):\n"
        "            frame = frame.f_back\n"
        "        x = x + 0.1 * frame.f_locals['idx'].roll(-1, 1)[..., None].to(x) if frame else x",
        "causality.model",
    ),
}
NORMS = {
    "statistic over time": (
        "pass",
        "return self.weight * x / x.std((-2, -1), keepdim=True)",
        "causality.norm",
    ),
    "statistic over the batch": (
        "pass",
        "return self.weight * x / x.square().mean((0, -1), keepdim=True).sqrt()",
        "causality.norm",
    ),
    "half precision": (
        "pass",
        "h = x.half()\n"
        "        return self.weight * (h / (h * h).mean(-1, keepdim=True).add(1e-3).sqrt()).to(x)",
        "numerics.float16",
    ),
}
HONEST = {
    "unused parameter": ("self.unused = nn.Parameter(torch.zeros(3))", "pass"),
    "causal convolution": CAUSAL_CONVOLUTION,
    "mean over the past": (
        "pass",
        "x = x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)[:, None]",
    ),
    "token shift to the right": (
        "self.mix = nn.Parameter(torch.zeros(config.n_embd))",
        "x = x + self.mix * (F.pad(x, (0, 0, 1, -1)) - x)",
    ),
    "square root of a gain": (
        "self.gain = nn.Parameter(torch.ones(config.n_embd))",
        "x = x + torch.sqrt(self.gain) * x",
    ),
    "side channel within one forward": (
        "pass",
        "KEPT['first'] = x if self.layer == 0 else KEPT['first']\n        x = x + 0.1 * KEPT['first']",
    ),
}


def check(tmp_path: Path, text: str, plug: str = "block", name: str = "Block", **changes: int) -> Report:
    path = tmp_path / "candidate.py"
    path.write_text(text)
    return preflight(GPTConfig(**{**SHAPE, **changes}, **{plug: f"{path}:{name}"}), thorough=False)  # type: ignore[arg-type]


def failed(report: Report) -> dict[str, str]:
    return {found.name: found.detail for found in report.checks if found.status == "fail"}
