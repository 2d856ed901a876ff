"""Servers on this machine that fail when they are told to: with files, and for W&B's client."""

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "name": "normlab", "entity": {"id": "e", "name": "us"}}


class Server(ThreadingHTTPServer):
    """Answers until `fault` names a way not to.

    Attributes:
        fault: "" for none, "hang" for no answer, "trickle" for a few bytes per second.
        hangs_at: a part of a request to W&B from which on nothing is answered.
        files: by path.
        runs: W&B's, by id.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.hangs_at = "", b"nothing"
        self.files: dict[str, bytes] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.closed = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Nothing: clients that hang up are no error here."""


class Handler(BaseHTTPRequestHandler):
    """GET gives a file or a part of one; POST answers W&B's client."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Nothing: the terminal is the torture's."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        content = self.server.files.get(self.path.partition("?")[0])
        if content is None:
            return self._send(404, b"")
        headers = {"ETag": hashlib.sha256(content).hexdigest()}
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._send(206, content[int(first) : int(last) + 1], **headers)
        return self._send(200, content, **headers)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            sent = gzip.decompress(sent)
        if self.server.hangs_at in self.path.encode() + sent:
            self.server.fault = "hang"
        if self.server.fault:
            self.server.closed.wait()
            return None
        is_known = "file_stream" in self.path or self.path == "/graphql"  # the rest is telemetry
        answer = reply(self.server.runs, self.path, json.loads(sent)) if is_known else {}
        return self._send(200, json.dumps(answer).encode())

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.fault == "hang":
            self.server.closed.wait()
        elif self.server.fault == "trickle":
            for begin in range(0, len(content), 10):
                self.wfile.write(content[begin : begin + 10])
                if self.server.closed.wait(0.5):
                    return
        else:
            self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs until the block ends."""
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.closed.set()
        server.shutdown()
        server.server_close()


def reply(runs: dict[str, dict[str, Any]], path: str, sent: dict[str, Any]) -> dict[str, Any]:
    """What W&B answers to a client that tracks a run; where it goes on follows from the rows so far."""
    if "file_stream" in path:
        history = sent.get("files", {}).get("wandb-history.jsonl")
        if history:
            rows = runs[path.split("/")[-2]]["rows"]
            rows[history["offset"] :] = history["content"]
        return {"exitcode": None, "limits": {}}
    query, given = sent["query"], sent.get("variables", {})
    if "upsertBucket" in query:
        is_new = given["name"] not in runs
        run = runs.setdefault(given["name"], {"rows": []})
        bucket = described(given["name"]) | {"project": PROJECT, "historyLineCount": len(run["rows"])}
        return {"data": {"upsertBucket": {"bucket": bucket, "inserted": is_new}}}
    if "RunResumeStatus" in query:
        run_id = given["name"]
        known = None
        if run_id in runs:
            rows = runs[run_id]["rows"]
            known = described(run_id) | {
                "wandbConfig": '{"t": 1}', "tags": [], "summaryMetrics": "{}", "historyLineCount": len(rows),
                "eventsLineCount": 0, "logLineCount": 0, "historyTail": json.dumps(rows[-1:]),
                "eventsTail": "[]",
            }  # fmt: skip
        return {"data": {"model": PROJECT | {"bucket": known}}}
    if "serverInfo" in query:
        return {"data": {"serverInfo": {"features": []}}}
    if "viewer" in query:
        return {"data": {"viewer": {"id": "u", "entity": "us", "flags": "{}", "teams": {"edges": []}}}}
    if "createRunFiles" in query:
        return {"data": {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": []}}}
    if "createArtifact(" in query:  # one that the server has already, so that it asks for no files
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}
        return {"data": {"createArtifact": {"artifact": artifact}}}
    return {"data": {"project": None}}  # it knows of no artifact by name


def described(run_id: str) -> dict[str, str]:
    return {"id": run_id, "name": run_id, "displayName": run_id, "config": "{}"}
