"""A page that follows runs: drawn anew when files change, served, and never ended by what it reads."""

import gzip
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from filelock import FileLock

from eval.page.live.follower import Follower
from eval.page.live.server import PageServer
from eval.page.live.sources import Reading, Sources
from model.errors import UserError

MakeRun = Callable[..., Path]


def draw(reading: Reading) -> str:
    """A page that says how many lines of training each run has."""
    lines = [f"{folder.name} {len(record.train)}" for folder, record in reading.runs.items()]
    return "; ".join([*lines, *reading.problems])


def follower_of(*folders: Path, said: list[str] | None = None) -> Follower:
    return Follower(Sources(folders), draw, say=(said if said is not None else []).append)


def append(run: Path, text: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text)


def set_summary(run: Path, **changes: object) -> None:
    file = run / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@contextmanager
def served(follower: Follower) -> Iterator[HTTPConnection]:
    server = PageServer("127.0.0.1", 0)
    server.follower = follower
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    try:
        yield connection
    finally:
        connection.close()
        server.shutdown()
        thread.join()
        server.server_close()


def ask(connection: HTTPConnection, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
    connection.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
    answer = connection.getresponse()
    return answer, answer.read()


LINE = json.dumps({"kind": "train", "step": 999, "tokens": 1, "loss": 5.0})


def test_only_what_changed_is_read_again(make_run: MakeRun) -> None:
    first, second = make_run("vanilla"), make_run("rmsnorm")
    follower = follower_of(first, second)
    assert follower.snapshot.page == b"vanilla_s1 200; rmsnorm_s1 200"
    kept = follower.sources.read().runs[second]
    assert not follower.refresh()
    before = follower.snapshot.state["version"]
    append(first, LINE + "\n")
    assert follower.refresh()
    assert follower.snapshot.page == b"vanilla_s1 201; rmsnorm_s1 200"
    assert follower.snapshot.state["version"] != before
    assert follower.sources.read().runs[second] is kept


def test_half_written_damaged_and_deleted_runs_end_nothing(make_run: MakeRun) -> None:
    first, second = make_run("vanilla"), make_run("rmsnorm")
    follower = follower_of(first, second)
    append(first, LINE[:20])  # a line that is being written
    assert follower.refresh() and follower.snapshot.page == b"vanilla_s1 200; rmsnorm_s1 200"
    append(first, f"\n{LINE}\n")
    assert follower.refresh() and follower.snapshot.page == b"vanilla_s1 201; rmsnorm_s1 200"
    assert "line 205 is no JSON of a step" in str(follower.sources.read().runs[first].broken_metrics)
    shutil.rmtree(second)
    assert follower.refresh()
    assert f"{second} could not be read: there is no run folder {second}" in follower.snapshot.page.decode()
    (first / "summary.json").write_text("{")
    assert follower.refresh() and "is not valid JSON" in follower.snapshot.page.decode()


def test_a_page_that_cannot_be_drawn_leaves_the_last_one(make_run: MakeRun) -> None:
    run = make_run()
    said: list[str] = []

    def fails_later(reading: Reading) -> str:
        if len(reading.runs[run].train) > 200:
            raise UserError("no run is of the baseline")
        return "first"

    follower = Follower(Sources([run]), fails_later, say=said.append)
    append(run, LINE + "\n")
    assert follower.refresh() and follower.snapshot.page == b"first"
    assert follower.snapshot.state["problem"] == said[0]
    assert said == ["the page could not be drawn anew: no run is of the baseline"]


def test_runs_under_way_are_counted_and_their_ends_are_said(make_run: MakeRun) -> None:
    run = make_run(status="running", val_loss=None, step=100)
    (run / "logs").mkdir()
    said: list[str] = []
    with FileLock(run / "logs" / "rank0.lock"):  # as the run's own process holds it
        follower = follower_of(run, said=said)
        assert follower.snapshot.state["under_way"] == 1
        append(run, LINE + "\n")
        assert follower.refresh() and said == []
    set_summary(run, status="finished", val_loss=5.4321)
    assert follower.refresh()
    assert said == ["vanilla_s1 has finished: validation loss 5.4321 nats per token"]
    assert follower.snapshot.state["under_way"] == 0
    assert follower.snapshot.state["ended"][0][1] == said[0]


def test_a_process_that_ends_without_a_word_is_noticed(make_run: MakeRun) -> None:
    run = make_run(status="running", val_loss=None, step=100)
    (run / "logs").mkdir()
    said: list[str] = []
    with FileLock(run / "logs" / "rank0.lock"):
        follower = follower_of(run, said=said)
    assert follower.refresh()  # no file has changed
    assert said == ["vanilla_s1 is not trained any more: its process ended without a word at step 100"]


def test_the_server_gives_the_page_once_and_the_new_one_later(make_run: MakeRun) -> None:
    run = make_run()
    follower = follower_of(run)
    with served(follower) as connection:
        answer, body = ask(connection, "/")
        assert answer.status == 200 and body == b"vanilla_s1 200"
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        again, body = ask(connection, "/", If_None_Match=answer.headers["ETag"])
        assert again.status == 304 and body == b""
        _, first = ask(connection, "/state")
        append(run, LINE + "\n")
        follower.refresh()
        answer, body = ask(connection, "/state?", Accept_Encoding="gzip")
        assert answer.headers["Content-Encoding"] == "gzip"
        state = json.loads(gzip.decompress(body))
        assert state["version"] != json.loads(first)["version"] and state["updated"] <= time.time()
        _, body = ask(connection, "/")
        assert body == b"vanilla_s1 201"
        assert ask(connection, "/../../etc/passwd")[0].status == 404
        connection.request("HEAD", "/")
        answer = connection.getresponse()
        assert (answer.headers["Content-Length"], answer.read()) == ("14", b"")


def test_follow_draws_by_itself_and_stops(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.page.live.follower.POLL_S", 0.01)
    drawn = threading.Event()
    run = make_run()

    def and_tell(reading: Reading) -> str:
        if len(reading.runs[run].train) > 200:
            drawn.set()
        return draw(reading)

    follower = Follower(Sources([run]), and_tell)
    thread = threading.Thread(target=follower.follow)
    thread.start()
    append(run, LINE + "\n")
    assert drawn.wait(60)
    follower.stop()
    thread.join(60)
    assert not thread.is_alive()


def test_a_port_or_host_that_cannot_be_is_one_sentence(make_run: MakeRun) -> None:
    follower = follower_of(make_run())
    with served(follower) as connection:
        assert connection.port is not None
        with pytest.raises(UserError, match=rf"port {connection.port} is taken: give another, such as"):
            PageServer("127.0.0.1", connection.port)
    with pytest.raises(UserError, match=r"--host is '203\.0\.113\.7', which is no address of this machine"):
        PageServer("203.0.113.7", 0)
