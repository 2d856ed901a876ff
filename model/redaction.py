"""What must not be written or said: signed URLs, passwords in URLs, and the secrets of the environment.

The query of a URL may be its signature, as may what follows a `#`, and what stands before its `@` a password;
they are left out. The
values of variables such as HF_TOKEN, WANDB_API_KEY or AWS_SECRET_ACCESS_KEY are left out wherever they occur.
"""

import functools
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO
from urllib.parse import quote

HIDDEN = "***"
SHORTEST_SECRET = 8
"""A shorter value is no key, and would be found in words."""
_NAME = re.compile(
    r"(?:(?:^|_)(?:KEY|PASS|PWD|PAT|SAS|AUTH)|TOKEN|APIKEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)",
    re.IGNORECASE,
)
_LETTER = r"\\u[0-9a-f]{4}"  # as JSON has one that is not ASCII
_END = r"""(?:[\s"<>]|\\(?!u[0-9a-f]{4})|['`)\]}](?![\w%&=~+/-]))"""
_URL = re.compile(
    rf"""(?P<scheme>\b[a-z][a-z0-9+.-]*://)
    (?P<user>(?:[^\s/?\#"'<>\\]|{_LETTER})*@)?
    (?P<place>(?:[^\s?\#"'<>\\]|{_LETTER})*)
    (?P<query>[?\#](?:(?!{_END}).)*?(?=[.,:;]*(?:{_END}|$)))?""",
    re.IGNORECASE | re.VERBOSE,
)


def redact(text: str) -> str:
    """A text without the queries and passwords of its URLs, and without the environment's secrets.

    `https://user:pw@host/a.parquet?sig=abc` becomes `https://***@host/a.parquet`.
    """
    secrets = _secrets(tuple(value for name, value in os.environ.items() if _NAME.search(name)))
    if secrets is not None:
        text = secrets.sub(HIDDEN, text)
    return _URL.sub(_redacted, text) if "://" in text else text


def _redacted(url: re.Match[str]) -> str:
    user = f"{HIDDEN}@" if url["user"] else ""
    query = url["query"] or ""
    # elsewhere than on the web a question mark may stand for any letter of a file's name
    if url["scheme"].lower() in ("http://", "https://") or "=" in query:
        query = ""
    return url["scheme"] + user + url["place"] + query


@functools.lru_cache(maxsize=4)
def _secrets(values: tuple[str, ...]) -> re.Pattern[str] | None:
    # a path to a file of secrets is none
    secret = {value for value in values if len(value) >= SHORTEST_SECRET and not value.startswith(("/", "~"))}
    # as it is, as JSON and Python have it in quotes, and as a URL has it
    written = {
        form
        for value in secret
        for form in (value, json.dumps(value)[1:-1], repr(value)[1:-1], quote(value, safe=""))
    }
    return re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True)))) if secret else None


class _Redacted:
    """A stream of text that passes on all but what `redact` leaves out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_output() -> None:
    """Whatever this process prints from here on, tracebacks too, is redacted: the first line of a command."""
    sys.stdout, sys.stderr = _Redacted(sys.stdout), _Redacted(sys.stderr)  # type: ignore[assignment]
