"""Addresses of streams, and how they may be shown."""

import re
from urllib.parse import SplitResult, urlsplit

from hpdval_edge.errors import UsageError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# user:password@ in anything that reads like an address, also inside a GStreamer pipeline; the second way takes a
# password with a slash, which no address may hold, where what looks like a port would be no number.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/\s\"'@]*(?:@[^/\s\"'@]*)*|[^/\s\"':]*:(?!\d*/)[^\s\"']*)@")
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


def split_address(address: str, shown: str) -> SplitResult:
    """The parts of ``address``; errors call it ``shown``.

    Raises:
        UsageError: it names no host or no proper port, so that waiting for an answer would never end.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        raise UsageError(f"{shown} is no address; an IPv6 host stands in brackets, as in http://[::1]/.") from None
    try:
        proper = parts.port != 0 and not parts.netloc.endswith(":")
    except ValueError:
        proper = False
    if not proper and "@" in parts.path:
        raise UsageError(f"{shown} has a slash in its user name or password; write %2F for it.")
    if not proper:
        raise UsageError(f"{shown} has no proper port; it takes a number from 1 to 65535.")
    if not parts.hostname:
        raise UsageError(f"{shown} names no host.")
    return parts


def host(address: str) -> str:
    """``camera:554`` of an address, without credentials."""
    return urlsplit(address).netloc.rpartition("@")[2]
