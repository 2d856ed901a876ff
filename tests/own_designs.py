"""Designs as researchers write them, with what a trainer must not stumble over."""

_HEAD = """
import torch
import torch.nn as nn
import torch.nn.functional as F
"""
SCALAR = (
    _HEAD
    + """
class LayerNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.gain = nn.Parameter(torch.tensor(0.5))
    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight * (1 + self.gain)
"""
)
KEPT = (
    _HEAD
    + """
class LayerNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.register_buffer("scale", torch.linspace(0.5, 1.5, ndim) ** 0.1)
    def forward(self, x):
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return y.type_as(x) * self.weight
"""
)
CAST = KEPT.replace("x.float()", "x").replace("y.type_as(x)", "y")
LEFTOVER = (
    _HEAD
    + """
class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.left_over = nn.Linear(config.n_embd, config.n_embd)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.attn = CausalSelfAttention(config)
        self.mlp = MLP(config)
    def forward(self, x):
        h = self.ln_1(x)
        return x + self.scale * (self.attn(h) + self.mlp(h))
"""
)
COMPLEX = (
    _HEAD
    + """
class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.mlp = MLP(config)
        angle = torch.outer(torch.arange(config.block_size).float(), torch.rand(config.n_embd // 2))
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle))
    def turned(self, x):
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turn[: x.shape[-2]]).flatten(-2).type_as(x)
    def forward(self, x):
        x = x + self.attn(self.turned(self.ln_1(x)))
        return x + self.mlp(self.ln_2(x))
"""
)
EXPERTS = (
    _HEAD
    + """
class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.router = nn.Linear(config.n_embd, 16, bias=False)
        self.experts = nn.ModuleList(nn.Linear(config.n_embd, config.n_embd) for _ in range(16))
    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        h = self.ln_2(x)
        weight, chosen = self.router(h).softmax(-1).max(-1)
        y = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            own = chosen == number
            if own.any():
                y[own] = (weight[own][:, None] * F.gelu(expert(h[own]))).type_as(y)
        return x + y
"""
)
DESIGNS = {
    "own_scalar": SCALAR,
    "own_kept": KEPT,
    "own_cast": CAST,
    "own_leftover": LEFTOVER,
    "own_complex": COMPLEX,
    "own_experts": EXPERTS,
}
