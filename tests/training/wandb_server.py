"""A W&B server for one test: it takes what W&B's client sends, and says how much of a run it has.

It can be made to fail:

    with wandb_server(fault="hang_after_start") as (address, runs):
        ...  # a process with WANDB_BASE_URL=address, WANDB_API_KEY and WANDB_MODE=online

`FAULTS` names the ways. A wandb-core that is stopped is no fault of a server: `stop_service(pid)` makes one.
"""

import gzip
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import psutil

PROJECT = {"id": "p", "name": "normlab", "entity": {"id": "e", "name": "us"}}

FAULTS = {
    "refuse": "nobody listens",
    "silent": "connections are taken, and nothing is ever answered",
    "hang_at_start": "the server is there, and does not answer when a run begins",
    "hang_after_start": "a run begins, and nothing after that is answered",
    "error_500": "a run begins, and that is answered with 500",
    "conflict_409": "the same with 409, as for a run that was deleted",
}


@dataclass
class Run:
    """What the server has of a run; rows, summary and config as JSON."""

    rows: list[str] = field(default_factory=list)
    summary: str = "{}"
    begun: dict[str, Any] = field(default_factory=dict)
    config: str = "{}"
    artifacts: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def wandb_server(fault: str | None = None) -> Iterator[tuple[str, dict[str, Run]]]:
    """The address of a server that listens here, and its runs by id; with a `fault` of `FAULTS` it fails."""
    assert fault is None or fault in FAULTS, fault
    runs: dict[str, Run] = {}
    is_over = Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Nothing: the terminal is the test's."""

        def do_HEAD(self) -> None:
            if fault == "silent":
                is_over.wait()
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                sent = gzip.decompress(sent)
            is_ours = "file_stream" in self.path or self.path == "/graphql"  # the rest is telemetry
            begins = self.path == "/graphql" and b"upsertBucket" in sent
            if fault in ("silent", "hang_at_start") or (fault == "hang_after_start" and runs and not begins):
                is_over.wait()
            answer = reply(runs, self.path, json.loads(sent)) if is_ours else {}
            text = json.dumps(answer).encode()
            status = 200
            if begins and fault in ("error_500", "conflict_409"):  # the run is made in part, though
                status, text = int(fault[-3:]), b'{"errors": [{"message": "no run"}]}'
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    if fault == "refuse":
        with socket.socket() as nobody:  # bound and not listening: no other test gets the port
            nobody.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{nobody.getsockname()[1]}", runs
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.handle_error = lambda *which: None  # type: ignore[method-assign]  # clients hang up on a fault
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", runs
    finally:
        is_over.set()
        server.shutdown()
        server.server_close()


def stop_service(pid: int) -> int:
    """Stop the wandb-core of a process, as SIGSTOP does; returns its own process id."""
    (service,) = (child for child in psutil.Process(pid).children() if child.name() == "wandb-core")
    os.kill(service.pid, signal.SIGSTOP)
    return service.pid


def reply(runs: dict[str, Run], path: str, sent: dict[str, Any]) -> dict[str, Any]:
    """What W&B answers: rows are stored from the offset that the client gives, over what is there."""
    if "file_stream" in path:
        run, files = runs[path.split("/")[-2]], sent.get("files", {})
        if history := files.get("wandb-history.jsonl"):
            run.rows[history["offset"] :] = history["content"]
        if summary := files.get("wandb-summary.json"):
            run.summary = summary["content"][-1]
        return {"exitcode": None, "limits": {}}
    query, given = sent["query"], sent.get("variables", {})
    if "upsertBucket" in query:
        run_id = given["name"]
        is_new = run_id not in runs
        run = runs.setdefault(run_id, Run(begun=given))
        run.config = given.get("config") or run.config
        bucket = {
            "id": run_id, "name": run_id, "displayName": run_id, "config": "{}", "project": PROJECT,
            "historyLineCount": len(run.rows),
        }  # fmt: skip
        return {"data": {"upsertBucket": {"bucket": bucket, "inserted": is_new}}}
    if "RunResumeStatus" in query:
        known = runs.get(given["name"])
        return {"data": {"model": PROJECT | {"bucket": known and resume_status(given["name"], known)}}}
    if "serverInfo" in query:
        return {"data": {"serverInfo": {"features": []}}}
    if "viewer" in query:
        return {"data": {"viewer": {"id": "u", "entity": "us", "flags": "{}", "teams": {"edges": []}}}}
    if "createArtifact(" in query:  # one that the server has already, so that it asks for no files
        run = runs[given["input"]["runName"]]
        run.artifacts.append(given["input"])
        artifact = {"id": str(len(run.artifacts)), "state": "COMMITTED", "artifactSequence": {"id": "s"}}
        return {"data": {"createArtifact": {"artifact": artifact}}}
    if "upsertView" in query:
        project = {"id": "p", "name": given["projectName"], "entityName": given["entityName"]}
        view = {key: given[key] for key in ("name", "displayName", "description", "type", "spec")}
        return {"data": {"upsertView": {"view": view | {"id": "view", "project": project}, "inserted": True}}}
    if "models(" in query:  # the projects
        page = {"hasNextPage": False, "endCursor": None}
        return {"data": {"models": {"edges": [], "pageInfo": page}}}
    if "createRunFiles" in query:
        return {"data": {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": []}}}
    return {"data": {"project": None}}  # it knows of no artifact by name


def resume_status(run_id: str, run: Run) -> dict[str, Any]:
    """From where a client goes on with a run."""
    return {
        "id": run_id, "name": run_id, "displayName": run_id, "config": run.config,
        "wandbConfig": '{"t": 1}', "tags": run.begun.get("tags") or [],
        "summaryMetrics": run.summary, "historyLineCount": len(run.rows), "eventsLineCount": 0,
        "logLineCount": 0, "historyTail": json.dumps(run.rows[-1:]), "eventsTail": "[]",
    }  # fmt: skip
