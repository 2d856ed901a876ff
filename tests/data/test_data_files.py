"""`data.files`: only what is named is opened, and what is not there is said."""

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataConfig, Source, open_data, open_source, open_tokenizer, refuse_missing
from data.sources import ParquetSource, jsonl, network
from data.stats import main as stats
from data.tokenize_source import tokenize_source
from model.errors import UserError
from tests.data.servers import COMMIT, Server, hub, serving, texts
from tests.data.token_files import llm_c_file
from tests.processes import fork_this, status_of

NAMES = [f"shard_{number:05d}.parquet" for number in range(12)]
REPO = "hf://datasets/org/name"


def rows(name: str) -> list[str]:
    return [f"{name}, text {row}" for row in range(40)]


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network, "RETRY_SECONDS", (0, 0))
    monkeypatch.setattr(jsonl, "JSONL_DIR", tmp_path / "cache")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "shards").mkdir()
    for name in NAMES:
        pq.write_table(pa.table({"text": rows(name)}), folder / name)
    return folder


def opened(**options: str) -> Source:
    return open_source(DataConfig(**options), open_tokenizer("bytes"))  # type: ignore[arg-type]


def names(source: Source) -> list[str]:
    return [Path(path).name for path in source.file_sizes]


def refused(**options: str) -> str:
    with pytest.raises(UserError) as raised:
        refuse_missing(DataConfig(**options))  # type: ignore[arg-type]
        opened(**options)
    return str(raised.value)


# ---- a data set on the hub ----
def read_from_hub() -> list[object]:
    """Runs in a process of its own, where `HF_ENDPOINT` was the server at import."""
    config = DataConfig(
        source="org/name",
        files="shard_{00000..00002}.parquet",
        validation_source=f"{REPO}/shard_00011.parquet",
        tokenizer="bytes",
        lanes=1,
    )
    corpus, validation = open_data(config)

    def read_all() -> None:
        assert len(texts(corpus.source)) == 120  # type: ignore[arg-type]

    assert status_of(fork_this(read_all)) == 0  # as the processes that read ahead are
    return [corpus.source.file_sizes, texts(corpus.source), int(validation.bytes.sum())]  # type: ignore[arg-type]


def choose_from_hub() -> dict[str, str]:
    """Fingerprints and refusals of several choices, as `read_from_hub` runs."""
    said = {}
    for source, files in (
        ("org/name", "shard_{00000..00002}.parquet"),
        ("org/name", "shard_0000[0-2].parquet"),
        ("org/name", "shard_{00002,00000,00001}*"),
        (f"{REPO}@v1/shard_{{00000..00002}}.parquet", None),
        ("org/name", "shard_{00000..00003}.parquet"),
    ):
        said[f"{source} {files}"] = opened(
            **{"source": source} | ({"files": files} if files else {})
        ).fingerprint
    said["whole"] = opened(source="org/name").fingerprint
    for files in ("shard_{00010..00014}.parquet", "shard_9*.parquet", "more/*.parquet", "README.md"):
        said[files] = refused(source="org/name", files=files)
    config = DataConfig(source="org/name", files="shard_0000*", tokenizer="bytes", lanes=1)
    for held_out in ("shard_00009.parquet", "shard_{00010..00012}.parquet"):
        with pytest.raises(UserError) as raised:
            open_data(replace(config, validation_source=f"{REPO}/{held_out}"))
        said[held_out] = str(raised.value)
    return said


def on_hub(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ProcessPoolExecutor:
    hub(server, "org/name", {name: (folder / name).read_bytes() for name in NAMES}, {"default": "*.parquet"})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(folder.parent / "hub"))
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def test_of_a_hub_data_set_only_the_named_files_are_asked_for(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_hub(server, folder, monkeypatch) as pool:
        sizes, read, held_out_bytes = pool.submit(read_from_hub).result(timeout=120)
    assert sizes == {f"{REPO}@{COMMIT}/{name}": (folder / name).stat().st_size for name in NAMES[:3]}
    assert read == [text for name in NAMES[:3] for text in rows(name)]
    assert held_out_bytes == sum(len(text) for text in rows(NAMES[11]))
    paths = [request.path for request in server.requests]
    asked = {name for name in NAMES if any(name in path for path in paths)}
    assert asked == {*NAMES[:3], NAMES[11]}
    assert not [path for path in paths if "/tree/" in path], "nothing is listed"
    assert sum("/paths-info/" in path for path in paths) == 2  # one for each of the two sources
    about = [path for path in paths if path.startswith("/api/datasets/org/name") and "paths-info" not in path]
    assert len(about) <= 5  # for each source its commit, and whether it is there; this in each process


def test_choices_of_a_hub_data_set(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with on_hub(server, folder, monkeypatch) as pool:
        said = pool.submit(choose_from_hub).result(timeout=120)
    fingerprints = list(said.values())[:6]
    assert len(set(fingerprints[:4])) == 1, "the same files, however they are named"
    assert len(set(fingerprints)) == 3
    assert said["shard_{00010..00014}.parquet"] == (
        "data.files: 3 of the 5 files that shard_{00010..00014}.parquet names are not in org/name, the first "
        "is shard_00012.parquet"
    )
    assert said["shard_9*.parquet"] == "data.files: org/name has no file shard_9*.parquet"
    assert said["more/*.parquet"] == "data.files: org/name has no file more/*.parquet"
    assert "must name files of one format" in said["README.md"] and ".md" in said["README.md"]
    assert (
        f"is not held out: {REPO}@{COMMIT}/shard_00009.parquet is in data.source"
        in said["shard_00009.parquet"]
    )
    assert said["shard_{00010..00012}.parquet"].startswith("data.validation_source: 1 of the 3 files")


# ---- a folder, a URL ----
def test_of_a_folder_only_the_named_files_are_opened(folder: Path) -> None:
    for name in NAMES[3:]:
        (folder / name).write_bytes(b"no parquet: a footer that is read is an error")
    source = opened(source=str(folder), files="shard_{00000..00002}.parquet", on_bad_document="stop")
    assert isinstance(source, ParquetSource) and names(source) == NAMES[:3]
    assert texts(source) == [text for name in NAMES[:3] for text in rows(name)]
    assert source.fingerprint == opened(source=str(folder), files="*_0000[210].parquet").fingerprint
    assert source.fingerprint != opened(source=str(folder), files="shard_{00000..00001}*").fingerprint


def test_a_pattern_may_go_down_into_folders(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / NAMES[5]).rename(folder / "a" / "b" / NAMES[5])
    assert names(opened(source=str(folder), files="a/**/*.parquet")) == [NAMES[5]]
    assert names(opened(source=str(folder), files="{a/b/shard_00005,shard_00001}.parquet")) == [
        NAMES[5],
        NAMES[1],
    ]
    assert names(opened(source=str(folder), files="*.parquet")) == NAMES[:5] + NAMES[6:]


def test_token_files_and_json_lines_can_be_named(tmp_path: Path) -> None:
    for number in range(4):
        llm_c_file(tmp_path / f"fineweb_train_{number:06d}.bin", rows(str(number)))
        (tmp_path / f"rows_{number}.jsonl").write_text(f'{{"text": "row {number}"}}\n')
    options = DataConfig(source=str(tmp_path), files="fineweb_train_{000001..000002}.bin")
    source = open_source(options, tokenizer := open_tokenizer("gpt2"))
    read = [
        tokenizer.decode(document[:-1]) for shard in source.shards for document in source.read(shard).kept
    ]  # type: ignore[arg-type]
    assert read == rows("1") + rows("2")
    assert texts(opened(source=str(tmp_path), files="rows_{3,1}.jsonl")) == ["row 1", "row 3"]  # type: ignore[arg-type]
    assert "of one format" in refused(source=str(tmp_path), files="*_*1.*")


def test_files_at_a_url(server: Server, folder: Path) -> None:
    for name in NAMES:
        server.files[f"/shards/{name}"] = (folder / name).read_bytes()
    source = opened(source=f"{server.url}/shards", files="shard_{00003..00004}.parquet")
    assert list(source.file_sizes) == [f"{server.url}/shards/{name}" for name in NAMES[3:5]]
    here = opened(source=str(folder), files="shard_0000[34]*")
    assert source.older_fingerprint == here.older_fingerprint, "names, sizes and shards are the same"
    assert {Path(request.path).name for request in server.requests} == {*NAMES[3:5]}
    message = refused(source=f"{server.url}/shards/", files="shard_{00011..00013}.parquet")
    assert "2 of the 3 files" in message and message.endswith("the first is shard_00012.parquet")
    assert "a web server does not list files" in refused(source=f"{server.url}/shards", files="*.parquet")


def test_without_the_network_each_choice_has_its_own_note(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    for name in NAMES:
        server.files[f"/shards/{name}"] = (folder / name).read_bytes()
    config = DataConfig(
        source=f"{server.url}/shards",
        files="shard_{00003..00005}.parquet",
        validation_source=str(folder / NAMES[0]),
        tokenizer="bytes",
        cache_dir=str(tmp_path / "tokens"),
        lanes=1,
        timeout_s=0.2,
    )
    corpus, _ = open_data(config)
    server.faults = ["drop"] * 100_000
    assert open_data(config)[0].fingerprint == corpus.fingerprint
    with pytest.raises(ConnectionError):
        open_data(replace(config, files="shard_{00003..00004}.parquet"))


def test_token_shards_of_some_files_are_what_these_files_are(folder: Path, tmp_path: Path) -> None:
    config = DataConfig(source=str(folder), files="shard_0000[0-3]*", tokenizer="bytes")
    source, tokenizer = opened(source=config.source, files="shard_0000[0-3]*"), open_tokenizer("bytes")
    made = tokenize_source(source, config, tokenizer, str(tmp_path / "tokens"), workers=1)
    assert made["documents"] == 4 * 40 and made["files"] == config.files
    assert opened(source=str(tmp_path / "tokens"), tokenizer="bytes").fingerprint == source.fingerprint


def test_commands_take_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.files", "shard_{00000..00001}.parquet", "--data.tokenizer", "bytes", "--workers", "1"]
    assert stats([str(folder), *options]) == 0
    assert re.search(r"documents +80\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"files": "*.parquet"}, "chooses from a folder, a hub id or a URL, but data.source is sample"),
        ({"source": "{folder}/shard_00001.parquet", "files": "a"}, "chooses from a folder"),
        ({"source": "{folder}", "files": "a{1..2"}, "a{1..2 lacks a brace"),
        ({"source": "{folder}", "files": "a{1..2000000}"}, "names more than 100,000 files"),
        ({"source": "{folder}", "files": "../*.parquet"}, "must name files below the source"),
        ({"source": "{folder}", "files": "{a,/b}"}, "no '/b'"),
        ({"source": "{folder}", "files": "shard_00012.parquet"}, "has no file shard_00012.parquet"),
        (
            {"source": "{folder}", "files": "*.parquet", "split": "test"},
            "data.files says which files are read",
        ),
        ({"source": "{folder}", "files": "*.parquet", "revision": "v1"}, "has no revisions"),
        ({"source": "org/name", "files": "*.parquet", "subset": "a"}, "leave one of them out"),
        ({"source": "hf://datasets/org"}, "must look like hf://datasets/OWNER/NAME/PATTERN"),
        ({"source": "hf://buckets/org/name/a.parquet"}, "must look like hf://datasets/OWNER/NAME/PATTERN"),
        (
            {"source": f"{REPO}/a.parquet", "files": "b"},
            "data.files is 'b', but .* has 'a.parquet'",
        ),
        (
            {"source": f"{REPO}@v1/a.parquet", "revision": "v2"},
            "data.revision is 'v2', .* has 'v1' itself",
        ),
        ({"files": ""}, "data.files is empty"),
    ],
)
def test_a_wrong_choice_is_one_sentence(folder: Path, options: dict[str, str], said: str) -> None:
    options = {key: value.replace("{folder}", str(folder)) for key, value in options.items()}
    with pytest.raises(UserError, match=said if ".*" in said else re.escape(said)):
        config = DataConfig(**options)  # type: ignore[arg-type]
        refuse_missing(config)
        open_source(config, open_tokenizer("bytes"))


def test_token_shards_of_ours_are_read_whole(folder: Path, tmp_path: Path) -> None:
    (made := tmp_path / "made").mkdir()
    (made / "manifest.json").write_text('{"token_shards_format": 1}')
    assert "cannot choose from the token shards" in refused(source=str(made), files="*.bin")
