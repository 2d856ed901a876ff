"""Requests that begin alike, scored in one row of tokens, against each by itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data import open_tokenizer
from eval.scoring.lm import NormLabLM
from eval.scoring.products import FasterLinear
from eval.scoring.shared_contexts import WORTH_SHARING, Row, in_batches, why_not_shared
from eval.scoring.token_scores import token_scores
from model import GPT, VARIANTS
from model.loss import Head
from tests.model.random_models import our_gpt

SHAPE = {"block_size": 160, "vocab_size": 257}
LOOKS_BACK = """
import torch
from torch import nn

class LayerNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.share = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        before = nn.functional.pad(x, (0, 0, 1, 0))[:, :-1] if x.dim() == 3 else x
        return self.weight * x + 1e-6 * self.share * before

class Position(LayerNorm):
    def forward(self, x):
        steps = torch.arange(x.shape[-2], device=x.device)
        return self.weight * x + 0.01 * steps[:, None]

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = config.norm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(x)

class OwnAttention(Block):
    def __init__(self, config):
        super().__init__(config)
        self.attn = nn.Linear(config.n_embd, config.n_embd)
"""


def families(count: int, seed: int) -> list[list[int]]:
    """Token ids of `count` items, each with its own context and five answers, of which two begin alike."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        context = draw.integers(257, size=draw.integers(1, 60)).tolist()
        answers = [draw.integers(257, size=draw.integers(1, 30)).tolist() for _ in range(4)]
        answers.append([*answers[0], *draw.integers(257, size=5).tolist()])
        found += [context + answer for answer in answers]
    return found


def alone(gpt: GPT, sequence: list[int], count: int) -> tuple[float, bool]:
    """The log-likelihood of the last `count` tokens from plain logits, and whether all are the likeliest."""
    logits, _ = gpt(torch.tensor([sequence[:-1]]))
    wanted = sequence[-count:]
    scores = logits[0, -count:].double().log_softmax(-1)
    return scores[range(count), wanted].sum().item(), scores.argmax(-1).tolist() == wanted


@pytest.mark.parametrize("neighbours", [3, 30, 64, 10_000])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_each_sequence_of_a_row_reads_as_alone(neighbours: int, positions: str, monkeypatch) -> None:
    monkeypatch.setattr("model.shared_contexts.NEIGHBOURS", {"cpu": neighbours})
    gpt = our_gpt(positions=positions, **SHAPE).double()
    sequences = sorted(families(3, 0))
    long = sequences[0][:40]
    sequences += [long + branch for branch in sorted(families(2, 1))]  # a stem with trees behind it
    row = Row.of(sequences)
    assert len(row.tokens) < sum(map(len, sequences)) - 200
    with torch.inference_mode():
        hidden = row.hidden(gpt, torch.device("cpu"))
        for sequence, places in zip(sequences, row.places, strict=True):
            assert [row.tokens[place] for place in places] == sequence
            expected = gpt.hidden(torch.tensor([sequence]))[0]
            torch.testing.assert_close(hidden[places], expected, rtol=1e-9, atol=1e-9)


def test_what_came_before_leaves_nothing_behind() -> None:
    gpt, idx = our_gpt(**SHAPE), torch.arange(50)[None]
    with torch.inference_mode():
        before = gpt.hidden(idx)
        Row.of(families(1, 0)).hidden(gpt, torch.device("cpu"))
        assert torch.equal(gpt.hidden(idx), before)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_scores_as_by_hand(name: str) -> None:
    gpt = our_gpt(**VARIANTS[name].design, **SHAPE)
    lm = NormLabLM(gpt, open_tokenizer("bytes"))
    lm.tokens_per_batch = 150
    assert lm.shares == (name != "canon")
    pairs = [(one[: len(one) // 2], one[len(one) // 2 :]) for one in families(2, 2)]
    pairs += [pairs[0], (pairs[0][0], [3]), (pairs[0][0], [4])]
    with torch.inference_mode():
        expected = [alone(gpt, context + rest, len(rest)) for context, rest in pairs]
    found = lm.score(pairs, unit="")
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_designs_that_look_back_elsewhere_are_found_out(tmp_path) -> None:
    file = tmp_path / "design.py"
    file.write_text(LOOKS_BACK)
    plain = f"{file}:Block"
    assert why_not_shared(our_gpt(**SHAPE, block=plain)) is None
    assert "not all its attention" in str(why_not_shared(our_gpt(**SHAPE, block=f"{file}:OwnAttention")))
    gpt = our_gpt(**SHAPE, norm=f"{file}:LayerNorm")
    assert "besides attention" in str(why_not_shared(gpt))  # a millionth of the token before
    for name, parameter in gpt.named_parameters():
        if name.endswith("share"):
            parameter.data.zero_()
    assert why_not_shared(gpt) is None  # these weights do not look back
    assert "positions" in str(why_not_shared(our_gpt(**SHAPE, norm=f"{file}:Position")))
    assert "bfloat16" in str(why_not_shared(our_gpt(**SHAPE).bfloat16()))
    assert why_not_shared(our_gpt(block_size=4)) is None


def test_batches_keep_what_is_shared_together_within_the_budget() -> None:
    sequences = families(20, 3)
    batches = in_batches(sequences, 200)
    assert sorted(i for batch in batches for i in batch) == list(range(100))
    sizes = [len(Row.of([sequences[i] for i in batch]).tokens) for batch in batches]
    assert max(sizes) <= 200
    assert sum(sizes) < 0.6 * sum(map(len, sequences))
    longest = [max(len(sequences[i]) for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True) and longest[0] > longest[-1]
    for budget in (1, 30):
        batches = in_batches(sequences, budget)
        assert sorted(i for batch in batches for i in batch) == list(range(100))
        assert all(len(batch) == 1 or len(Row.of([sequences[i] for i in batch]).tokens) <= budget
                   for batch in batches)  # fmt: skip


def test_a_beginning_of_many_items_is_in_each_batch_once() -> None:
    examples = list(range(100))
    sequences = [[*examples, 200 + i, *range(i, i + WORTH_SHARING)] for i in range(40)]
    batches = in_batches(sequences, 190)
    assert [len(Row.of([sequences[i] for i in batch]).tokens) for batch in batches] == [190] * 4


def test_equal_requests_are_scored_once() -> None:
    lm = NormLabLM(our_gpt(**SHAPE), open_tokenizer("bytes"))
    asked = []
    plain = lm.answers.collect
    lm.answers.collect = lambda requests, *rest: asked.append(len(requests)) or plain(requests, *rest)
    found = lm.score([([1, 2], [3]), ([1], [2, 3]), ([1, 2], [3])], unit="")
    assert asked == [2] and found[0] == found[2] != found[1]


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_token_scores_are_those_of_the_whole_softmax(softcap: float, monkeypatch) -> None:
    monkeypatch.setattr("eval.scoring.token_scores.LOGITS_AT_ONCE", {"cpu": 300 * 20})
    torch.manual_seed(0)
    head, hidden = Head(16, 1000, softcap=softcap), torch.randint(-8, 9, (20, 16)) / 4  # exact products
    with torch.inference_mode():
        head.weight.copy_(torch.randint(-8, 9, (1000, 16)) / 8)
        head.weight[999] = head.weight[head(hidden[3]).argmax()]  # a tie in row 3
        logits = head(hidden)
        rows = torch.arange(20).repeat_interleave(3)
        targets = torch.randint(1000, (60,))
        targets[:20] = logits.argmax(-1)[rows[:20]]
        targets[9], targets[10] = logits[3].argmax(), 999
        scores, greedy = token_scores(head, hidden, rows, targets)
        expected = F.log_softmax(logits.double(), -1)[rows, targets]
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(greedy, logits.argmax(-1)[rows] == targets)
    assert greedy[9] != greedy[10]


def test_linear_layers_are_the_same_to_rounding_and_keep_their_gradients() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(48, 96), torch.randn(2, 5, 48)
    with FasterLinear():
        assert layer(x).requires_grad
        with torch.inference_mode():
            for bias in (layer.bias, None):
                found = F.linear(x, layer.weight, bias)
                expected = F.linear(
                    x.double(), layer.weight.double(), None if bias is None else bias.double()
                )
                torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
            assert layer.double()(x.double()).dtype == torch.float64
            assert layer.float()(x[:0]).shape == (0, 5, 96)
            assert layer(x[0, 0]).shape == (96,)
            turned = F.linear(x, torch.randn(48, 96).T)  # not contiguous
            assert turned.shape == (2, 5, 96)
