"""The adapter against lm-eval's own Hugging Face backend on the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from tqdm import tqdm

from data import Tokenizer, open_tokenizer
from eval.jobs import run_tasks
from eval.scoring.lm import NormLabLM
from eval.tasks import load_tasks
from model import GPT
from model.errors import UserError
from training.config.evaluation import PROTOCOL_TASKS

from .hf_backend import hf_backend, make_gpt

PROSE = (
    "The committee had met on every Thursday of that winter, and on none of them had anybody asked why the "
    "pumps below the harbour ran at night. When Ines did ask, the harbour master closed his ledger and "
    "looked at her over it for a long while. He said that water is patient, and that a town which forgets "
    "this is rebuilt by others. "
)
LOCAL_SETS = Path(__file__).parents[3] / "shared" / "data" / "eval"


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return make_gpt(50304)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return open_tokenizer("gpt2")


@pytest.fixture(scope="module")
def hf_lm(gpt, tmp_path_factory):
    pytest.importorskip("accelerate", reason="lm-eval's hf backend needs accelerate")
    return hf_backend(gpt, tmp_path_factory.mktemp("hf"))


def pairs(*arguments: tuple[str, str]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(arguments)]


def documents(*texts: str) -> list[Instance]:
    return [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]


def assert_same_scores(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], rel=1e-6, abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_loglikelihood_equals_the_hf_backend(gpt, gpt2, hf_lm):
    requests = pairs(
        ("The pumps ran", " at night below the harbour"),  # several tokens
        ("A", " b"),
        ("Question: why?\nAnswer: ", "nobody asked"),  # a space at the context's end moves over
        ("", "Water is patient"),  # no context
        (PROSE * 3, " and no one asked again"),  # cut from the left
        (PROSE, PROSE[:180]),  # a continuation that leaves little room
        ("naïve “quoted”", " café 東京"),
    )
    assert_same_scores(NormLabLM(gpt, gpt2).loglikelihood(requests), hf_lm.loglikelihood(requests))


def test_a_greedy_continuation_is_seen_as_one(gpt, gpt2, hf_lm):
    lm = NormLabLM(gpt, gpt2)
    tokens = lm.tok_encode("The pumps ran")
    continuation = ""
    while len(continuation) < 8:
        tokens.append(gpt(torch.tensor([tokens]))[0][0, -1].argmax().item())
        continuation += gpt2.decode(np.array(tokens[-1:]))
    requests = pairs(("The pumps ran", continuation), ("The pumps ran", " dry"))
    ours = lm.loglikelihood(requests)
    assert [greedy for _, greedy in ours] == [True, False]
    assert_same_scores(ours, hf_lm.loglikelihood(requests))


def test_rolling_loglikelihood_equals_the_hf_backend(gpt, gpt2, hf_lm):
    texts = (PROSE * 4, PROSE, "Water", "", PROSE[:250])
    ours = NormLabLM(gpt, gpt2).loglikelihood_rolling(documents(*texts))
    assert ours == pytest.approx(hf_lm.loglikelihood_rolling(documents(*texts)), rel=1e-6, abs=1e-4)


def test_rolling_loglikelihood_is_the_sum_over_one_window_of_plain_logits(gpt, gpt2):
    lm = NormLabLM(gpt, gpt2)
    tokens = lm.tok_encode(PROSE)[:64]
    logits, _ = gpt(torch.tensor([[gpt2.eot, *tokens[:-1]]]))
    expected = logits[0].log_softmax(-1)[range(64), tokens].sum().item()
    ours = lm.loglikelihood_rolling(documents(gpt2.decode(np.array(tokens))))
    assert ours == pytest.approx([expected], rel=1e-6)


def test_scores_do_not_depend_on_what_shares_the_batch(gpt, gpt2):
    requests = pairs(*[(PROSE[:n], PROSE[n : n + 20 + n % 7]) for n in range(1, 200, 9)])
    lm, one_at_a_time = NormLabLM(gpt, gpt2), NormLabLM(gpt, gpt2)
    one_at_a_time.tokens_per_batch = 1
    assert_same_scores(lm.loglikelihood(requests), one_at_a_time.loglikelihood(requests))


def direct(gpt: GPT, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """A continuation's log-likelihood from the logits at its positions, and whether it is the likeliest."""
    logits, _ = gpt(torch.tensor([[*context, *continuation][-65:-1]]))
    of_continuation = logits[0, -len(continuation) :].double().log_softmax(-1)
    greedy = of_continuation.argmax(-1).tolist() == continuation
    return of_continuation[range(len(continuation)), continuation].sum().item(), greedy


def test_a_byte_models_scores_are_sums_over_its_logits():
    gpt, tokenizer = make_gpt(257), open_tokenizer("bytes")
    likeliest = {
        text: gpt(torch.tensor([[*text.encode()]]))[0][0, -1].argmax().item() for text in PROSE.split()
    }
    word = next(word for word, byte in likeliest.items() if byte < 128)
    cases = {
        ("The pumps", " ran at night"): ([*b"The pumps"], [*b" ran at night"]),
        ("", "café 東京"): ([256], [*"café 東京".encode()]),
        (PROSE[:-1], PROSE[:60]): ([*PROSE[:-1].encode()], [*PROSE[:60].encode()]),  # cut from the left
        ("Water ", "is patient"): ([*b"Water"], [*b" is patient"]),  # a space at the context's end moves over
        (word, chr(likeliest[word])): ([*word.encode()], [likeliest[word]]),
    }
    expected = [direct(gpt, *tokens) for tokens in cases.values()]
    assert [greedy for _, greedy in expected] == [False] * 4 + [True]
    assert_same_scores(NormLabLM(gpt, tokenizer).loglikelihood(pairs(*cases)), expected)

    document = [*PROSE[:99].encode(), *"é".encode()]  # 101 bytes in windows of 64
    first, last = direct(gpt, [256], document[:64]), direct(gpt, document[:64], document[64:])
    ours = NormLabLM(gpt, tokenizer).loglikelihood_rolling(documents(PROSE[:99] + "é"))
    assert ours == pytest.approx([first[0] + last[0]], rel=1e-6)


def test_every_request_scores_as_by_hand_alone_and_beside_others():
    gpt, tokenizer = make_gpt(257), open_tokenizer("bytes")

    def by_hand(context: str, continuation: str) -> tuple[float, bool]:
        """Every byte of the continuation once: in one pass, or 64 at a time as of a document."""
        given = context.rstrip()
        scored = [*(context[len(given) :] + continuation).encode()]
        before = [*given.encode()] or [256]
        if len(scored) <= 64:
            return direct(gpt, before, scored)
        parts = [direct(gpt, before[-1:], scored[:64])]
        for start in range(64, len(scored), 64):
            parts.append(direct(gpt, scored[:start], scored[start : start + 64]))
        return sum(score for score, _ in parts), all(greedy for _, greedy in parts)

    cases = [
        (" ", "hello there"), ("\n\t ", "hello"), ("", "hello"), ("", " "), (" ", " "), ("Water", " "),
        ("Water ", "is patient"), (PROSE, " and no one"), ("Water", PROSE[:64]), ("Water", PROSE[:65]),
        ("Water", PROSE[:200]), (PROSE[:100], PROSE), (" ", PROSE[:128]), ("", PROSE[:129]),
    ]  # fmt: skip
    expected = [by_hand(*case) for case in cases]
    cases += [("Water", ""), ("", "")]
    expected += [(0.0, True)] * 2
    for tokens_per_batch in (1, 100, 1024, 10**6):
        lm = NormLabLM(gpt, tokenizer)
        lm.tokens_per_batch = tokens_per_batch
        assert_same_scores(lm.loglikelihood(pairs(*cases)), expected)
        assert_same_scores(lm.loglikelihood(pairs(*cases[::-1])), expected[::-1])
        rolled = lm.loglikelihood_rolling(documents(*(PROSE[:n] for n in (0, 1, 63, 64, 65, 129, 200))))
        alone = [lm.loglikelihood(pairs(("", PROSE[:n])))[0][0] for n in (0, 1, 63, 64, 65, 129, 200)]
        assert rolled == pytest.approx(alone, rel=1e-6)


def test_a_token_across_the_border_of_context_and_answer_is_scored_whole(gpt, gpt2):
    """`example` is one token of GPT-2, `exampl` are two: no token of the answer is that of the whole."""
    lm = NormLabLM(gpt, gpt2)
    given, rest, whole = (gpt2.encode(text).tolist() for text in ("exampl", "e of it", "example of it"))
    assert whole[: len(given)] != given
    assert_same_scores(lm.loglikelihood(pairs(("exampl", "e of it"))), [direct(gpt, given, rest)])


def texts(*prompts: str, **gen_kwargs) -> list[Instance]:
    return [
        Instance("generate_until", {}, (prompt, gen_kwargs), 0, metadata=("writing", number, 1))
        for number, prompt in enumerate(prompts)
    ]


def test_greedy_text_equals_the_hf_backends(gpt, gpt2, hf_lm):
    prompts = ("The pumps ran", "A", PROSE * 3, "naïve “quoted” 東京", "Water is patient ")
    lm = NormLabLM(gpt, gpt2)
    plain = lm.generate_until(texts(*prompts, until=[], max_gen_toks=12))
    assert plain == hf_lm.generate_until(texts(*prompts, until=[], max_gen_toks=12))
    assert len(set(plain)) > 1
    stop = plain[0][-6:-2]  # in the middle of what it writes
    cut = lm.generate_until(texts(*prompts, until=[stop], max_gen_toks=12, do_sample=False, temperature=0.7))
    assert cut == hf_lm.generate_until(texts(*prompts, until=[stop], max_gen_toks=12, do_sample=False))
    assert cut[0] == plain[0].split(stop)[0] != plain[0]


def test_greedy_text_is_the_likeliest_token_each_time_alone_and_in_batches():
    gpt, tokenizer = make_gpt(257), open_tokenizer("bytes")
    expected = []
    for prompt in ("", "The pumps", PROSE):
        tokens = [*prompt.encode()][-(64 - 20) :] or [256]
        given = len(tokens)
        while (len(tokens) < given + 20 and tokens[-1:] != [256]) or len(tokens) == given:
            tokens.append(gpt(torch.tensor([tokens]))[0][0, -1].argmax().item())
        expected.append(bytes(token for token in tokens[given:] if token < 256).decode(errors="replace"))
    for tokens_per_batch in (1, 10**6):
        lm = NormLabLM(gpt, tokenizer)
        lm.tokens_per_batch = tokens_per_batch
        assert lm.generate_until(texts("", "The pumps", PROSE, until=[], max_gen_toks=20)) == expected


def test_drawn_text_depends_on_its_item_alone(gpt, gpt2):
    lm = NormLabLM(gpt, gpt2)
    options = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0, "top_k": 50}
    requests = texts("The pumps", "The pumps", "Water", **options)
    together = lm.generate_until(requests)
    assert [lm.generate_until([request])[0] for request in requests] == together
    assert together[0] != together[1]  # items draw apart
    assert len(set(lm.generate_until([requests[0]] * 3))) == 3  # as do repeats
    likeliest = lm.generate_until(texts("The pumps", until=[], max_gen_toks=6))
    assert lm.generate_until(texts("The pumps", **options | {"top_k": 1})) == likeliest
    assert lm.generate_until(texts("The pumps", **options | {"top_k": 0, "top_p": 1e-9})) == likeliest


@pytest.mark.parametrize(
    ("gen_kwargs", "problem"),
    [
        ({"num_beams": 4}, "'num_beams', which is not used here: known are until, max_gen_toks"),
        ({}, "asks for 256 tokens, but the model's block holds 64 with the prompt: set max_gen_toks"),
        ({"do_sample": True, "max_gen_toks": 5, "temperature": 0}, "do_sample with a temperature of 0"),
        ({"temperature": 1, "max_gen_toks": 5, "top_p": 2}, "a top_p of 2, but it must be above 0"),
        ({"temperature": 1, "max_gen_toks": 5, "top_k": -1}, "a top_k of -1, but it must be a whole"),
    ],
)
def test_gen_kwargs_that_cannot_be_followed_are_named(gpt, gpt2, gen_kwargs, problem):
    with pytest.raises(UserError, match=problem):
        NormLabLM(gpt, gpt2).generate_until(texts("A", **gen_kwargs))


@pytest.mark.skipif(not LOCAL_SETS.is_dir(), reason=f"no local evaluation sets in {LOCAL_SETS}")
def test_task_metrics_equal_the_hf_backend(gpt, gpt2, hf_lm):
    from lm_eval.evaluator import evaluate

    def no_bar(title, **options):
        return tqdm(disable=True)

    for names, limit in ((["wikitext"], 1), (PROTOCOL_TASKS[1:], 3)):  # a page is long, an item short
        ours = run_tasks(gpt, gpt2, load_tasks(names, LOCAL_SETS), limit=limit, bar=no_bar)["results"]
        tasks = {"tasks": load_tasks(names, LOCAL_SETS)}
        theirs = evaluate(hf_lm, tasks, limit=limit, bootstrap_iters=1000)["results"]
        for name in names:
            scores = {key: value for key, value in theirs[name].items() if not isinstance(value, str)}
            assert {key: ours[name][key] for key in scores} == pytest.approx(scores, rel=1e-5)
