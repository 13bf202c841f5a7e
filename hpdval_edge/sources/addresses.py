"""Addresses of streams, and how they may be shown."""

import re
from urllib.parse import urlsplit

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# user:password@ in anything that reads like an address, also inside a GStreamer pipeline.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s\"'@]*(?:@[^/\s\"'@]*)*@")
# Passwords in the query, as many cameras take them, and in the properties of GStreamer's elements.
_SECRET = re.compile(
    r"((?:user-pw|proxy-pw|user-id|password|passwd|pwd|pass|token|access_token|key|api_?key|secret|auth|sig|signature)=)"
    r"(\"[^\"]*\"|[^&\s#]+)",
    re.IGNORECASE,
)


def scheme(argument: str) -> str | None:
    """``rtsp`` of ``rtsp://camera/1``; None for what is no address."""
    found = _SCHEME.match(argument)
    return found.group()[:-3].lower() if found else None


def masked(text: str) -> str:
    """An address, or text with addresses in it, without the credentials: ``rtsp://***@camera/1?password=***``."""
    return _SECRET.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def host(address: str) -> str:
    """``camera:554`` of an address, without credentials."""
    return urlsplit(address).netloc.rpartition("@")[2]
