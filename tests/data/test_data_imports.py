"""What is refused, and what only describes the data, comes before the slow libraries are loaded."""

import ast
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data import DataConfig, refuse_missing
from model.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("torch", "datasets", "pyarrow", "pandas", "aiohttp", "tiktoken", "tokenizers", "huggingface_hub")


def run(program: str, *arguments: str) -> tuple[str, str, list[str]]:
    """What a program prints to stdout and stderr, and which slow libraries it has loaded in the end."""
    listed = f"\nimport sys\nprint([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program + listed, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    *said, loaded = done.stdout.splitlines()
    return "\n".join(said), done.stderr, ast.literal_eval(loaded)


COMMAND = """
import runpy, sys
name, sys.argv = sys.argv[1], sys.argv[1:]
try:
    (runpy.run_path if name.endswith(".py") else runpy.run_module)(name, run_name="__main__")
except SystemExit as end:
    print("exit status", end.code)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["data.stats", "--help"], 0, "--documents N"),
        (["data.stats"], 2, "the following arguments are required: SOURCE"),
        (["data.stats", "nowhere.parquet"], 2, "data.source: nowhere.parquet does not exist"),
        (["data.stats", "smaple"], 2, "(did you mean 'sample'?)"),
        (["data.stats", "sample", "--data.tokeniser", "gpt2"], 2, "--data.tokeniser"),
        (["data.stats", "sample", "--workers", "0"], 2, "it must be an integer of 1 or more"),
        (["data.stats", "sample", "--data.subset", "x", "--data.tokenizer", "bytes"], 2, "has no subsets"),
        (["data.stats", "sample", "--data.split", "x", "--data.tokenizer", "bytes"], 2, "data.split is 'x'"),
        (["data.stats", "none.bin", "--data.tokenizer", "bytes"], 2, "none.bin does not exist"),
        (["scripts/tokenize_data.py", "--help"], 0, "--out DIR"),
        (["scripts/tokenize_data.py", "nowhere.jsonl", "--out", "x"], 2, "nowhere.jsonl does not exist"),
        (["scripts/tokenize_data.py", "sample"], 2, "the following arguments are required: --out"),
        (["scripts/bench_data.py", "--help"], 0, "tokens per measurement"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_answer_without_data_loads_no_slow_library(arguments: list[str], status: int, words: str) -> None:
    said, error, loaded = run(COMMAND, *arguments)
    assert said.endswith(f"exit status {status}") and words in said + error
    assert loaded == []


@pytest.mark.parametrize(
    "program",
    [
        "from data import BAD_REASONS, Corpus, Cursor, DataConfig, Documents, Shard, Source",
        "from data import SAMPLE_DIR, is_complete; is_complete(SAMPLE_DIR)",
        "from data import LaneLoader, ValidationSet, open_data, open_source, open_tokenizer",
        "from data import IGNORED_TARGET, document_ids, inputs_and_targets",
    ],
)
def test_the_front_loads_a_library_only_when_it_is_used(program: str) -> None:
    assert run(program)[2] == []


def test_a_token_source_is_opened_without_torch_and_datasets(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes([7, 0] * 500 + [0, 1]) * 40)
    program = (
        "import sys; from data import DataConfig, LaneLoader, open_data\n"
        "config = DataConfig(source=sys.argv[1], tokenizer='bytes', lanes=2)\n"
        "corpus, validation = open_data(config)\n"
        "loader = LaneLoader(corpus, config, block_size=8, micro_batch=2)\n"
        "loader.start()"
    )
    assert not {"torch", "datasets", "pyarrow", "pandas", "aiohttp"}.intersection(
        run(program, str(tmp_path / "train.bin"))[2]
    )


def test_a_missing_source_is_refused_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    for source in ("sample", str(tmp_path), f"{tmp_path}/a.parquet", f"{tmp_path}/*.parquet", "org/name",
                   "https://host/a.parquet", "s3://bucket/*.jsonl"):  # fmt: skip
        refuse_missing(DataConfig(source=source, validation_source=source))
    for key in ("source", "validation_source"):
        with pytest.raises(UserError, match=rf"^data\.{key}: .*/b\.parquet does not exist \(did you mean 'a"):
            refuse_missing(DataConfig(**{key: f"{tmp_path}/b.parquet"}))
    with pytest.raises(UserError, match=r"none\.bin does not exist"):
        refuse_missing(DataConfig(source=f"{tmp_path}/none.bin"))
    with pytest.raises(UserError, match="there is no folder some/where"):
        refuse_missing(DataConfig(source="some/where/a.parquet"))


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataConfig().lanes = 5  # type: ignore[misc]
