"""A web server on this machine that fails when it is told to."""

import gzip
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import pyarrow as pa
import pyarrow.parquet as pq

from data.sources import ParquetSource

COMMIT = "c0ffee" * 6 + "c0de"
"""What it says that every file belongs to, as the hub does."""


class Request(NamedTuple):
    method: str
    path: str
    range: str | None
    sent: int


class Server(ThreadingHTTPServer):
    """Files by path, with ranges; the next requests fail as `faults` says, or a GET of /faults/FAULT/TIMES.

    A fault is an HTTP status, "drop" (no answer), "stall" (a late one), "cut" (half of the body), "hang" (no
    body), "trickle" (10 bytes of it, then 10 more, ...), "slow" (all of it, at 100 kB per second), "mute" (no
    answer, and the connection stays) or "drip" (a head that does not end, a line now and then).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.path_infos: dict[str, dict[str, Any]] = {}  # what a POST that asks for some of them gets
        self.faults: list[int | str] = []
        self.requests: list[Request] = []
        self.ranges = True
        self.signature: str | None = None  # the query without which every request is refused
        self.compresses = False
        self.versions: dict[str, str] | None = None  # headers that tell contents apart; None for an ETag
        self.closed = threading.Event()
        self.url: str = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        pass  # a client that goes away is none


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        known = self.server.path_infos.get(self.path, {})
        self.send(200, json.dumps([known[path] for path in asked if path in known]).encode())

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        if self.path.startswith("/faults/"):
            fault, times = self.path.split("/")[2:]
            server.faults = [int(fault) if fault.isdecimal() else fault] * int(times)
            return self.send(200, b"")
        fault = server.faults.pop(0) if server.faults else 200
        path = self.path.removesuffix("?Signature=secret")
        if server.signature is not None:
            path, _, query = self.path.partition("?")
            fault = fault if query == server.signature else 403
        content = server.files.get(path, b"")
        status = 404 if path not in server.files | server.redirects else 200
        if fault == "stall":
            time.sleep(1)
        if fault in ("drop", "mute", "drip"):
            self.close_connection = True
            self.log(0)
            return self.keep_waiting(drips=fault == "drip") if fault != "drop" else None
        if isinstance(fault, int) and fault != 200:
            status = fault
        if status != 200:
            return self.send(status, b"")
        if self.path in server.redirects:
            return self.send(302, b"", Location=server.redirects[self.path])
        headers = {"ETag": hashlib.sha256(content).hexdigest()}
        if server.versions is not None:
            headers = dict(server.versions)
        if asked and server.ranges:
            status = 206
            first, last = asked.removeprefix("bytes=").split("-")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[int(first) : int(last) + 1]
        if server.compresses and "gzip" in self.headers.get("Accept-Encoding", ""):
            content = gzip.compress(content)
            headers["Content-Encoding"] = "gzip"
        self.send(status, content, fault=fault, **headers)

    def send(self, status: int, content: bytes, fault: int | str = 200, **headers: str) -> None:
        self.send_response(status)
        _, is_of_commit, rest = self.path.partition("/resolve/")
        commit = rest.partition("/")[0] if is_of_commit else COMMIT
        headers |= {"X-Repo-Commit": commit, "Content-Length": str(len(content))}
        if status == 404:
            headers["X-Error-Code"] = "EntryNotFound"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "cut":
            content = content[: len(content) // 2]
            self.close_connection = True
        if self.command == "HEAD":
            content = b""
        self.log(len(content))
        if fault == "hang" and content:
            self.server.closed.wait(60)
        elif fault in ("trickle", "slow"):
            size = 10 if fault == "trickle" else 5_000
            for begin in range(0, len(content), size):
                self.wfile.write(content[begin : begin + size])
                if self.server.closed.wait(0.05):
                    return
        else:
            self.wfile.write(content)

    def keep_waiting(self, drips: bool) -> None:
        if drips:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not self.server.closed.wait(0.05):
            if drips:
                self.wfile.write(b"X-Wait: 1\r\n")

    def log(self, sent: int) -> None:
        self.server.requests.append(Request(self.command, self.path, self.headers.get("Range"), sent))


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs until the block ends."""
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.closed.set()
    server.shutdown()
    server.server_close()


def hub(
    server: Server,
    repo: str,
    files: dict[str, bytes],
    subsets: dict[str, str],
    commit: str = COMMIT,
    **held_out: str,
) -> None:
    """A data set in the hub's own URLs, whose newest commit this is; `subsets` are patterns by name,
    `held_out` those by further split.

    What an earlier call committed stays there under its own name.
    """
    more = [{"split": split, "path": path} for split, path in held_out.items()]
    card = {
        "configs": [
            {"config_name": name, "data_files": [{"split": "train", "path": path}, *more]}
            for name, path in subsets.items()
        ]
    }
    files = {"README.md": f"---\n{json.dumps(card)}\n---\n".encode(), **files}
    siblings = [{"rfilename": name} for name in files]
    api = f"/api/datasets/{repo}"
    for revision in "", "/revision/main", "/revision/v1", f"/revision/{commit}":
        about = {"id": repo, "sha": commit, "siblings": siblings}
        server.files[api + revision] = json.dumps(about).encode()
    for name, content in files.items():
        path = f"/datasets/{repo}/resolve/{commit}/{name}"
        if name == "README.md":
            server.files[path] = content
        else:
            place = name if commit == COMMIT else f"{commit}/{name}"
            server.files[f"/storage/{place}"] = content
            server.redirects[path] = f"{server.url}/storage/{place}?Signature=secret"
    folders = {str(folder) for name in files for folder in Path(name).parents} - {"."}
    tree: list[dict[str, Any]] = [_tree_entry(name, content) for name, content in files.items()]
    tree += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in folders]
    server.path_infos[f"{api}/paths-info/{commit}"] = {str(entry["path"]): entry for entry in tree}
    for folder in ("", *folders):
        place = f"{api}/tree/{commit}{'/' if folder else ''}{folder.replace('/', '%2F')}"
        below = [entry for entry in tree if Path(folder) in Path(str(entry["path"])).parents]
        children = [entry for entry in below if Path(str(entry["path"])).parent == Path(folder)]
        server.files[f"{place}?recursive=true&expand=false"] = json.dumps(below).encode()
        server.files[f"{place}?recursive=false&expand=false"] = json.dumps(children).encode()


def _tree_entry(name: str, content: bytes) -> dict[str, Any]:
    """What the hub says of a file: its blob in git, and the sha256 of what is too large for that."""
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "oid": blob, "size": len(content), "path": name}
    if name.endswith(".parquet"):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return entry


ROWS = [f"Text {row} " + "words and more " * 20 for row in range(6000)]


def parquet_bytes(group: int) -> bytes:
    file = io.BytesIO()
    table = pa.table({"text": ROWS, "more": ["other columns are not fetched" * 5] * len(ROWS)})
    pq.write_table(table, file, row_group_size=group, compression="none", use_dictionary=False)
    return file.getvalue()


def texts(source: ParquetSource) -> list[object]:
    return [text for shard in source.shards for text in source.read(shard).kept]


def json_lines() -> bytes:
    return "".join(
        json.dumps({"text": text, "id": f"id-{row}"}) + "\n" for row, text in enumerate(ROWS)
    ).encode()
