"""The published metrics against plain loops over the whole text, and as tasks of a run."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from scipy import stats
from tqdm import tqdm

from data import Tokenizer, ValidationSet, open_tokenizer
from eval.__main__ import parse
from eval.jobs import run_tasks
from eval.running.evaluation import evaluate_model
from eval.running.job import check
from eval.scoring.windows import PublishedValidation, TextWindows
from eval.tasks import check_tasks, load_tasks
from model import GPT, GPTConfig, variant_name
from model.errors import UserError
from tests.eval.cards import card_of, score_of
from tests.eval.tiny_runs import write_manifest
from training.config.evaluation import EvalConfig

LOCAL_SETS = Path(__file__).parents[3] / "shared" / "data" / "eval"
PAGES = [f" = Tide {n} = \n \n The tide , which turns {n} times a day , is slow . \n" * n for n in (1, 3, 4)]
PASSAGES = [f"The ship was late and {n} men on the quay cursed the ship" for n in range(5)]
BLOCK_SIZE = 16


@pytest.fixture
def local_sets(tmp_path: Path) -> Path:
    for file, key, texts in (
        ("wikitext2/test_document_level.jsonl", "page", PAGES),
        ("lambada_openai/lambada_test.jsonl", "text", PASSAGES),
    ):
        (tmp_path / "sets" / file).parent.mkdir(parents=True)
        (tmp_path / "sets" / file).write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return tmp_path / "sets"


def make_gpt(name: str, norm: str = "layernorm") -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": BLOCK_SIZE, "norm": norm}
    gpt = GPT(GPTConfig(vocab_size={"gpt2": 50304, "bytes": 257}[name], **shape))
    with torch.no_grad():
        for parameter in gpt.parameters():  # away from the start, where all tokens are about as likely
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return gpt


def no_bar(title, **options):
    return tqdm(disable=True)


def mean_loss(gpt: GPT, tokens: np.ndarray) -> float:
    """The mean loss over windows that do not overlap, as a script of the benchmark would have it."""
    gpt.eval()
    stream = torch.from_numpy(tokens.astype(np.int64))
    total = count = 0
    for start in range(0, len(stream) - 1, BLOCK_SIZE):
        targets = stream[start + 1 : start + 1 + BLOCK_SIZE]
        with torch.no_grad():
            logits, _ = gpt(stream[start : start + len(targets)][None])
        total += F.cross_entropy(logits[0].double(), targets, reduction="sum").item()
        count += len(targets)
    assert count == len(stream) - 1
    return total / count


def scores_of(gpt: GPT, tokenizer: Tokenizer, task, limit: int | None = None) -> tuple[dict, pd.DataFrame]:
    results = run_tasks(gpt, tokenizer, {task.name: task}, limit=limit, bar=no_bar)
    samples = [sample[task.metric] for sample in results["samples"][task.name]]
    return results["results"][task.name], pd.DataFrame(samples, columns=["score", "weight"])


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
@pytest.mark.parametrize("task", ["wikitext2_windows", "lambada_windows"])
def test_a_text_is_scored_as_a_plain_loop_does(local_sets, name, task):
    gpt, tokenizer = make_gpt(name), open_tokenizer(name)
    text = "\n".join(PAGES if task == "wikitext2_windows" else PASSAGES)
    expected = math.exp(mean_loss(gpt, tokenizer.encode(text)))
    scores, _ = scores_of(gpt, tokenizer, load_tasks([task], local_sets)[task])
    assert scores["token_perplexity,none"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("predicted", [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE])
def test_windows_that_do_and_do_not_divide_the_text(predicted):
    gpt, tokenizer = make_gpt("bytes"), open_tokenizer("bytes")
    text = ("The tide runs out twice a day. " * 9)[: predicted + 1]
    scores, windows = scores_of(gpt, tokenizer, TextWindows("wikitext2_windows", text, "here"))
    assert windows["weight"].sum() == predicted and len(windows) == math.ceil(predicted / BLOCK_SIZE)
    expected = mean_loss(gpt, tokenizer.encode(text))
    assert math.log(scores["token_perplexity,none"]) == pytest.approx(expected, rel=1e-5)


def test_a_limit_scores_the_first_windows():
    gpt, tokenizer = make_gpt("bytes"), open_tokenizer("bytes")
    text = "The tide runs out twice a day. " * 9
    scores, windows = scores_of(gpt, tokenizer, TextWindows("lambada_windows", text, "here"), limit=3)
    assert windows["weight"].tolist() == [BLOCK_SIZE] * 3
    expected = mean_loss(gpt, tokenizer.encode(text)[: 3 * BLOCK_SIZE + 1])
    assert math.log(scores["token_perplexity,none"]) == pytest.approx(expected, rel=1e-5)


def test_a_text_without_tokens_to_predict_is_refused():
    with pytest.raises(UserError, match="here holds no text to score"):
        TextWindows("lambada_windows", "a", "here").windows(open_tokenizer("bytes"), BLOCK_SIZE)


def test_a_file_without_the_column_is_named(local_sets):
    (local_sets / "lambada_openai" / "lambada_test.jsonl").write_text('{"page": "a b"}\n')
    with pytest.raises(UserError, match=r"'lambada_windows' cannot score row 1 of .*_test.jsonl.* 'text'"):
        load_tasks(["lambada_windows"], local_sets)
    (local_sets / "lambada_openai" / "lambada_test.jsonl").unlink()
    with pytest.raises(UserError, match=r"task 'lambada_windows' reads .*lambada_test.jsonl"):
        check_tasks(["lambada_windows"], local_sets)


def test_the_hub_is_asked_for_the_data_of_the_public_tasks(monkeypatch):
    asked = []

    def load_dataset(path, name=None, **kwargs):
        asked.append((path, name, kwargs))
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for task in ("wikitext2_windows", "lambada_windows"):
        with pytest.raises(ConnectionError, match=f"task '{task}' cannot be had from the Hugging Face hub"):
            load_tasks([task], None)
    assert asked == [
        ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", {"split": "test"}),
        ("EleutherAI/lambada_openai", "default", {"split": "test"}),
    ]


# ---- random windows of the validation set ----
def validation_set(length: int = 3000) -> ValidationSet:
    text = " ".join(f"The tide of day {n} runs out." for n in range(200))[:length]
    tokenizer = open_tokenizer("bytes")
    return ValidationSet.of([text], [tokenizer.encode_document(text)], tokenizer)


def published(validation: ValidationSet) -> PublishedValidation:
    return PublishedValidation("published_validation", validation.tokens, validation.fingerprint)


def test_batches_of_random_windows_have_their_error_of_sampling():
    gpt, tokenizer, validation = make_gpt("bytes"), open_tokenizer("bytes"), validation_set()
    scores, windows = scores_of(gpt, tokenizer, published(validation), limit=4)
    assert set(windows["weight"]) == {BLOCK_SIZE} and len(windows) == 4 * 96
    stream = torch.from_numpy(validation.tokens.astype(np.int64))
    starts = np.random.default_rng(42).integers(len(stream) - BLOCK_SIZE, size=200 * 96)[: 4 * 96]
    assert len(set(starts)) < len(starts), "with replacement"
    losses = []
    for of_batch in starts.reshape(4, 96):
        inputs = torch.stack([stream[start : start + BLOCK_SIZE] for start in of_batch])
        targets = torch.stack([stream[start + 1 : start + 1 + BLOCK_SIZE] for start in of_batch])
        with torch.no_grad():
            logits = gpt(inputs)[0].double()
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item())
    assert scores["loss,none"] == pytest.approx(np.mean(losses), rel=1e-5)
    spread = sum((loss - np.mean(losses)) ** 2 for loss in losses) / 3
    assert scores["loss_stderr,none"] == pytest.approx(math.sqrt(spread / 4), rel=1e-4)
    again, _ = scores_of(gpt, tokenizer, published(validation), limit=4)
    assert again == scores


def test_all_of_it_is_200_batches_and_one_has_no_error():
    windows = published(validation_set()).windows(open_tokenizer("bytes"), BLOCK_SIZE)
    assert len(windows) == 200 * 96 and {len(window) for window in windows} == {BLOCK_SIZE + 1}
    scores, _ = scores_of(make_gpt("bytes"), open_tokenizer("bytes"), published(validation_set()), limit=1)
    assert scores["loss_stderr,none"] == "N/A"


def test_the_last_window_can_be_drawn_and_a_shorter_set_is_refused():
    just_one = validation_set(BLOCK_SIZE - 1)
    assert len(just_one.tokens) == BLOCK_SIZE + 1
    windows = published(just_one).windows(open_tokenizer("bytes"), BLOCK_SIZE)
    assert (windows[0] == just_one.tokens).all()
    with pytest.raises(UserError, match="validation set has less than a window of 17 tokens"):
        published(validation_set(BLOCK_SIZE - 2)).windows(open_tokenizer("bytes"), BLOCK_SIZE)


# ---- on a run ----
def make_run(folder: Path, norm: str = "layernorm") -> Path:
    gpt = make_gpt("bytes", norm)
    (checkpoint := folder / "checkpoints" / "step_00000001").mkdir(parents=True)
    torch.save({"module": gpt.state_dict()}, checkpoint / "mp_rank_00_model_states.pt")
    write_manifest(checkpoint)
    for name, count in (("train", 40), ("held_out", 30)):
        lines = [json.dumps({"text": f"{name} {n}: the tide runs out twice a day."}) for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    data = {"source": str(folder / "train.jsonl"), "validation_source": str(folder / "held_out.jsonl")}
    recipe = {"model": asdict(gpt.config), "data": data | {"tokenizer": "bytes", "lanes": 1}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    summary = {"status": "finished", "variant": variant_name(gpt.config), "step": 1, "val_loss": 5.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.jsonl.JSONL_DIR", tmp_path / "jsonl")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def evaluate(run: Path, *arguments: str) -> list[str]:
    """What `python -m eval` says; its console would take over this process's output."""
    said: list[str] = []
    console = SimpleNamespace(say=said.append, bar=no_bar)
    evaluate_model(*check(parse([str(run), *arguments])), console)
    return said


def test_the_command_scores_windows_and_the_scorecard_shows_them(local_sets, tmp_path, own_cache):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", "rmsnorm")]
    names = "wikitext2_windows,lambada_windows,published_validation"
    options = ["--eval_data", str(local_sets), "--tasks", names, "--limit", "2"]
    said = [evaluate(run, *options) for run in runs]
    table = said[0][-2]
    assert [line.split()[:2] for line in table.splitlines()] == [
        ["wikitext2_windows", "token_perplexity"],
        ["lambada_windows", "token_perplexity"],
        ["published_validation", "loss"],
    ]
    assert " ± 0.0" in table.splitlines()[2] and "192 items" in table.splitlines()[2]

    folder = runs[0] / "eval" / "step_00000001"
    results = json.loads((folder / "results.json").read_text())
    assert set(results["results"]) == set(names.split(","))
    items = pd.read_parquet(folder / "per_item.parquet")
    assert items["task"].value_counts().to_dict() == {
        "published_validation": 2 * 96, "wikitext2_windows": 2, "lambada_windows": 2,
    }  # fmt: skip
    for (task, metric), of_metric in items.groupby(["task", "metric"]):
        mean = (of_metric["value"] * of_metric["weight"]).sum() / of_metric["weight"].sum()
        expected = -mean if metric == "loss" else math.exp(-mean)
        assert results["results"][task][f"{metric},none"] == pytest.approx(expected)

    before = (folder / "results.json").stat().st_mtime_ns
    evaluate(runs[0], *options)
    assert (folder / "results.json").stat().st_mtime_ns == before, "what is there is not scored again"

    card = card_of(*runs)
    for metric, task, key in (
        ("published_val_loss", "published_validation", "loss"),
        ("wikitext_windows_ppl", "wikitext2_windows", "token_perplexity"),
        ("lambada_windows_ppl", "lambada_windows", "token_perplexity"),
    ):
        value = results["results"][task][f"{key},none"]
        assert score_of(card, "vanilla", metric)["value"] == pytest.approx(value)
    errors = score_of(card, "vanilla", "published_val_loss")["standard_error"]
    assert errors == results["results"]["published_validation"]["loss_stderr,none"]

    # The same windows in both runs: what they differ by has an interval.
    theirs = pd.read_parquet(runs[1] / "eval" / "step_00000001" / "per_item.parquet")
    mine, other = (table[table["task"] == "published_validation"].reset_index() for table in (items, theirs))
    expected = stats.ttest_rel(mine["value"], other["value"]).confidence_interval(0.95)
    assert tuple(score_of(card, "rmsnorm", "published_val_loss")[["low", "high"]]) == pytest.approx(expected)


def test_another_validation_set_than_the_runs_is_refused(tmp_path, own_cache):
    run = make_run(tmp_path / "run")
    assert load_tasks(["published_validation"], None, run)
    summary = json.loads((run / "summary.json").read_text()) | {"val_fingerprint": "another"}
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=r"recipe\.yaml has changed: its validation set is not the one"):
        load_tasks(["published_validation"], None, run)


def test_a_recipe_may_name_the_tasks():
    assert EvalConfig(tasks=("wikitext2_windows", "published_validation")).tasks[0] == "wikitext2_windows"
    with pytest.raises(UserError, match="did you mean 'lambada_windows'"):
        EvalConfig(tasks=("lambada_window",))


@pytest.mark.skipif(not LOCAL_SETS.is_dir(), reason=f"no local evaluation sets in {LOCAL_SETS}")
def test_the_real_sets_in_windows():
    tokenizer = open_tokenizer("gpt2")
    tasks = load_tasks(["wikitext2_windows", "lambada_windows"], LOCAL_SETS)
    raw = (LOCAL_SETS / "wikitext2" / "wiki.test.raw").read_text()
    wikitext = tasks["wikitext2_windows"]
    assert " \n" + wikitext.text == raw
    windows = wikitext.windows(tokenizer, 1024)
    assert sum(len(window) - 1 for window in windows) == len(tokenizer.encode(wikitext.text)) - 1
    with open(LOCAL_SETS / "lambada_openai" / "lambada_test.jsonl") as lines:
        assert tasks["lambada_windows"].text == "\n".join(json.loads(line)["text"] for line in lines)
    gpt = make_gpt("gpt2")
    for task in tasks.values():
        scores, _ = scores_of(gpt, tokenizer, task, limit=20)
        expected = mean_loss(gpt, tokenizer.encode(task.text)[: 20 * BLOCK_SIZE + 1])
        assert math.log(scores["token_perplexity,none"]) == pytest.approx(expected, rel=1e-5)
