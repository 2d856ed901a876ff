"""The command `python -m eval.diagnose`: what it reads, writes, says and refuses."""

import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from data import DataConfig, ValidationSet, open_data
from eval.diagnose import check, choose_sequences, diagnose, parse
from eval.diagnosis.files import diagnosis_file, read_facts
from model import GPT, GPTConfig
from model.errors import UserError
from tests.eval.tiny_runs import write_manifest

BLOCK_SIZE = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint and its data, with a document mask."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("train", "held_out"):
        texts = [f"{name} {n}: " + "the tide runs out. " * (1 + n % 4) for n in range(12)]
        pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet")
    data = {"source": str(folder / "train.parquet"), "validation_source": str(folder / "held_out.parquet")}
    data |= {"tokenizer": "bytes", "lanes": 1, "document_mask": True}
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=BLOCK_SIZE, vocab_size=257))
    checkpoint = folder / "checkpoints" / "step_00000003"
    checkpoint.mkdir(parents=True)
    torch.save({"module": gpt.state_dict()}, checkpoint / "mp_rank_00_model_states.pt")
    write_manifest(checkpoint)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": asdict(gpt.config), "data": data}))
    return folder


def run_command(*words: object) -> list[str]:
    said: list[str] = []
    passes = SimpleNamespace(update=lambda: None)
    console = SimpleNamespace(say=said.append, bar=lambda *_, **__: nullcontext(passes))
    diagnose(check(parse([str(word) for word in words])), console)
    return said


def validation_of(run: Path) -> ValidationSet:
    return open_data(DataConfig(**yaml.safe_load((run / "recipe.yaml").read_text())["data"]))[1]


def test_a_checkpoint_is_diagnosed_once_for_a_number_of_sequences(run: Path) -> None:
    said = run_command(run, "--sequences", 5)
    file = diagnosis_file(run, 3)
    table = pd.read_parquet(file)
    assert list(table) == ["name", "layer", "layer_2", "part", "value"] and table["value"].notna().all()
    counts = table["name"].value_counts().to_dict()
    assert counts == {
        "layer_drop": 6, "layer_swap": 1, "block_influence": 2, "cka": 3, "angular_distance": 3, "loss": 1,
        "effective_rank": 3, "rank_collapse": 3, "token_cosine": 3, "lens_kl": 3, "quant_gap": 2,
        "effective_depth": 2,
    }  # fmt: skip
    assert said[1] == f"5 sequences of {BLOCK_SIZE} validation tokens"
    lines = said[2].splitlines()
    drop = table[(table["name"] == "layer_drop") & (table["part"] == "")].set_index("layer")["value"]
    assert lines[0].split()[:3] == ["layer", "left", "out"] and len({len(line) for line in lines[:4]}) == 1
    assert [line.split()[:2] for line in lines[1:3]] == [[str(n), f"{drop[n]:+.4f}"] for n in (0, 1)]
    assert lines[3].split()[:5] == ["2", "-", "-", "-", "-"]
    written = file.stat().st_mtime_ns
    assert run_command(run, "--sequences", 5) == said[1:] and file.stat().st_mtime_ns == written
    run_command(run, "--sequences", 3)
    facts = read_facts(file)
    assert facts and (facts["sequences"], facts["block_size"], facts["notes"]) == (3, BLOCK_SIZE, [])


def test_sequences_are_whole_blocks_from_all_over_the_set(run: Path) -> None:
    gpt, validation = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, vocab_size=257)), validation_of(run)
    tokens = torch.tensor(validation.tokens.astype("int64"))
    found = choose_sequences(gpt, validation, BLOCK_SIZE, 3, document_mask=True)
    last = len(validation.document) // BLOCK_SIZE - 1
    starts = [BLOCK_SIZE * round(n * last / 2) for n in range(3)]
    for row, start in enumerate(starts):
        assert found.inputs[row].tolist() == tokens[start : start + BLOCK_SIZE].tolist()
        assert found.targets[row].tolist() == tokens[start + 1 : start + BLOCK_SIZE + 1].tolist()
    assert found.documents is not None and found.documents.shape == (3, BLOCK_SIZE)
    assert len(choose_sequences(gpt, validation, BLOCK_SIZE, 10**6, False).inputs) == last + 1
    assert choose_sequences(gpt, validation, 10**6, 2, False).inputs.shape == (1, len(tokens) - 1)


def test_given_weights_are_diagnosed_on_the_tokens_of_a_run(run: Path, tmp_path: Path) -> None:
    def publish(seed: int) -> None:
        torch.manual_seed(seed)
        config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=2 * BLOCK_SIZE, vocab_size=257)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "published")

    publish(0)
    words = tmp_path / "published", "--validation_like", run, "--sequences", 2
    said = run_command(*words)
    assert f"2 sequences of {BLOCK_SIZE} validation tokens" in said
    file = diagnosis_file(tmp_path / "published", 0)
    written = file.stat().st_mtime_ns
    assert run_command(*words) == said[1:] and file.stat().st_mtime_ns == written
    publish(1)
    with pytest.raises(UserError, match="is about other weights: choose another --out, or remove it"):
        run_command(*words)


def test_what_cannot_be_is_refused_before_a_model_is_loaded(run: Path, tmp_path: Path) -> None:
    for words, sentence in (
        ([run, "--sequences", 0], "--sequences is 0, but it must be a number of at least 1"),
        ([run, "--step", 7], "has no complete checkpoint of step 7; the steps there are 3"),
        ([run, "--out", tmp_path], "--out is for a model without a run"),
        ([tmp_path / "none"], "none"),
    ):
        with pytest.raises(UserError, match=sentence):
            check(parse([str(word) for word in words]))
    shutil.copytree(run, tmp_path / "empty", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="has no complete checkpoint yet"):
        check(parse([str(tmp_path / "empty")]))
