"""Validation loss in slices, against a plain recomputation in fp64, token by token."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from data import DataConfig, ValidationSet, open_data
from eval.__main__ import parse
from eval.running.evaluation import evaluate_model
from eval.running.job import check
from eval.slices.losses import slice_losses
from model import GPT, GPTConfig
from model.errors import UserError
from tests.eval.tiny_runs import write_manifest

BLOCK_SIZE = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint and its data: documents of 2 to 300 bytes."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("train", "held_out"):
        texts = [f"{name} {n}: " + "the tide runs out. " * (n % 8) + "é" * (n % 3) for n in range(12)]
        texts += [name[0], f"{name} " + "never ending " * 22]
        pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet")
    data = {"source": str(folder / "train.parquet"), "validation_source": str(folder / "held_out.parquet")}
    data |= {"tokenizer": "bytes", "lanes": 1, "document_mask": True}
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=BLOCK_SIZE, vocab_size=257))
    checkpoint = folder / "checkpoints" / "step_00000003"
    checkpoint.mkdir(parents=True)
    torch.save({"module": gpt.state_dict()}, checkpoint / "mp_rank_00_model_states.pt")
    write_manifest(checkpoint)
    recipe = {"model": asdict(gpt.config), "data": data, "eval": {"tasks": ["piqa"]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def evaluate(run: Path, *words: str) -> list[str]:
    said: list[str] = []
    evaluate_model(*check(parse([str(run), *words])), SimpleNamespace(say=said.append))
    return said


def validation_of(run: Path) -> ValidationSet:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    return open_data(DataConfig(**recipe["data"]))[1]


def plain_losses(run: Path, validation: ValidationSet) -> list[float]:
    """One forward pass in fp64 for each target, of what it may see and no more: no batches, no mask."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    gpt = GPT(GPTConfig(**recipe["model"])).double().eval()
    state = run / "checkpoints" / "step_00000003" / "mp_rank_00_model_states.pt"
    gpt.load_state_dict(torch.load(state)["module"])
    tokens, eot = validation.tokens.tolist(), int(validation.tokens[0])
    losses = []
    for target in range(len(tokens) - 1):
        block = tokens[target // BLOCK_SIZE * BLOCK_SIZE : target + 1]
        begin = max((at for at, token in enumerate(block) if token == eot), default=0)
        with torch.no_grad():
            logits = logits_at(gpt, block[begin:], begin)
        losses.append(float(-logits.log_softmax(-1)[tokens[target + 1]]))
    return losses


def logits_at(gpt: GPT, tokens: list[int], begin: int) -> torch.Tensor:
    """The logits behind the last token of a document that begins at position `begin` of a block, (V,)."""
    places = gpt.transformer.wpe.weight
    kept = places.detach().clone()
    places.data.copy_(kept.roll(-begin, 0))
    logits = gpt(torch.tensor([tokens]))[0][0, -1]
    places.data.copy_(kept)
    return logits


def buckets(values: list[int], growth: int) -> Iterator[tuple[int, int]]:
    """The bucket that each value is in, by counting up."""
    for value in values:
        low, after = 0, 1
        while value >= after:
            low, after = after, after * growth
        yield low, after - 1


def test_slices_are_those_of_a_plain_pass_in_fp64(run: Path) -> None:
    said = evaluate(run, "--slices")
    folder = run / "eval" / "step_00000003"
    assert [file.name for file in folder.iterdir()] == ["slices.parquet"]  # and no task
    table = pd.read_parquet(folder / "slices.parquet")
    validation = validation_of(run)
    losses, targets = plain_losses(run, validation), validation.tokens[1:].tolist()
    frequency, length = Counter(targets), Counter(validation.document.tolist())
    of_kind = {
        "position": buckets([number % BLOCK_SIZE for number in range(len(targets))], 2),
        "frequency": buckets([frequency[target] for target in targets], 10),
        "length": buckets([length[document] for document in validation.document.tolist()], 4),
    }
    expected: dict[tuple[str, int, int, int], list[float]] = {}
    for kind, found in of_kind.items():
        for (low, high), document, loss in zip(found, validation.document.tolist(), losses, strict=True):
            high = min(high, BLOCK_SIZE - 1) if kind == "position" else high
            expected.setdefault((kind, low, high, document), []).append(loss)
    rows = table.set_index(["kind", "low", "high", "document"])
    assert set(rows.index) == set(expected) and rows.index.is_unique
    for key, of_bucket in expected.items():
        assert rows["tokens"][key] == len(of_bucket)
        assert rows["loss"][key] == pytest.approx(sum(of_bucket), rel=1e-5)
    assert table.groupby("kind")["low"].nunique().to_dict() == {"frequency": 3, "length": 5, "position": 5}
    sums = table.groupby("kind")[["tokens", "loss"]].sum()
    assert (sums["tokens"] == len(targets)).all()
    assert (sums["loss"] / sums["tokens"]).tolist() == pytest.approx([np.mean(losses)] * 3, rel=1e-6)
    line = next(line for line in said[1].splitlines() if line.startswith("position") and " 8-11 " in line)
    late = [loss for number, loss in enumerate(losses) if number % BLOCK_SIZE >= 8]
    assert f"{len(late)} tokens" in line and f"{np.mean(late):.4f} [" in line
    # What is there is not scored again.
    written = (folder / "slices.parquet").stat().st_mtime_ns
    assert evaluate(run, "--slices") == said[1:]
    assert (folder / "slices.parquet").stat().st_mtime_ns == written


def test_slices_and_tasks_can_be_asked_together(run: Path) -> None:
    assert check(parse([str(run), "--slices", "--tasks", "wikitext,piqa"]))[0].config.tasks == (
        "wikitext",
        "piqa",
    )
    assert check(parse([str(run), "--slices"]))[0].config.tasks == ()
    assert check(parse([str(run)]))[0].config.tasks == ("piqa",)


def test_slices_of_other_data_than_the_runs_are_refused(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("eval"))
    (other / "summary.json").write_text('{"val_fingerprint": "3f2a"}')
    with pytest.raises(UserError, match=r"its validation set is not the one that the run was validated on"):
        evaluate(other, "--slices")
    assert not (other / "eval").exists()


def test_given_weights_have_the_slices_of_their_validation_losses(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=2 * BLOCK_SIZE, vocab_size=257)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "published")
    evaluate(tmp_path / "published", "--validation_like", str(run), "--slices")
    folder = tmp_path / "published" / "eval" / "step_00000000"
    documents = pd.read_parquet(folder / "validation.parquet").set_index("document")
    slices = pd.read_parquet(folder / "slices.parquet")
    sums = slices.groupby(["kind", "document"])[["tokens", "loss"]].sum()
    for kind in ("position", "frequency", "length"):
        assert sums["tokens"][kind].tolist() == documents["tokens"].tolist()
        assert sums["loss"][kind].tolist() == pytest.approx(documents["loss"].tolist(), rel=1e-9)
    assert slices[slices["kind"] == "position"]["high"].max() == BLOCK_SIZE - 1  # the run's


def test_one_long_document_fills_one_bucket_of_length() -> None:
    tokens = np.array([0, *[1] * 63, 0], dtype=np.uint16)
    validation = ValidationSet(tokens, np.zeros(64, dtype=np.int32), np.array([63]), "")
    rows = slice_losses(np.full(64, 0.5), validation, 64).to_pylist()
    lengths = [row for row in rows if row["kind"] == "length"]
    assert lengths == [{"kind": "length", "low": 64, "high": 255, "document": 0, "tokens": 64, "loss": 32.0}]
    frequencies = {row["low"]: row["tokens"] for row in rows if row["kind"] == "frequency"}
    assert frequencies == {1: 1, 10: 63}
    positions = {(row["low"], row["high"]): row["tokens"] for row in rows if row["kind"] == "position"}
    assert positions[32, 63] == 32 and positions[0, 0] == positions[1, 1] == 1
