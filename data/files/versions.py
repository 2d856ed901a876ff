"""What a storage says of a file that changes when its content does."""

from collections.abc import Mapping
from typing import Any

from ..sources.places import is_remote

WITHOUT_CHECKSUM = "modified"
"""How the version of a file begins that only its date and size tell."""
UNKNOWN = f"{WITHOUT_CHECKSUM}:None"
"""How it begins where there is not even a date."""
_CHECKSUMS = ("blob_id", "ETag", "etag", "md5Hash", "Content-MD5", "content_md5")
_DATES = ("Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created")


def remote_version(path: str, info: Mapping[str, Any]) -> str | None:
    """The version of a remote file by what its file system says of it; None for a file here, whose content
    tells more.

    Of the hub's large files it is the sha256 of the content, as `content_hashes` gives it of a copy here.
    """
    if not is_remote(path):
        return None
    if large := info.get("lfs"):
        sha256 = large.get("sha256") or large.get("oid") if isinstance(large, Mapping) else large.sha256
        return f"sha256:{sha256}"
    for key in _CHECKSUMS:
        if info.get(key):
            return f"{key}:{info[key]}"
    date = next((info[key] for key in _DATES if info.get(key)), None)
    return f"{WITHOUT_CHECKSUM}:{date} {info.get('size')}"
