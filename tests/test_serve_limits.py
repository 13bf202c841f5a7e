"""``hpedge serve`` under pressure and in bad company: sizes, queues, slow clients, strangers, the end."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdval_edge.errors import UsageError
from hpdval_edge.predictor import Predictor

TOKEN = "correct-horse-battery"
WAIT = 60


@pytest.fixture
def predictor(tiny_bundle):
    return Predictor(tiny_bundle, "onnxruntime", threads=1)


@pytest.fixture
def gate(predictor):
    """The predictor's engine calls wait for ``gate.open``; ``gate.reached`` is set when one waits."""

    class Gate:
        reached, open = threading.Event(), threading.Event()

    through = predictor.predict_images

    def wait(images):
        Gate.reached.set()
        assert Gate.open.wait(WAIT)
        return through(images)

    predictor.predict_images = wait
    yield Gate
    Gate.open.set()


def picture(number: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def form(content: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + content + b"\r\n--b--\r\n"


def connect(client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), WAIT)


def head(client, *lines: str) -> bytes:
    host = f"{client.base_url.host}:{client.base_url.port}"
    start = f"POST /v1/classify HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    return (start + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode()


def answer(connection: socket.socket) -> tuple[int, dict]:
    """Status and body of the response; the connection may be closed behind it."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        length = 0
        while (line := stream.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return status, json.loads(stream.read(length))


def until(client, line: str) -> None:
    """Wait until the metrics hold ``line``."""
    end = time.monotonic() + WAIT
    while line not in (found := client.get("/metrics").text):
        assert time.monotonic() < end, found


def post(client, number: int = 0, **headers):
    return client.post("/v1/classify", files={"file": ("a.png", picture(number))}, headers=headers)


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(served, predictor):
    """Planted mistake: only bytes that came are counted; the server then waits for the rest."""
    with served(predictor, max_bytes=1000) as client, connect(client) as connection:
        connection.sendall(head(client, "Content-Length: 1001"))
        status, body = answer(connection)
        assert status == 413
        assert body == {"error": "the request is larger than 1000 bytes; send fewer or smaller pictures."}


def test_a_body_that_does_not_say_its_size_is_refused_while_it_arrives(served, predictor):
    """Planted mistake: the size is looked at when the body is there; this one never ends."""
    with served(predictor, max_bytes=100_000) as client, connect(client) as connection:
        connection.sendall(head(client, "Transfer-Encoding: chunked"))
        start = form(picture())[:-8]
        connection.sendall(b"%x\r\n%b\r\n" % (len(start), start))
        chunk = b"%x\r\n%b\r\n" % (50_000, b"x" * 50_000)
        for _ in range(3):
            connection.sendall(chunk)
        assert answer(connection)[0] == 413
        assert "hpedge_held_bytes 0.0" in client.get("/metrics").text


def test_bodies_of_all_requests_together_are_bounded(served, predictor):
    """Planted mistake: the bound is never given back."""
    with served(predictor, max_held_bytes=2000) as client:
        with connect(client) as waiting:
            start = form(b"x" * 1400)[:-8]
            waiting.sendall(head(client, "Content-Length: 5000") + start)
            until(client, f"hpedge_held_bytes {len(start)}.0")
            refused = client.post("/v1/classify", content=b"x" * 900, headers={"Content-Type": "application/json"})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        until(client, "hpedge_held_bytes 0.0")
        assert post(client).status_code == 200


def test_a_slow_client_is_refused_and_keeps_nobody_waiting(served, predictor):
    """Planted mistake: no limit on the time of a body."""
    with served(predictor, body_timeout=0.5) as client, connect(client) as slow:
        slow.sendall(head(client, "Content-Length: 5000") + form(picture())[:40])
        assert post(client).status_code == 200
        assert answer(slow) == (408, {"error": "the request's body did not arrive within 0.5 s."})


def test_a_client_that_leaves_gives_its_places_back(served, predictor, gate):
    """Planted mistake: places are given back on answers only."""
    with served(predictor, max_queue=1, max_pictures=1) as client:
        with connect(client) as leaving:
            leaving.sendall(head(client, "Content-Length: 5000") + form(picture())[:40])
        gate.open.set()
        for _ in range(3):
            assert post(client).status_code == 200


def test_a_full_queue_is_429_at_once_and_opens_again(served, predictor, gate):
    """Planted mistakes: no bound; places not given back."""
    with served(predictor, max_queue=3, max_pictures=2, max_batch=1) as client, ThreadPoolExecutor(3) as pool:
        admitted = [pool.submit(post, client, number) for number in range(2)]
        until(client, "hpedge_queue_pictures 2.0")
        # There is room for one, not for two.
        assert client.post("/v1/classify", files=[("file", ("a.png", picture()))] * 2).status_code == 429
        admitted.append(pool.submit(post, client, 2))
        until(client, "hpedge_queue_pictures 3.0")
        refused = post(client)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"].startswith("3 pictures are being worked on and the limit is 3; try again in ")
        # It is refused before its body is read.
        with connect(client) as connection:
            connection.sendall(head(client, "Content-Length: 5000"))
            assert answer(connection)[0] == 429
        gate.open.set()
        assert [done.result().status_code for done in admitted] == [200] * 3
        assert post(client).status_code == 200


@pytest.mark.parametrize("verb", ["classify", "labels/rename", "labels/add"])
def test_a_body_that_takes_long_to_parse_keeps_nobody_waiting(served, predictor, monkeypatch, verb):
    """Planted mistake: JSON parsed by the event loop."""
    from types import SimpleNamespace

    reached, opened = threading.Event(), threading.Event()

    def loads(body):
        reached.set()
        assert opened.wait(WAIT)
        return json.loads(body)

    monkeypatch.setattr("hpdval_edge.serve.intake.json", SimpleNamespace(loads=loads))
    with served(predictor) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.post, f"/v1/{verb}", json={"pictures": []})
        try:
            assert reached.wait(WAIT)
            assert client.get("/healthz", timeout=10).status_code == 200
        finally:
            opened.set()
        assert slow.result().status_code == 422


def test_bodies_of_millions_of_values_are_refused_before_they_are_parsed(served, predictor, monkeypatch):
    """The parser lets no other thread run meanwhile. Planted mistake: no bound on values."""
    with served(predictor) as client:
        head = {"Content-Type": "application/json"}
        refused = client.post("/v1/classify", content=b"[" + b"1," * 1_000_000 + b"1]", headers=head)
        assert refused.status_code == 413
        assert refused.json() == {"error": "the body holds more than 100000 values; send several requests."}


def test_more_pictures_than_a_request_may_hold_are_refused(served, predictor):
    two = [("file", ("a.png", picture())), ("file", ("b.png", picture()))]
    with served(predictor, max_pictures=1) as client:
        assert client.post("/v1/classify", files=two).status_code == 413
        body = {"pictures": [{"data": ""}, {"data": ""}]}
        assert client.post("/v1/classify", json=body).json() == {"error": "2 pictures, but a request may hold 1."}
    with (
        pytest.raises(UsageError, match="may hold 32 pictures, but --max-queue 8 never has room"),
        served(predictor, max_queue=8),
    ):
        pass


def test_an_answer_that_takes_too_long_is_504_and_the_next_is_its_own(served, predictor, gate):
    """Planted mistake: the late answer goes to whoever waits next."""
    with served(predictor, timeout=0.3) as client:
        late = post(client, 1)
        assert (late.status_code, late.json()) == (504, {"error": "there was no answer within 0.3 s."})
        gate.open.set()
        own = post(client, 2).raise_for_status().json()["results"][0]
        exact = predictor(Image.open(io.BytesIO(picture(2))))
        for row in own["scores"]:
            assert row["score"] == pytest.approx(exact.scores[predictor.labels.index(row["label"])], abs=1e-4)


def test_a_token_is_needed_for_all_but_the_page(served, predictor):
    """Planted mistakes: a prefix of the token lets in; the metrics need none."""
    with served(predictor, token=TOKEN) as client:
        for path in ("/", "/page/main.js", "/healthz"):
            assert client.get(path).status_code == 200
        for path in ("/v1/labels", "/metrics", "/openapi.json", "/page", "/pages/x"):
            refused = client.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert TOKEN not in refused.text
        for given in ("", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN):
            assert post(client, Authorization=given).status_code == 401
        assert post(client, Authorization=f"Bearer {TOKEN}").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        ("photos.example:8443", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("[::1", 400),
        ("", 400),
    ],
)
def test_names_that_somebody_else_can_point_here_are_refused(served, predictor, host, status):
    """Planted mistakes: every host is let in, so that a page of evil.example can read answers (DNS rebinding); one that
    is no address at all makes the server fail.
    """
    with served(predictor, hosts=("photos.example",)) as client:
        assert client.get("/v1/labels", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost", "http://["]
)
def test_pages_of_other_origins_can_neither_send_nor_read(served, tiny_bundle, tmp_path, origin):
    """Planted mistake: no look at Origin; a form of another page could then edit labels."""
    own = Predictor(shutil.copytree(tiny_bundle, tmp_path / "own.hpedge"), threads=1)
    with served(own, edit=True) as client:
        body = {"labels": ["red"]}
        assert client.post("/v1/labels/remove", json=body, headers={"Origin": origin}).status_code == 403
        assert post(client, Origin=origin).status_code == 403
        read = client.get("/v1/labels", headers={"Origin": origin})
        assert "red" in [row["label"] for row in read.json()["labels"]]
        asked = client.options("/v1/labels", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        for response in (read, asked):
            assert not [name for name in response.headers if name.startswith("access-control")]
        own = str(client.base_url).rstrip("/")
        assert post(client, Origin=own).status_code == 200


def test_every_answer_has_the_headers_that_keep_browsers_safe(served, predictor):
    """Planted mistake: refusals without them."""
    with served(predictor) as client:
        for response in (client.get("/"), client.get("/v1/labels"), client.get("/", headers={"Host": "evil.example"})):
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; ")
            assert "unsafe" not in policy and "http" not in policy and "*" not in policy
            assert response.headers["x-content-type-options"] == "nosniff"
        page = client.get("/")
        assert "server" not in page.headers
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        same = client.get("/", headers={"If-None-Match": page.headers["etag"]})
        assert (same.status_code, same.content) == (304, b"")


def start(bundle: Path, *arguments: str, **environment: str) -> tuple[subprocess.Popen, str, int]:
    """The command on a free port; the process, its host and port."""
    command = [sys.executable, "-m", "hpdval_edge", "serve", str(bundle), "--port", "0", "--threads", "1", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    line = process.stderr.readline()
    assert line.startswith("http://"), line + process.stderr.read()
    host, port = line.split()[0].removeprefix("http://").rstrip("/").rsplit(":", 1)
    return process, host, int(port)


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), WAIT).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return False
    return True


def stopping(connection: socket.socket, host: str, port: int, process, number: int) -> bytes:
    """Send half a request, then the signal, until nothing listens any more; returns the other half."""
    body = form(picture())
    lines = f"POST /v1/classify HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(lines.encode() + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + body[:50])
    # A second request is answered only when the first, sent before it, is being read.
    with socket.create_connection((host, port), WAIT) as other:
        other.sendall(f"GET /healthz HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        assert answer(other)[0] == 200
    process.send_signal(number)
    end = time.monotonic() + WAIT
    while listens(host, port):
        assert time.monotonic() < end
    return body[50:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_answers_what_is_in_and_ends_well(tiny_bundle, number):
    """Planted mistake: no time for requests in flight, so that the connection is cut."""
    process, host, port = start(tiny_bundle)
    with socket.create_connection((host, port), WAIT) as connection:
        connection.sendall(stopping(connection, host, port, process, number))
        status, found = answer(connection)
    assert (status, len(found["results"])) == (200, 1)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0
    assert err == "stopped; every request that was in is answered\n"


def test_a_second_ctrl_c_ends_it_at_once_without_a_traceback(tiny_bundle):
    """Planted mistake: uvicorn tells what was cut short with tracebacks, and we that all is answered."""
    process, host, port = start(tiny_bundle)
    with socket.create_connection((host, port), WAIT) as connection:
        stopping(connection, host, port, process, signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT)
    assert (process.returncode, err) == (0, "stopped at once\n")


def test_an_open_address_without_a_token_is_warned_of(tiny_bundle, tmp_path):
    """Planted mistake: the token is taken from the environment though a file is named."""
    command = [sys.executable, "-m", "hpdval_edge", "serve", str(tiny_bundle), "--port", "0", "--host", "0.0.0.0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    first, second = process.stderr.readline(), process.stderr.readline()
    process.terminate()
    process.communicate(timeout=WAIT)
    assert "everybody who can reach 0.0.0.0 can use this server, for it has no token; see --token-file" in first
    assert second.startswith("http://127.0.0.1:")
    (tmp_path / "token").write_text(TOKEN + "\n")
    process, host, port = start(
        tiny_bundle, "--host", "0.0.0.0", "--token-file", str(tmp_path / "token"), HPEDGE_TOKEN="another-one-altogether"
    )
    with socket.create_connection((host, port), WAIT) as connection:
        lines = f"GET /v1/labels HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        connection.sendall(lines.encode())
        assert answer(connection)[0] == 200
    process.terminate()
    process.communicate(timeout=WAIT)
