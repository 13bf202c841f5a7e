"""What stands before every route: who may ask, from where, and the headers of each answer."""

import hmac
import ipaddress
import socket
import time
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpdval_edge.serve.metrics import Metrics
from hpdval_edge.serve.refusal import Refusal
from hpdval_edge.serve.settings import Settings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Counted under their own name; a stranger may make up others without end.
METHODS = (*SAFE_METHODS, "POST", "PUT", "PATCH", "DELETE")
# Everything the page uses comes from this server; pictures of its own making are blobs.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


class Guard:
    """ASGI middleware: checks host, origin and token, sets HEADERS, counts.

    No answer carries a CORS header, so pages of other origins cannot read any.

    Args:
        known: paths that are counted under their own name. open_: paths, or beginnings that end in a slash, that need
            no token: what a browser loads before somebody types one.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, known: Collection[str], open_: Collection[str]
    ) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.known = frozenset(known)
        self.open = tuple(open_)
        machine = socket.gethostname().lower()
        self.hosts = frozenset(("localhost", machine, f"{machine}.local", *map(str.lower, settings.hosts)))
        self.expected = settings.token and f"Bearer {settings.token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        path = scope["path"] if scope["path"] in self.known else "other"
        method = scope["method"] if scope["method"] in METHODS else "other"
        try:
            refusal = self.refuses(scope)
            app = refusal.response() if refusal else self.app
            await app(scope, receive, send_with_headers)
        finally:
            self.metrics.requests.labels(method, path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    def refuses(self, scope: Scope) -> Refusal | None:
        """Why a request is not let in, or None."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self.knows(host):
            return Refusal(400, f"host {host!r} is not this server; it can be let in with --allow-host.")
        origin = headers.get("origin")
        if scope["method"] not in SAFE_METHODS and origin is not None and _parts(origin).netloc != host:
            return Refusal(403, f"a page of {origin} may not send this; open the server's own page.")
        if self.expected and not self.is_open(scope["path"]):
            given = headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, self.expected):
                return Refusal(401, "a token is needed; send it as the header 'Authorization: Bearer TOKEN'.")
        return None

    def is_open(self, path: str) -> bool:
        """Whether ``path`` needs no token."""
        return any(path == one or (one != "/" and one.endswith("/") and path.startswith(one)) for one in self.open)

    def knows(self, host: str) -> bool:
        """Whether ``host``, a Host header, can only mean this server.

        A name of somebody else's that resolves to this machine (DNS rebinding) would let pages of that name in as if
        they were ours; an address, and a name that only its owner can give away, cannot be used so.
        """
        name = _parts(f"//{host}").hostname or ""
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True


def _parts(url: str) -> SplitResult:
    """Of a URL; none where it cannot be taken apart, as one with half an IPv6 address."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
