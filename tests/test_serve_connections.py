"""Connections to ``hpedge serve`` that bring no request: they are bounded in time and in memory."""

import socket

import pytest

from hpdval_edge.predictor import Predictor

WAIT = 60


@pytest.fixture
def predictor(tiny_bundle):
    return Predictor(tiny_bundle, "onnxruntime", threads=1)


def connect(client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), WAIT)


@pytest.mark.parametrize(
    ("sent", "then"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nX", b": "),
        (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GE"),
        (b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n", b"xx"),
    ],
    ids=["nothing", "a head", "a second head", "a body that was answered"],
)
def test_a_connection_whose_request_does_not_come_is_closed(served, predictor, sent, then):
    """Else 1,024 of them leave no room. Planted mistakes: heads not timed; the first of a connection alone."""
    with served(predictor, body_timeout=0.5) as client, connect(client) as idle:
        idle.sendall(sent)
        received = b""
        while sent.endswith(b"\r\n\r\n") and not received.endswith(b"}"):
            received += idle.recv(4096)
        idle.sendall(then)
        assert idle.recv(4096) == b""
        assert client.get("/healthz").status_code == 200


def test_the_head_of_a_request_is_bounded(served, predictor):
    """Planted mistake: httptools, which keeps headers without end before anybody is asked for a token."""
    with served(predictor, token="correct-horse-battery") as client, connect(client) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 3000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
