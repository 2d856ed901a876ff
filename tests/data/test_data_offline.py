"""Without a network: the hub's cache on this disk is read, and said; a copy that is not whole is refused."""

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from data import DataConfig, Source, open_source, open_tokenizer
from model.errors import UserError
from tests.data.servers import COMMIT, ROWS, hub, parquet_bytes, serving, texts

FILES = {
    "sample/10BT/000_00000.parquet": parquet_bytes(500),
    "sample/10BT/001_00000.parquet": parquet_bytes(6000),
    "data/train-00000-of-00002.parquet": parquet_bytes(6000),
}
SUBSETS = {"sample-10BT": "sample/10BT/*", "default": "data/*"}
NOBODY = "http://127.0.0.1:1"


def opened(**options: str) -> Source:
    config = DataConfig(source="org/name", timeout_s=5, **options)  # type: ignore[arg-type]
    return open_source(config, open_tokenizer("bytes"))


def in_own_process(function: Callable[..., object], *arguments: object) -> None:
    """In a process that reads its environment anew."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(function, *arguments).result(timeout=120)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as its client makes it: a snapshot whose files are links, and the branch's commit."""
    folder = tmp_path / "hub" / "hub" / "datasets--org--name"
    card = {
        "configs": [
            {"config_name": name, "data_files": [{"split": "train", "path": path}]}
            for name, path in SUBSETS.items()
        ]
    }
    readme = f"---\n{json.dumps(card)}\n---\n".encode()
    for number, (name, content) in enumerate({"README.md": readme, **FILES}.items()):
        blob = folder / "blobs" / f"{number:064d}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = folder / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return folder


def read_the_copy(snapshot: Path, fingerprint: str) -> None:
    note = f"data.source: the hub cannot be reached: the copy of commit {COMMIT} in {snapshot} is read."
    for revision in {}, {"revision": COMMIT}:
        source = opened(subset="sample-10BT", **revision)
        assert source.notes == [note]
        assert texts(source) == ROWS * 2
        assert source.fingerprint == fingerprint
        assert source.name == "org/name"
    named = opened(files="sample/10BT/{000,001}_00000.parquet")
    assert named.notes == [note] and named.fingerprint == fingerprint
    with pytest.raises(ConnectionError, match=r"lacks 1 file, such as data/train-00001-of-00002\.parquet:"):
        opened(subset="default")
    with pytest.raises(ConnectionError, match="hub cannot be reached"):
        opened(files="sample/10BT/002_00000.parquet")
    for options in {"revision": "v2"}, {"revision": "0" * 40}:
        with pytest.raises(ConnectionError, match=f"org/name at revision {options['revision']} is no file"):
            opened(**options)
    with pytest.raises(UserError, match=r"data\.subset is 'sample-10B', but org/name has .*sample-10BT"):
        opened(subset="sample-10B")
    (snapshot.parents[1] / "blobs" / "1.incomplete").touch()
    with pytest.raises(ConnectionError, match=f"the copy of org/name in {snapshot} was not finished"):
        opened(subset="sample-10BT")


def fingerprint_of(path: str) -> None:
    Path(path).write_text(opened(subset="sample-10BT").fingerprint)


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOBODY}], ids=str)
def test_a_copy_in_the_cache_of_the_hub_is_read(
    cache: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving() as server, monkeypatch.context() as patch:
        hub(server, "org/name", FILES, SUBSETS)
        patch.setenv("HF_ENDPOINT", server.url)
        in_own_process(fingerprint_of, str(tmp_path / "fingerprint"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fingerprint = (tmp_path / "fingerprint").read_text()
    in_own_process(read_the_copy, cache / "snapshots" / COMMIT, fingerprint)


def download(*patterns: str) -> None:
    snapshot_download("org/name", repo_type="dataset", revision="v1", allow_patterns=["README.md", *patterns])


def read_part() -> None:
    with pytest.raises(ConnectionError, match=r"lacks 1 file, such as sample/10BT/001_00000\.parquet:"):
        opened(subset="sample-10BT", revision="v1")


def read_all() -> None:
    assert texts(opened(subset="sample-10BT", revision="v1")) == ROWS * 2


def test_a_copy_must_have_every_file_that_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with serving() as server:
        hub(server, "org/name", FILES, SUBSETS)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        in_own_process(download, "sample/10BT/000*")
        server.faults = ["drop"] * 1000
        in_own_process(read_part)
        server.faults = []
        in_own_process(download, "sample/10BT/*")
        server.faults = [503] * 1000
        in_own_process(read_all)


def find_nothing() -> None:
    with pytest.raises(ConnectionError) as caught:
        opened()
    message = str(caught.value)
    assert message.startswith(
        "data.source: org/name is no file or folder here, and the Hugging Face hub cannot"
    )
    assert "(HF_HUB_OFFLINE is set)" in message and "\n" not in message


def test_without_a_copy_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    in_own_process(find_nothing)


def test_a_snapshot_folder_is_a_source(cache: Path) -> None:
    source = open_source(
        DataConfig(source=str(cache / "snapshots" / COMMIT), subset="sample-10BT"), open_tokenizer("bytes")
    )
    assert [Path(path).name for path in source.file_sizes] == ["000_00000.parquet", "001_00000.parquet"]
    assert texts(source) == ROWS * 2  # type: ignore[arg-type]
