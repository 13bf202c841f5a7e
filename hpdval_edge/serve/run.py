"""From a bundle to a running server, and to its end."""

import asyncio
import functools
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hpdval_edge.errors import UsageError
from hpdval_edge.labels_file import load_key
from hpdval_edge.predictor import Predictor
from hpdval_edge.progress import say
from hpdval_edge.serve.additions import load_text_encoder
from hpdval_edge.serve.app import create_app
from hpdval_edge.serve.settings import Settings

# Connections beyond this are answered 503 at once.
MOST_CONNECTIONS = 1024
KEEP_ALIVE = 20


class Connection(H11Protocol):
    """A client's. It is closed where the head of a request, or what is left of a body that was answered already, takes
    longer than ``head_timeout`` seconds; a head of more than h11's 16 KiB is refused with 400.
    """

    def __init__(self, head_timeout: float, **given: Any) -> None:
        super().__init__(**given)
        self._head_timeout = head_timeout
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_head()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._end:
            self._end.cancel()

    def _time_head(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if waits and not self._end:
            self._end = self.loop.call_later(self._head_timeout, self.transport.close)
        elif not waits and self._end:
            self._end.cancel()
            self._end = None


def serve(predictor: Predictor, settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; requests that are in by then are answered. A second SIGINT ends it at once."""
    if settings.key is not None:
        # What is wrong with it is told now, not to the first client that sends a file.
        load_key(settings.key, "public")
    listener = open_socket(settings.host, settings.port)
    if settings.run is not None:
        load_text_encoder(settings, predictor.bundle)
    server = make_server(predictor, settings)
    if not settings.loopback and settings.token is None:
        say(
            f"hpedge: everybody who can reach {settings.host} can use this server, for it has no token; "
            "see --token-file."
        )

    # For signals that come before uvicorn's own handlers are there; it raises each again when it has shut down.
    def stop(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        say(
            f"{url_of(listener)}  {predictor.bundle.manifest.name}, {len(predictor.labels)} labels, "
            f"{predictor.engine.name}{', labels can be edited' if settings.edit else ''}; Ctrl-C stops it"
        )
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        listener.close()
    say("stopped at once" if server.force_exit else "stopped; every request that was in is answered")


class Server(uvicorn.Server):
    """A server that is silent about what a second Ctrl-C cuts short; uvicorn tells each with its traceback."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or stop at once."""
        super().handle_exit(sig, frame)
        if self.force_exit:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def make_server(predictor: Predictor, settings: Settings) -> Server:
    """A server of the application, not yet running."""
    # What is wrong with a form is told to its sender; in the log it would be for anybody to fill.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        create_app(predictor, settings),
        http=functools.partial(Connection, settings.body_timeout),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=round(settings.longest_request) + 1,
    )
    return Server(config)


def open_socket(host: str, port: int) -> socket.socket:
    """A bound socket, port 0 being the system's choice; UsageError where the address is taken or none of ours."""
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        # Python puts the address behind the reason.
        reason = str(error.strerror).split(" (")[0]
        raise UsageError(
            f"{host} port {port} cannot be listened on ({reason}); choose others with --host and --port."
        ) from None


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
