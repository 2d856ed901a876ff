"""The validation set: fixed, disjoint from training, every token scored once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch

from data import (
    IGNORED_TARGET,
    DataConfig,
    ValidationSet,
    gpt2_encoding,
    open_data,
    open_tokenizer,
)
from data.sources import BadRow, parquet
from model.errors import UserError

EOT = 50256


def write_documents(path: Path, texts: list[str], rows_per_group: int = 5, **columns: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, **columns}), path, row_group_size=rows_per_group)


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


def decode_one(tokens: np.ndarray | BadRow) -> str:
    assert not isinstance(tokens, BadRow)
    return gpt2_encoding().decode(tokens[:-1].tolist())


@pytest.mark.usefixtures("large_shards")
def test_the_last_shards_are_held_out_whole(folder: Path, texts: list[str]) -> None:
    config = DataConfig(source=str(folder), validation_tokens=80)
    corpus, validation = open_data(config)
    lengths = [len(gpt2_encoding().encode_ordinary(text)) + 1 for text in texts]
    assert sum(lengths[-5:]) < 80 <= sum(lengths[-10:]), "the test wants exactly two shards"
    assert corpus.shards == corpus.source.shards[:38]
    held_out = texts[190:]
    fitting = [index for index in range(1, 11) if sum(lengths[190 : 190 + index]) <= 80]
    assert decode(validation) == held_out[: fitting[-1]]
    assert not set(decode(validation)) & {text for shard in corpus.shards for text in corpus.read(shard).kept}


def test_at_most_a_tenth_of_the_documents_is_held_out(folder: Path, texts: list[str]) -> None:
    config = DataConfig(source=str(folder))
    corpus, validation = open_data(config)
    assert sum(shard.rows for shard in corpus.shards) == 180
    assert decode(validation) == texts[180:]


def test_one_document_is_kept_even_if_it_is_too_long(folder: Path, texts: list[str]) -> None:
    config = DataConfig(source=str(folder), validation_tokens=1)
    _, validation = open_data(config)
    assert decode(validation) == texts[198:199]  # the first of the last shard of two


def test_a_validation_source_leaves_all_shards_to_training(folder: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "held" / "out.parquet", ["Held out.", "Also held out."])
    for where in ("held", "held/out.parquet", "held/*.parquet"):
        config = DataConfig(source=str(folder), validation_source=str(tmp_path / where))
        corpus, validation = open_data(config)
        assert corpus.shards == corpus.source.shards
        assert decode(validation) == ["Held out.", "Also held out."]


def test_a_validation_source_that_is_trained_on_is_refused(folder: Path) -> None:
    config = DataConfig(source=str(folder), validation_source=str(folder / "b.parquet"))
    with pytest.raises(UserError, match=r"data\.validation_source .* is not held out"):
        open_data(config)


def test_a_missing_validation_source_is_named(folder: Path) -> None:
    config = DataConfig(source=str(folder), validation_source=str(folder / "c.parquet"))
    with pytest.raises(UserError, match=r"^data.validation_source: .*c.parquet does not exist"):
        open_data(config)


def test_a_validation_folder_without_a_fitting_split_is_named(folder: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "held" / "out.parquet", ["Held out."])
    readme = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: other, path: out.parquet}\n---\n"
    )
    (tmp_path / "held" / "README.md").write_text(readme)
    config = DataConfig(source=str(folder), validation_source=str(tmp_path / "held"))
    with pytest.raises(UserError, match="has only other, none of validation, test, train"):
        open_data(config)


@pytest.mark.usefixtures("large_shards")
def test_a_single_shard_cannot_be_split(tmp_path: Path) -> None:
    write_documents(tmp_path / "one.parquet", ["a", "b"])
    config = DataConfig(source=str(tmp_path / "one.parquet"))
    with pytest.raises(UserError, match=r"is a single shard.*give data.validation_source"):
        open_data(config)


@pytest.mark.parametrize("block_size", [1, 7, 64, 10_000])
def test_blocks_score_every_token_once_in_context(folder: Path, texts: list[str], block_size: int) -> None:
    config = DataConfig(source=str(folder))
    _, validation = open_data(config)
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


def test_the_fingerprint_is_of_the_tokens(folder: Path) -> None:
    _, validation = open_data(DataConfig(source=str(folder)))
    same = replace(validation, tokens=validation.tokens.copy())
    other = replace(validation, tokens=validation.tokens[::-1].copy())
    assert validation.fingerprint == same.fingerprint != other.fingerprint


def test_bytes_and_texts_are_the_same_for_every_tokenizer(folder: Path, texts: list[str]) -> None:
    _, by_gpt2 = open_data(DataConfig(source=str(folder)))
    _, by_bytes = open_data(DataConfig(source=str(folder), tokenizer="bytes"))
    assert by_gpt2.bytes.tolist() == by_bytes.bytes.tolist() == [len(text.encode()) for text in texts[180:]]
    assert by_gpt2.text_fingerprint == by_bytes.text_fingerprint
    assert by_gpt2.fingerprint != by_bytes.fingerprint
    assert len(by_bytes.document) == by_bytes.bytes.sum() + 20


def test_no_target_is_an_end_of_text_after_an_end_of_text(tmp_path: Path) -> None:
    texts: list[str] = [f"Text {number}." if number % 3 else "" for number in range(60)]
    write_documents(tmp_path / "a.parquet", texts)
    _, validation = open_data(DataConfig(source=str(tmp_path)))
    ends = validation.tokens == EOT
    assert ends.sum() > 2 and not (ends[:-1] & ends[1:]).any()


def test_the_same_text_in_training_and_validation_is_refused(folder: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "held.parquet", ["Held out.", "Document number 42 says much."])
    config = DataConfig(source=str(folder), validation_source=str(tmp_path / "held.parquet"))
    with pytest.raises(
        UserError, match=r"is not held out: the document that begins 'Document number 42 says much\.'"
    ):
        open_data(config)


def test_the_same_id_in_training_and_validation_is_refused(tmp_path: Path) -> None:
    write_documents(tmp_path / "train.parquet", ["a", "b"], 1, id=["<1>", "<2>"])
    write_documents(tmp_path / "held.parquet", ["c"], id=["<2>"])
    config = DataConfig(
        source=str(tmp_path / "train.parquet"), validation_source=str(tmp_path / "held.parquet")
    )
    with pytest.raises(UserError, match=r"is not held out: the document with the id <2> is in data\.source"):
        open_data(config)


def test_only_ids_of_shards_that_are_held_out_count(tmp_path: Path) -> None:
    write_documents(tmp_path / "train.parquet", ["a", "b"], 1, id=["<1>", "<2>"])
    write_documents(tmp_path / "held.parquet", ["c c c", "d", "e"], 1, id=["<3>", "<2>", "<1>"])
    config = DataConfig(
        source=str(tmp_path / "train.parquet"),
        validation_source=str(tmp_path / "held.parquet"),
        validation_tokens=4,
    )
    assert decode(open_data(config)[1]) == ["c c c"]


def test_the_same_file_by_another_path_is_refused_at_any_size(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.overlap.held_out.CHECKED_AT_START_BYTES", 0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "held.parquet").symlink_to(folder / "b.parquet")
    monkeypatch.chdir(folder)
    for where in (tmp_path / "other", tmp_path / "other" / "held.parquet", "b.parquet", "../documents"):
        with pytest.raises(UserError, match=r"is not held out: .*[ab]\.parquet is in data\.source"):
            open_data(DataConfig(source=str(folder), validation_source=str(where)))


def test_token_files_have_a_validation_set_too(tmp_path: Path, texts: list[str]) -> None:
    encode = open_tokenizer("gpt2").encode_document
    for name, part in (("train", texts[:150]), ("val", texts[150:])):
        np.concatenate([encode(text * 50) for text in part]).tofile(tmp_path / f"{name}.bin")
    held_out = [text * 50 for text in texts[150:]]
    for source, where in (("", "val.bin"), ("", ""), ("train.bin", "val.bin")):
        config = DataConfig(source=str(tmp_path / source), validation_source=str(tmp_path / where))
        corpus, validation = open_data(config)
        assert decode(validation) == held_out
        assert validation.bytes.tolist() == [len(text) for text in held_out]
        assert corpus.shards == corpus.source.shards
    corpus, validation = open_data(DataConfig(source=str(tmp_path / "train.bin")))
    assert set(decode(validation)) < {text * 50 for text in texts[:150]}
    assert decode(open_data(DataConfig(source=str(tmp_path)))[1]) == held_out
    with pytest.raises(UserError, match=r"is not held out: .*train\.bin is in"):
        open_data(DataConfig(source=str(tmp_path), validation_source=str(tmp_path / "train.bin")))


@pytest.mark.usefixtures("large_shards")
def test_reserving_from_a_large_row_group_decodes_it_a_few_times_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"Document number {number}." for number in range(100_000)]
    write_documents(tmp_path / "a.parquet", texts, 100_000)
    decoded = []
    take = parquet._take

    def counted(batches, rows):  # type: ignore[no-untyped-def]
        decoded.append(rows)
        return take(batches, rows)

    monkeypatch.setattr(parquet, "_take", counted)
    corpus, validation = open_data(DataConfig(source=str(tmp_path), validation_tokens=40_000))
    assert len(corpus.shards) == 93 and decode(validation)[0] == "Document number 93000."
    assert sum(decoded) < 350_000  # three times, not seven


def test_a_tokenizer_that_loses_text_gets_a_note(tmp_path: Path, texts: list[str]) -> None:
    words = sorted({word for text in texts[:190] for word in text.split()})
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(["?", *words])}, unk_token="?")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["</s>"])
    made.save(str(tmp_path / "words.json"))
    write_documents(tmp_path / "documents" / "a.parquet", texts)
    options = {"source": str(tmp_path / "documents"), "cache_dir": str(tmp_path / "cache")}
    corpus, _ = open_data(DataConfig(tokenizer=str(tmp_path / "words.json"), **options))
    assert corpus.source.notes == [
        f"data.tokenizer: {tmp_path}/words.json does not give back 10 of 20 validation documents as they "
        "were: what it loses is free, so its bits per byte are too low."
    ]
    for tokenizer in ("gpt2", "bytes"):
        assert open_data(DataConfig(tokenizer=tokenizer, **options))[0].source.notes == []


def test_large_row_groups_and_damaged_files_get_a_note(folder: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "large.parquet", ["Some text."] * 70_000, 70_000)
    write_documents(tmp_path / "held" / "a.parquet", ["Held out."])
    (tmp_path / "held" / "b.parquet").write_bytes(b"PAR1 is no parquet file PAR1")
    config = DataConfig(source=str(tmp_path / "large.parquet"), validation_source=str(tmp_path / "held"))
    damaged, large = open_data(config)[0].source.notes
    assert damaged.startswith(f"data.source: {tmp_path}/held/b.parquet is not a readable parquet file (")
    assert large.startswith("data.source: row groups of 70,000 rows make every start slow, as 64 lanes begin")
    assert open_data(replace(config, lanes=8))[0].source.notes == [damaged]


def test_copies_of_reserved_documents_are_left_out_of_training(tmp_path: Path, texts: list[str]) -> None:
    write_documents(tmp_path / "a.parquet", [texts[-1], *texts])
    corpus, validation = open_data(DataConfig(source=str(tmp_path)))
    assert texts[-1] in decode(validation)
    assert corpus.tokens(texts[-1]) == BadRow("held_out")
    assert decode_one(corpus.tokens(texts[0])) == texts[0]


def test_a_large_source_is_searched_as_it_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.overlap.held_out.CHECKED_AT_START_BYTES", 0)
    write_documents(tmp_path / "held.parquet", ["Document number 42 says much."])
    corpus, _ = open_data(DataConfig(source=str(folder), validation_source=str(tmp_path / "held.parquet")))
    assert corpus.tokens("Document number 42 says much.") == BadRow("held_out")
