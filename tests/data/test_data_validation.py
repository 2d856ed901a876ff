"""The validation set: fixed, disjoint from training, every token scored once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data import (
    EOT,
    IGNORED_TARGET,
    DataConfig,
    ValidationSet,
    gpt2_encoding,
    open_source,
    split_validation,
)


def write_documents(path: Path, texts: list[str], rows_per_group: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path, row_group_size=rows_per_group)


@pytest.fixture
def texts() -> list[str]:
    return [f"Document number {number} says {'so ' * (number % 7)}much." for number in range(200)]


@pytest.fixture
def folder(tmp_path: Path, texts: list[str]) -> Path:
    write_documents(tmp_path / "documents" / "a.parquet", texts[:100])
    write_documents(tmp_path / "documents" / "b.parquet", texts[100:])
    return tmp_path / "documents"


def decode(validation: ValidationSet) -> list[str]:
    return gpt2_encoding().decode(validation.tokens[1:].tolist()).split("<|endoftext|>")[:-1]


def test_the_last_shards_are_held_out_whole(folder: Path, texts: list[str]) -> None:
    config = DataConfig(source=str(folder), validation_tokens=80)
    source = open_source(config)
    validation, shards = split_validation(config, source)
    lengths = [len(gpt2_encoding().encode_ordinary(text)) + 1 for text in texts]
    assert sum(lengths[-5:]) < 80 <= sum(lengths[-10:]), "the test wants exactly two shards"
    assert shards == source.shards[:38]
    held_out = texts[190:]
    fitting = [index for index in range(1, 11) if sum(lengths[190 : 190 + index]) <= 80]
    assert decode(validation) == held_out[: fitting[-1]]
    assert not set(decode(validation)) & {text for shard in shards for text in source.read(shard)}


def test_at_most_a_tenth_of_the_shards_is_held_out(folder: Path, texts: list[str]) -> None:
    config = DataConfig(source=str(folder))
    validation, shards = split_validation(config, open_source(config))
    assert len(shards) == 36
    assert decode(validation) == texts[180:]


def test_one_document_is_kept_even_if_it_is_too_long(folder: Path, texts: list[str]) -> None:
    config = DataConfig(source=str(folder), validation_tokens=1)
    validation, _ = split_validation(config, open_source(config))
    assert decode(validation) == texts[195:196]


def test_a_validation_source_leaves_all_shards_to_training(folder: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "held" / "out.parquet", ["Held out.", "Also held out."])
    for where in ("held", "held/out.parquet", "held/*.parquet"):
        config = DataConfig(source=str(folder), validation_source=str(tmp_path / where))
        source = open_source(config)
        validation, shards = split_validation(config, source)
        assert shards == source.shards
        assert decode(validation) == ["Held out.", "Also held out."]


def test_a_validation_source_that_is_trained_on_is_refused(folder: Path) -> None:
    config = DataConfig(source=str(folder), validation_source=str(folder / "b.parquet"))
    with pytest.raises(ValueError, match=r"data\.validation_source .* is not held out"):
        split_validation(config, open_source(config))


def test_a_missing_validation_source_is_named(folder: Path) -> None:
    config = DataConfig(source=str(folder), validation_source=str(folder / "c.parquet"))
    with pytest.raises(FileNotFoundError, match=r"^data.validation_source: .*c.parquet does not exist"):
        split_validation(config, open_source(config))


def test_a_validation_folder_without_a_fitting_split_is_named(folder: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "held" / "out.parquet", ["Held out."])
    readme = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: other, path: out.parquet}\n---\n"
    )
    (tmp_path / "held" / "README.md").write_text(readme)
    config = DataConfig(source=str(folder), validation_source=str(tmp_path / "held"))
    with pytest.raises(ValueError, match="has only other, none of validation, test, train"):
        split_validation(config, open_source(config))


def test_a_single_shard_cannot_be_split(tmp_path: Path) -> None:
    write_documents(tmp_path / "one.parquet", ["a", "b"])
    config = DataConfig(source=str(tmp_path / "one.parquet"))
    with pytest.raises(ValueError, match=r"is a single shard.*give data.validation_source"):
        split_validation(config, open_source(config))


@pytest.mark.parametrize("block_size", [1, 7, 64, 10_000])
def test_blocks_score_every_token_once_in_context(folder: Path, texts: list[str], block_size: int) -> None:
    config = DataConfig(source=str(folder))
    validation, _ = split_validation(config, open_source(config))
    stream: list[int] = []
    documents: list[int] = []
    for number, text in enumerate(texts[180:]):
        tokens = [*gpt2_encoding().encode_ordinary(text), EOT]
        stream += tokens
        documents += [number] * len(tokens)
    assert validation.document.tolist() == documents
    inputs, targets = validation.blocks(block_size)
    assert inputs.shape == targets.shape == (-(-len(stream) // block_size), block_size)
    assert inputs.dtype == targets.dtype == torch.int64
    scored = targets.flatten()
    assert scored[scored != IGNORED_TARGET].tolist() == stream
    assert (scored[len(stream) :] == IGNORED_TARGET).all()
    # the token before every target is its input: the opening EOT, then the stream itself
    assert inputs.flatten()[: len(stream)].tolist() == [EOT, *stream[:-1]]


def test_the_fingerprint_is_of_the_tokens() -> None:
    tokens = np.array([EOT, 1, 2, EOT], dtype=np.uint16)
    document = np.zeros(3, dtype=np.int32)
    one, same = ValidationSet(tokens, document), ValidationSet(tokens.copy(), document)
    other = ValidationSet(np.array([EOT, 1, 3, EOT], dtype=np.uint16), document)
    assert one.fingerprint == same.fingerprint != other.fingerprint
