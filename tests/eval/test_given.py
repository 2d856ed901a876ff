"""Weights that were not trained here, scored like a run and read beside runs."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from data import DataConfig, open_data, open_tokenizer
from eval.__main__ import main, parse
from eval.evidence.results import GIVEN_WEIGHTS, read_runs
from eval.evidence.tables import score_table, to_json, to_markdown
from eval.hf_tokenizer import write_tokenizer
from eval.page.page import write_page
from eval.running.evaluation import evaluate_model
from eval.running.job import check
from model.errors import UserError
from tests.eval.cards import card_of, documents, score_of, verdict_on

MakeRun = Callable[..., Path]
BLOCK_SIZE = 16
"""Of the run; the model can read twice as much."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder `like`, its data, `published` weights, and an evaluation set."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("train", "held_out"):
        texts = [f"{name} {n}: the tide runs out twice a day, élan or not." for n in range(30)]
        pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet")
    data = {"source": str(folder / "train.parquet"), "validation_source": str(folder / "held_out.parquet")}
    data |= {"tokenizer": "bytes", "lanes": 1, "validation_tokens": 300}
    recipe = {"model": {"block_size": BLOCK_SIZE}, "data": data, "eval": {"tasks": ["lambada_openai"]}}
    (folder / "like").mkdir()
    (folder / "like" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=2 * BLOCK_SIZE, vocab_size=257)
    GPT2LMHeadModel(config).save_pretrained(folder / "published")
    lambada = folder / "lambada_openai" / "lambada_test.jsonl"
    lambada.parent.mkdir()
    lambada.write_text("".join(json.dumps({"text": f"{n} men saw the ship"}) + "\n" for n in range(3)))
    return folder


def evaluate(sets: Path, out: Path, like: str = "like", source: str = "published") -> list[str]:
    """What `python -m eval` says; its console would take over this process's output."""
    said: list[str] = []
    console = SimpleNamespace(say=said.append, bar=lambda title, **options: tqdm(disable=True))
    words = [str(sets / source), "--validation_like", str(sets / like), "--out", str(out)]
    evaluate_model(*check(parse([*words, "--eval_data", str(sets)])), console)
    return said


def test_published_weights_are_scored_as_transformers_scores_them(sets, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    out = tmp_path / "out"
    said = evaluate(sets, out)
    model = GPT2LMHeadModel.from_pretrained(sets / "published").eval()
    recipe = yaml.safe_load((sets / "like" / "recipe.yaml").read_text())
    _, validation = open_data(DataConfig(**recipe["data"]))
    inputs, targets = validation.blocks(BLOCK_SIZE)
    with torch.no_grad():
        logits = model(inputs).logits.double()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        tokens, answer = list(b"0 men saw the ship"), list(b" ship")
        scored = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        total = sum(float(scored[i - len(answer) - 1, token]) for i, token in enumerate(answer))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["val_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert summary["val_fingerprint"] == validation.fingerprint and summary["status"] == GIVEN_WEIGHTS
    items = pd.read_parquet(out / "eval" / "step_00000000" / "per_item.parquet")
    of_first = items[(items["doc_id"] == 0) & (items["metric"] == "perplexity")]["value"].item()
    assert of_first == pytest.approx(total, rel=1e-4)
    assert f"results in {out / 'eval' / 'step_00000000' / 'results.json'}" in said[-1]
    # The row stands by itself, with tasks and losses, and the report can be drawn.
    card = card_of(out)
    assert card.rows["name"].tolist() == [f"vanilla of {out}"]
    assert {"val_loss", "lambada_ppl"} <= set(card.scores["metric"])
    write_page(read_runs([out]), tmp_path / "report.html", None)
    # What is there is not scored again, and another model's results are not mixed in.
    before = (out / "summary.json").stat().st_mtime_ns
    evaluate(sets, out)
    assert (out / "summary.json").stat().st_mtime_ns == before
    with torch.no_grad():
        model.transformer.wpe.weight.add_(1)
    model.save_pretrained(sets / "other")
    with pytest.raises(UserError, match=r"holds another evaluation .its weights_fingerprint is another"):
        evaluate(sets, out, source="other")


def test_a_tokenizer_that_is_not_the_models_is_refused(sets, tmp_path, capsys) -> None:
    recipe = yaml.safe_load((sets / "like" / "recipe.yaml").read_text())
    (sets / "words").mkdir()
    recipe["data"]["tokenizer"] = "gpt2"
    (sets / "words" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(
        UserError, match=r"has an embedding of 257 tokens, but .* has tokenizer gpt2 of 50257"
    ):
        evaluate(sets, tmp_path / "out", like="words")
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=50257)
    GPT2LMHeadModel(config).save_pretrained(sets / "large")
    write_tokenizer(open_tokenizer("gpt2"), sets / "large")
    with pytest.raises(UserError, match=r"has another tokenizer than .*, which has bytes"):
        evaluate(sets, tmp_path / "out", source="large")
    assert not (tmp_path / "out").exists()
    assert main([str(sets / "published")]) == 2
    assert "is a model without a run: --validation_like RUN names" in capsys.readouterr().err
    assert main([str(sets / "like"), "--validation_like", str(sets / "like")]) == 2
    assert "--validation_like is for a model without a run" in capsys.readouterr().err


def make_given(make_run: MakeRun, **changes) -> Path:
    """As `python -m eval` leaves it: no seeds, no steps, no training."""
    none = dict.fromkeys(("data_seed", "precision", "steps", "tokens", "world_size", "floors"))
    facts = none | {"status": GIVEN_WEIGHTS, "val_loss": 5.0, "documents": documents(9, -0.4)} | changes
    run = make_run("vanilla", folder="gpt2", **facts)
    summary = json.loads((run / "summary.json").read_text())
    del summary["init_seed"]
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "metrics.jsonl").unlink()
    return run


def test_given_weights_are_a_row_of_their_own_and_no_seed(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("vanilla", seed, val_loss=5.4, documents=documents(seed, 0)) for seed in (1, 2)]
    runs += [make_run("rmsnorm", seed, val_loss=5.3, documents=documents(seed, -0.1)) for seed in (1, 2)]
    alone, given = card_of(*runs), make_given(make_run)
    card, name = card_of(*runs, given), f"vanilla of {given}"
    assert card.baseline == "vanilla" and card.headline == alone.headline
    for row in ("vanilla", "rmsnorm"):
        assert score_of(card, row, "val_loss").equals(score_of(alone, row, "val_loss"))
        assert verdict_on(card, row) == verdict_on(alone, row)
    assert set(card.problems) - set(alone.problems) == {
        f"{name} ({given}) holds weights that were not trained here: on what text, how long and from which "
        "seed is not known, and the validation text may have been in it."
    }
    score = score_of(card, name, "val_loss")
    assert score["difference"] == pytest.approx(-0.4, abs=0.01) and score["interval"] == "documents"
    verdict = "lower on this validation set; not trained alike, so it is no verdict on a design"
    assert verdict_on(card, name) == verdict
    table = score_table(card).set_index("variant")
    assert table.loc[name, "seeds"] == table.loc[name, "mode"] == "-"
    assert "seed 1.0" not in to_markdown(card) and json.loads(to_json(card))["rows"]
    write_page(read_runs([*runs, given]), tmp_path / "report.html", None)
    assert "rmsnorm, seed 1" in (tmp_path / "report.html").read_text()


def test_given_weights_are_compared_on_the_same_validation_set_only(make_run: MakeRun) -> None:
    runs = [make_run("vanilla", seed) for seed in (1, 2)]
    given = make_given(make_run, val_fingerprint="other", val_text_fingerprint="other")
    card, name = card_of(*runs, given), f"vanilla of {given}"
    assert verdict_on(card, name) == "not comparable, no vanilla run has the same validation set"
    assert pd.isna(score_of(card, name, "val_loss")["difference"])
    card = card_of(*runs, given, baseline=name)
    assert verdict_on(card, "vanilla") == f"not comparable, no {name} run has the same validation set"


def test_runs_of_different_starts_are_neither_seeds_nor_pairs(make_run: MakeRun) -> None:
    start = {"init_fingerprint": "ab12cd34ef" * 6, "init_from": "gpt2"}
    drawn = [make_run("vanilla", 1), make_run("rmsnorm", 1)]
    begun = make_run("rmsnorm", 2, folder="begun", val_loss=5.0, **start)
    card = card_of(*drawn, begun)
    name = "rmsnorm from ab12cd34"
    assert set(card.rows["name"]) == {"vanilla", "rmsnorm", name}
    assert (
        verdict_on(card, name) == "not comparable, no vanilla run has the same init seed and initial weights"
    )
    assert any(problem.startswith("Not the same initial weights (drawn in") for problem in card.problems)
    assert any("began from given weights, gpt2 (ab12cd34efab), not" in problem for problem in card.problems)
    alike = [make_run(f, 1, folder=f"{f}_begun", **start) for f in ("vanilla", "rmsnorm")]
    assert score_of(card_of(*alike), "rmsnorm", "val_loss")["seeds"] == 1
