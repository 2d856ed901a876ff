"""Diagnosis by depth, each value against a plain recomputation in fp64 on a tiny model."""

import copy
from collections.abc import Callable
from io import StringIO

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from torch import nn
from tqdm import tqdm

from eval.diagnosis.measures import DROP_EPS, LENS_EPS, Diagnosis, Sequences, measure
from model import GPT, GPTConfig
from tests.own_designs import LEFTOVER
from tests.tiny import TINIEST

N_LAYER = 3
DESIGNS = {
    "vanilla": {},
    "parallel": {"norm": "rmsnorm", "block": "parallel"},
    "candidate": {},
    "streams": {"topology": "hyper_connections", "topology_options": {"streams": 3}},
}


@pytest.fixture(scope="module", params=DESIGNS)
def gpt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GPT:
    """A model in fp64 whose layers all do something."""
    design = dict(DESIGNS[request.param])
    if request.param == "candidate":
        file = tmp_path_factory.mktemp("designs") / "candidate.py"
        file.write_text(LEFTOVER)
        design = {"block": f"{file}:Block"}
    return model_of(**design)


def model_of(**design: object) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**TINIEST | {"n_layer": N_LAYER} | design)).double().eval()
    for parameter in gpt.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return gpt


def sequences_of(gpt: GPT, count: int = 4) -> Sequences:
    torch.manual_seed(1)
    tokens = torch.randint(gpt.config.vocab_size, (count, gpt.config.block_size + 1))
    return Sequences(tokens[:, :-1], tokens[:, 1:], None, batch=3)


def diagnosed(gpt: GPT) -> Diagnosis:
    bars: list[tqdm] = []

    def bar(title: str, **options: object) -> tqdm:
        bars.append(tqdm(**options | {"file": StringIO()}))
        return bars[-1]

    found = measure(gpt, sequences_of(gpt), bar)
    assert [passes.n for passes in bars] == [passes.total for passes in bars]
    return found


def values(found: Diagnosis, name: str, part: str = "") -> list[float]:
    return [row.value for row in found.rows if (row.name, row.part) == (name, part)]


def plain_loss(gpt: GPT) -> float:
    """By the logits, which no chunked loss has seen."""
    sequences = sequences_of(gpt)
    with torch.no_grad():
        logits = gpt(sequences.inputs)[0]
    probabilities = torch.exp(logits - torch.logsumexp(logits, -1, keepdim=True))
    return float(-probabilities.gather(-1, sequences.targets[..., None]).log().mean())


def without_block(gpt: GPT, layer: int) -> GPT:
    """Another model, of the other blocks alone; one that keeps its streams' connections, without branches."""
    if gpt.config.topology == "hyper_connections":
        return without_branches(gpt, layer, "attn", "mlp")
    smaller = GPT(GPTConfig(**{**vars(gpt.config), "n_layer": N_LAYER - 1})).double().eval()
    weights = {k: v for k, v in gpt.state_dict().items() if not k.startswith("transformer.h.")}
    for new, block in enumerate([*gpt.blocks[:layer], *gpt.blocks[layer + 1 :]]):
        weights |= {f"transformer.h.{new}.{name}": value for name, value in block.state_dict().items()}
    smaller.load_state_dict(weights)
    return smaller


def without_branches(gpt: GPT, layer: int, *parts: str) -> GPT:
    """The model with zeros in the projections that write to the stream."""
    silent = copy.deepcopy(gpt)
    for part in parts:
        for parameter in getattr(silent.blocks[layer], part).c_proj.parameters():
            parameter.data.zero_()
    return silent


def with_swapped_blocks(gpt: GPT, layer: int) -> GPT:
    """The model with the weights of two neighbours exchanged."""
    swapped = copy.deepcopy(gpt)
    for to, of in ((layer, layer + 1), (layer + 1, layer)):
        swapped.blocks[to].load_state_dict(gpt.blocks[of].state_dict())
    return swapped


def test_a_layer_costs_what_a_model_built_without_it_loses(gpt: GPT) -> None:
    found, loss = diagnosed(gpt), plain_loss(gpt)
    assert values(found, "loss") == pytest.approx([loss], abs=1e-12)
    costs = [plain_loss(without_block(gpt, layer)) - loss for layer in range(N_LAYER)]
    assert values(found, "layer_drop") == pytest.approx(costs, abs=1e-12)
    swaps = [plain_loss(with_swapped_blocks(gpt, layer)) - loss for layer in range(N_LAYER - 1)]
    assert values(found, "layer_swap") == pytest.approx(swaps, abs=1e-12)
    for part in ("attn", "mlp"):
        of_branch = [plain_loss(without_branches(gpt, layer, part)) - loss for layer in range(N_LAYER)]
        assert values(found, "layer_drop", part) == pytest.approx(of_branch, abs=1e-12)
        assert min(map(abs, costs + swaps + of_branch)) > 1e-5
    counted = sum(cost > DROP_EPS for cost in costs)
    assert values(found, "effective_depth", "layer_drop") == [counted]
    assert not found.notes()


def plain_streams(gpt: GPT) -> torch.Tensor:
    """(layers, B, T, C), step by step."""
    with torch.no_grad():
        idx = sequences_of(gpt).inputs
        x = gpt.transformer["wte"](idx) + gpt.transformer["wpe"].weight[: idx.shape[1]]
        h = [x]
        if gpt.config.topology != "hyper_connections":
            for block in gpt.blocks:
                h.append(block(h[-1]))
            return torch.stack(h)
        H = [x.clone() for _ in range(3)]
        connections = iter(gpt.transformer["topology"].connections)
        for block in gpt.blocks:
            for branch in (block.attention_branch, block.mlp_branch):
                connection = next(connections)
                a, A, b = connection.width[:, 0], connection.width[:, 1:], connection.depth
                output = branch(sum(a[n] * H[n] for n in range(3)))
                H = [sum(A[n, m] * H[n] for n in range(3)) + b[m] * output for m in range(3)]
            h.append(sum(H) / 3)
        return torch.stack(h)


def test_cka_is_that_of_centred_gram_matrices(gpt: GPT) -> None:
    found, h = diagnosed(gpt), plain_streams(gpt).flatten(1, 2).numpy()
    n = h.shape[1]
    centring = np.eye(n) - 1 / n

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        return np.trace(x @ x.T @ centring @ y @ y.T @ centring) / (n - 1) ** 2

    pairs = [(one, other) for one in range(N_LAYER + 1) for other in range(one + 1, N_LAYER + 1)]
    expected = [
        hsic(h[one], h[other]) / np.sqrt(hsic(h[one], h[one]) * hsic(h[other], h[other]))
        for one, other in pairs
    ]
    assert values(found, "cka") == pytest.approx(expected, abs=1e-9)
    rows = [row for row in found.rows if row.name == "cka"]
    assert [(row.layer, row.layer_2) for row in rows] == pairs


def test_angles_ranks_and_cosines_are_those_of_single_tokens(gpt: GPT) -> None:
    found, h = diagnosed(gpt), plain_streams(gpt).numpy()

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    def over_tokens(one: int, other: int, of: Callable[[float], float]) -> float:
        pairs = zip(h[one].reshape(-1, h.shape[-1]), h[other].reshape(-1, h.shape[-1]), strict=True)
        return float(np.mean([of(cosine(x, y)) for x, y in pairs]))

    layers = range(N_LAYER + 1)
    angles = [
        over_tokens(one, other, lambda cos: np.arccos(cos) / np.pi)
        for one in layers
        for other in layers
        if one < other
    ]
    assert values(found, "angular_distance") == pytest.approx(angles, abs=1e-9)
    influence = [over_tokens(layer, layer + 1, lambda cos: 1 - cos) for layer in range(N_LAYER)]
    assert values(found, "block_influence") == pytest.approx(influence, abs=1e-9)
    ranks, rests, cosines = [], [], []
    for layer in layers:
        of_sequences: list[tuple[float, float, float]] = []
        for H in h[layer]:
            shares = np.sqrt(np.linalg.eigvalsh(H @ H.T).clip(0))
            shares = shares / shares.sum()
            rest = sum(((token - H.mean(0)) ** 2).sum() for token in H)
            pairs = [cosine(H[s], H[t]) for s in range(len(H)) for t in range(s)]
            rank = np.exp(-sum(p * np.log(p) for p in shares if p > 0))
            of_sequences.append((rank, np.sqrt(rest / (H**2).sum()), np.mean(pairs)))
        rank, rest, pair = np.mean(of_sequences, axis=0)
        ranks.append(rank)
        rests.append(rest)
        cosines.append(pair)
    assert values(found, "effective_rank") == pytest.approx(ranks, rel=1e-6)
    assert values(found, "rank_collapse") == pytest.approx(rests, abs=1e-9)
    assert values(found, "token_cosine") == pytest.approx(cosines, abs=1e-9)


def test_the_lens_and_the_depth_are_by_explicit_divergences(gpt: GPT) -> None:
    found, h = diagnosed(gpt), plain_streams(gpt)
    with torch.no_grad():
        seen = [gpt.lm_head(gpt.transformer["ln_f"](x)).softmax(-1).numpy() for x in h]
        own = gpt(sequences_of(gpt).inputs)[0].softmax(-1).numpy()
    divergences = [rel_entr(p, own).sum(-1).mean() for p in seen]
    assert values(found, "lens_kl") == pytest.approx(divergences, abs=1e-9)
    assert divergences[0] > 1e-3 and divergences[-1] < 1e-12
    depth = next(layer for layer in range(N_LAYER + 1) if divergences[layer] < LENS_EPS)
    assert values(found, "effective_depth", "lens") == [depth]


class RowByRow(nn.Module):
    """A linear layer of 8 bits, in Python's own arithmetic but for the product."""

    def __init__(self, linear: nn.Linear, by_token: bool) -> None:
        super().__init__()
        self.weight = torch.tensor(to_8_bits(linear.weight.tolist(), by_token=False), dtype=torch.float64)
        self.bias, self.by_token = linear.bias, by_token

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = to_8_bits(x.flatten(0, -2).tolist(), self.by_token)
        y = torch.tensor(rows, dtype=torch.float64).view_as(x) @ self.weight.T
        return y if self.bias is None else y + self.bias


def to_8_bits(rows: list[list[float]], by_token: bool) -> list[list[float]]:
    largest = max(abs(value) for row in rows for value in row)
    scales = [max(map(abs, row)) / 127 if by_token else largest / 127 for row in rows]
    return [[round(value / scale) * scale for value in row] for row, scale in zip(rows, scales, strict=True)]


def test_quantised_layers_lose_what_a_loop_over_rows_loses(gpt: GPT) -> None:
    found, loss = diagnosed(gpt), plain_loss(gpt)
    for part in ("per_tensor", "per_token"):
        rounded = copy.deepcopy(gpt)
        for name, module in list(rounded.transformer.named_modules()):
            if isinstance(module, nn.Linear):
                rounded.transformer.set_submodule(name, RowByRow(module, part == "per_token"))
        sequences = sequences_of(gpt)
        with torch.no_grad():  # one by one: a sequence has a scale
            logits = torch.cat([rounded(of_sequence)[0] for of_sequence in sequences.inputs.split(1)])
        losses = -logits.log_softmax(-1).gather(-1, sequences.targets[..., None])
        gap = float(losses.mean()) - loss
        assert abs(gap) > 1e-7
        assert values(found, "quant_gap", part) == pytest.approx([gap], abs=1e-9)
