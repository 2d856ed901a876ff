"""What must not be written or said: signed URLs, passwords in URLs, and the secrets of the environment.

The query of a URL may be its signature, and what stands before its `@` a password; both are left out. The
values of variables such as HF_TOKEN, WANDB_API_KEY or AWS_SECRET_ACCESS_KEY are left out wherever they occur.
"""

import functools
import os
import re

HIDDEN = "***"
SHORTEST_SECRET = 8
"""A shorter value is no key, and would be found in words."""
_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASS|CREDENTIALS?|SAS|AUTH)(?:_|$)", re.IGNORECASE
)
_END = r"[\s\"'<>\\)\]}`]"
_URL = re.compile(
    rf"""(?P<scheme>\b[a-z][a-z0-9+.-]*://)
    (?P<user>[^\s/?\#"'<>\\]*@)?
    (?P<place>[^\s?"'<>\\]*)
    (?P<query>\?(?:(?!{_END}).)*?(?=[.,:;]*(?:{_END}|$)))?""",
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
    return re.compile("|".join(map(re.escape, sorted(secret, key=len, reverse=True)))) if secret else None
