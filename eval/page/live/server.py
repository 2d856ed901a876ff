"""Serves a page that follows runs: the page itself, and a small answer that says whether it has changed."""

import errno
import gzip
import hashlib
import json
import socket
import sys
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from model.errors import UserError

from .follower import Follower

PORT, HOST = 8765, "127.0.0.1"
HTML, JSON, TEXT = (f"{kind}; charset=utf-8" for kind in ("text/html", "application/json", "text/plain"))


class PageServer(ThreadingHTTPServer):
    """A thread for each browser's question; all end with this process.

    Args:
        host: its address here; 127.0.0.1 is seen from this machine alone.
        port: 0 for any that is free.

    Raises UserError where the port is taken or not allowed, or there is no such address here.
    """

    follower: Follower

    def __init__(self, host: str, port: int) -> None:
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise UserError(_refusal(host, port, error)) from None

    @property
    def url(self) -> str:
        """What to type in a browser on this machine."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{'localhost' if host in (HOST, '0.0.0.0') else host}:{port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """Answers `/`, `/sections` and `/state`; what a browser has already is not sent again."""

    server: PageServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer, with a body."""
        path = self.path.partition("?")[0]
        snapshot = self.server.follower.current()
        if path == "/":
            self._send(snapshot.page, HTML)
        elif path == "/sections":
            self._send(snapshot.sections, HTML)
        elif path == "/state":
            self._send(json.dumps(snapshot.state).encode(), JSON)
        else:
            self._send(b"there is only the page, at /\n", TEXT, 404)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said of questions."""

    def _send(self, body: bytes, kind: str, status: int = 200) -> None:
        tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        if status == 200 and self.headers.get("If-None-Match") == tag:
            self.send_response(304)
            self.send_header("ETag", tag)
            self.end_headers()
            return
        self.send_response(status)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = _compressed(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Vary", "Accept-Encoding")
        self.send_header("ETag", tag)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve(server: PageServer, follower: Follower) -> None:
    """Follow and answer until KeyboardInterrupt, which is raised."""
    server.follower = follower
    threading.Thread(target=follower.follow, name="follower", daemon=True).start()
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        follower.stop()


@lru_cache(maxsize=2)
def _compressed(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=5)


def _refusal(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"--host is '{host}', which is no address of this machine: give 127.0.0.1, or 0.0.0.0 for all"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken: give another, such as --serve {port + 1}, or --serve 0 for a free one"
    if error.errno == errno.EACCES:
        return f"port {port} is not allowed for you: give one above 1023, such as --serve {PORT}"
    return f"nothing can be served at {host}, port {port}: {error.strerror or error}"
