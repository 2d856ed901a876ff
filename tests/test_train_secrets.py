"""What signs a URL, and the keys of the environment, are in no file of a run and on no terminal."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from model.redaction import redact
from tests import jobs
from tests.data.servers import Server, parquet_bytes, serving
from tests.jobs import arguments, make_job
from tests.processes import ROOT

MARKERS = {
    "HF_TOKEN": "hf_markerOfHuggingFace",
    "WANDB_API_KEY": "markerofwandb" + "0123456789" * 3,
    "AWS_SECRET_ACCESS_KEY": "markerOfAws/with+signs",
}
SIGNATURE = "markerOfTheUrl"
PASSWORD = "markerOfThePassword"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://u:p@host/a.parquet?sig=abc: mend it", "https://***@host/a.parquet: mend it"),
        ("'HTTPS://h/x?y=1' is", "'HTTPS://h/x' is"),
        ('{"a": "https://h/x?y=1", "b": 1}', '{"a": "https://h/x", "b": 1}'),
        ("see (https://h/x?a=1&b=%2F2.).", "see (https://h/x.)."),
        ("s3://key:secret@bucket/part_?.parquet", "s3://***@bucket/part_?.parquet"),
        ("abfs://c/a.parquet?sv=1&sig=x", "abfs://c/a.parquet"),
        ("hf://datasets/owner/name@main/f_?.parquet", "hf://datasets/owner/name@main/f_?.parquet"),
        ("is it? a=b, /data/a?b=c", "is it? a=b, /data/a?b=c"),
        ("https://h/x?sig=a(b)c'd next", "https://h/x next"),
        (r'"https://us\u00e9r:p\u00e9w@h/x?sig=a\u00e9b\n"', r'"https://***@h/x\n"'),
        ("https://h/x#token=1 and s3://b/a#b", "https://h/x and s3://b/a#b"),
        ("['https://h/x?y=1','b'] `https://h/?a`", "['https://h/x','b'] `https://h/`"),
    ],
)
def test_what_signs_a_url_is_left_out(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


def test_keys_of_the_environment_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in MARKERS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "notasecret")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    monkeypatch.setenv("SHORT_KEY", "a")
    text = "notasecret /home/me/key.json a " + " ".join(MARKERS.values())
    assert redact(text) == "notasecret /home/me/key.json a *** *** ***"


@pytest.mark.parametrize("name", ["DB_PASSWORD", "PGPASSWORD", "GH_PAT", "MYSQL_PWD", "OPENAI_API_KEY"])
def test_a_key_is_left_out_however_it_is_written(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value = 'a"b\\c/größer & $4'
    monkeypatch.setenv(name, value)
    forms = [value, json.dumps(value), repr(value), f"postgres://{quote(value, safe='')}"]
    assert redact(" ".join(forms)) == "*** \"***\" '***' postgres://***"


def test_each_command_redacts_what_it_prints() -> None:
    folders = (ROOT / name for name in ("model", "data", "training", "eval"))
    files = [
        ROOT / "train.py",
        *(ROOT / "scripts").glob("*.py"),
        *(f for one in folders for f in one.rglob("*.py")),
    ]
    blocks = {
        str(file): file.read_text().partition('\nif __name__ == "__main__":\n')[2].strip() for file in files
    }
    commands = {name: block for name, block in blocks.items() if block and "bench_" not in name}
    assert len(commands) > 12
    wrong = [
        name for name, block in commands.items() if not re.match(r"(model\.)?redact_output\(\)\n", block)
    ]
    assert wrong == []


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files["/rows.parquet"] = parquet_bytes(500)
        yield server


def found_in(folder: Path, markers: list[str]) -> list[tuple[str, str]]:
    """Which files below a folder, by content or by name, have which markers."""
    found = []
    for path in folder.rglob("*"):
        content = str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b"")
        found += [(str(path), marker) for marker in markers if marker.encode() in content]
    return found


@pytest.mark.slow
def test_a_run_on_a_signed_url_writes_no_marker(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "job"
    job.mkdir()
    make_job(job, ["a text"] * 40, steps=30, tokenizer="bytes")
    caches = tmp_path / "caches"
    places = {f"NORMLAB_{name}_DIR": str(caches / name.lower()) for name in ("FOOTERS", "HASH", "JSONL")}
    monkeypatch.setattr(jobs, "ENVIRONMENT", jobs.ENVIRONMENT | MARKERS | places | {"WANDB_MODE": "offline"})
    written = tmp_path / "written"

    def words(signature: str, name: str, *options: str) -> list[str]:
        address = server.url.removeprefix("http://")
        url = f"http://user:{PASSWORD}@{address}/rows.parquet?sig={signature}"
        given = ["--data.source", url, "--data.timeout_s", "5", "--train.checkpoint_every", "1", *options]
        return arguments(job, written / name, *given)

    # killed and resumed under a new signature, as the first one has expired
    server.signature = f"sig={SIGNATURE}"
    cache = ["--data.cache_dir", str(caches / "tokens")]
    killed = jobs.start_until(words(SIGNATURE, "run", *cache), 3, typed=True)
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    server.signature = f"sig={SIGNATURE}2"
    resumed = jobs.run(words(SIGNATURE + "2", "run", *cache), typed=True)
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads((written / "run" / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 30)
    steps = [json.loads(line) for line in (written / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["kind"] == "train"] == list(range(1, 31))
    # one that is refused, and names the URL in its error
    refused = jobs.run(words(SIGNATURE, "refused"), typed=True)
    assert refused.returncode == 1
    assert "/rows.parquet cannot be read (" in refused.stderr

    markers = [*MARKERS.values(), SIGNATURE, PASSWORD]
    said = "".join([*killed.printed(), resumed.stdout, resumed.stderr, refused.stdout, refused.stderr])
    assert "/rows.parquet" in said and not [marker for marker in markers if marker in said]
    assert found_in(written, markers) == found_in(caches, markers) == []
    assert list((written / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert "source: http://***@127.0.0.1" in (written / "run" / "recipe.yaml").read_text()
