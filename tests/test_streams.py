"""Real local streams, over HTTP and RTSP, that are killed, frozen, silent or locked."""

import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hpdval_edge.errors import BadData, MissingDependency, UsageError
from hpdval_edge.sources import live
from hpdval_edge.sources.live import Lost
from hpdval_edge.sources.open import open_source
from hpdval_edge.sources.options import SourceOptions

pytest.importorskip("av", reason="av is not installed; the extra [video] brings it")
STREAM_SERVER = runpy.run_path(str(Path(__file__).with_name("stream_server.py")))
number_of = STREAM_SERVER["number_of"]
# Nothing takes as long as this; what does not come in time fails its test instead of hanging it.
LONG = 60.0


@pytest.fixture(params=["HttpServer", "RtspServer"])
def server(request):
    made = STREAM_SERVER[request.param](rate=50)
    yield made
    made.kill()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(live, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(live, "LONGEST_WAIT", 0.2)


def shown(frame):
    return number_of(frame.read(8))


def sent_numbers(server):
    return [number for connection in server.sent for number, _ in connection]


def test_a_stream_that_is_killed_and_comes_back(server, opened, quick, capsys):
    """Mistakes: frames in another order, twice or of another picture; the end of the program with the stream."""
    source = opened(server.address)
    found, began = [], time.time()
    for frame in source:
        found.append(shown(frame))
        assert began <= frame.time <= time.time()
        if len(found) in (10, 20):
            server.kill()
            server.start()
        if len(found) == 30:
            break
    assert None not in found and found == sorted(set(found)) and set(found) <= set(sent_numbers(server))
    part = source.parts[0]
    assert part.reconnects == 2 and len(server.sent) == 3
    said = capsys.readouterr().err
    assert said.count(f"{server.address}: connected again\n") == 2 and "; again in 0." in said


def test_after_a_slow_consumer_the_latest_comes_first(server, opened):
    """Mistakes: a lag that never ends; the frames in between handed on."""
    source = opened(server.address)
    frames, part = iter(source), source.parts[0]
    first = shown(next(frames))
    read = part.read
    deadline = time.monotonic() + LONG
    while part.read < read + 25 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    frame = next(frames)
    assert shown(frame) >= first + 25 and frame.index >= read + 24
    assert part.dropped >= 23


@pytest.mark.parametrize("moment", ["from the beginning", "later"])
def test_a_stream_that_says_nothing_is_lost_and_asked_again(server, opened, quick, moment, monkeypatch):
    """Mistakes: a read of libav that nothing interrupts, when it opens a stream or later."""
    from hpdval_edge.sources import streams

    monkeypatch.setattr(streams, "OPEN_TIMEOUT", 1.0)
    server.silent = moment == "from the beginning"
    source = opened(server.address, stall=1.0)
    if moment == "later":
        frames = iter(source)
        next(frames)
        server.frozen = True
    else:
        frames = iter(source)
    # The third connection is let through.
    said = []
    monkeypatch.setattr(live, "say", lambda line: (said.append(line), setattr(server, "silent", False)))
    thaw = threading.Event()

    def thaw_when_lost():
        while not any("again in" in line for line in said) and not thaw.wait(0.01):
            pass
        server.frozen = False

    helper = threading.Thread(target=thaw_when_lost)
    helper.start()
    before = source.parts[0].reconnects
    try:
        for _ in frames:
            if any("again in" in line for line in said):
                break
        next(frames)
    finally:
        thaw.set()
        helper.join()
    assert any("no answer in 1 s" in line or "no data for 1 s" in line for line in said)
    assert source.parts[0].reconnects == before + (moment == "later")


def test_close_does_not_wait_for_a_silent_stream(server, opened):
    """Mistakes: Ctrl-C that waits for the time-out of a read."""
    server.silent = True
    source = opened(server.address, duration=0.2)
    assert list(source) == []
    source.close()
    # The thread is still in libav; killing the server lets it go, and the fixture sees it end.
    assert source.parts[0]._thread.daemon
    server.kill()


def test_credentials_open_the_door_and_are_not_printed(opened, capsys):
    """Mistakes: a password in names, in lines on stderr, in errors."""
    for kind in ("HttpServer", "RtspServer"):
        server = STREAM_SERVER[kind](rate=50, password="pa55w0rd")
        try:
            source = opened(server.address.replace("//", "//user:pa55w0rd@"), retries=0)
            frame = next(iter(source))
            assert frame.source == server.address.replace("//", "//***@") and shown(frame)
            server.kill()
            with pytest.raises(Lost) as caught:
                list(source)
            assert "pa55w0rd" not in str(caught.value) + source.summaries()[0]
        finally:
            server.kill()
    said = capsys.readouterr().err
    assert "***@" in said and "pa55w0rd" not in said


@pytest.mark.parametrize("kind", ["HttpServer", "RtspServer"])
@pytest.mark.parametrize("given", ["", "user:wrong@"])
def test_a_wrong_password_is_one_sentence(kind, given, opened):
    """Planted mistake: an example of another protocol."""
    server = STREAM_SERVER[kind](password="right")
    example = server.address.replace("//", "//user:password@").removesuffix("/live")
    try:
        with pytest.raises(UsageError, match=f"wants a name and a password, give them as in {example}"):
            next(iter(opened(server.address.replace("//", f"//{given}"))))
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        ("403 Forbidden", UsageError, "the server refuses this user"),
        ("404 Not Found", UsageError, "is there but has no such stream"),
        ("500 Internal Server Error", Lost, "cannot be reached"),
    ],
)
def test_refusals_are_explained(server, opened, status, error, words):
    server.status = status
    with pytest.raises(error, match=words):
        next(iter(opened(server.address, retries=0)))


def test_a_port_where_nobody_listens(server, opened):
    server.kill()
    with pytest.raises(Lost, match=f"127.0.0.1:{server.port} refuses connections; check that the camera"):
        next(iter(opened(server.address, retries=0)))


def test_what_does_not_speak_rtsp_may_be_a_camera_that_starts(opened):
    """Mistakes: the program ended by a camera that takes connections before it can serve them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].close()).start()
        address = f"rtsp://127.0.0.1:{listener.getsockname()[1]}/1"
        with pytest.raises(Lost, match="does not answer as a server of RTSP"):
            next(iter(opened(address, retries=0)))


def test_a_page_is_no_stream(opened):
    import http.server

    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as page:
        thread = threading.Thread(target=page.serve_forever)
        thread.start()
        page.RequestHandlerClass.log_message = lambda *arguments: None
        try:
            with pytest.raises(BadData, match="what the server sends is no video"):
                next(iter(opened(f"http://127.0.0.1:{page.server_port}/")))
        finally:
            page.shutdown()
            thread.join()


@pytest.mark.parametrize("argument", ["camera:97", "/dev/video97"])
def test_a_camera_that_is_not_there(argument):
    with pytest.raises(MissingDependency, match=r"/dev/video97: there is no such camera; `ls /dev/video\*` shows"):
        next(iter(open_source([argument], SourceOptions())))


def test_a_camera_without_permission_names_the_group(monkeypatch):
    from hpdval_edge.sources import streams

    monkeypatch.setattr(streams.os.path, "exists", lambda path: True)
    monkeypatch.setattr(streams.os, "access", lambda path, mode: False)
    with pytest.raises(MissingDependency, match=r"no permission; run: sudo usermod -aG video"):
        next(iter(open_source(["camera:0"], SourceOptions())))


@pytest.fixture
def interruptible():
    """Children get Ctrl-C also where the tests themselves run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_infer_on_a_stream_ends_with_a_signal_and_keeps_what_it_wrote(tiny_bundle, tmp_path, interruptible, number):
    """Mistakes: a Ctrl-C that hangs in the reading thread, a traceback, no summary; a service that is cut off."""
    server = STREAM_SERVER["HttpServer"](rate=20)
    out = tmp_path / "labels.jsonl"
    command = [sys.executable, "-m", "hpdval_edge", "infer", server.address, "--model", str(tiny_bundle)]
    try:
        with out.open("w") as file:
            process = subprocess.Popen(
                [*command, "--format", "jsonl"], stdout=file, stderr=subprocess.PIPE, text=True, cwd=tmp_path
            )
            deadline = time.monotonic() + LONG
            while out.read_text().count("\n") < 3 and time.monotonic() < deadline and process.poll() is None:
                threading.Event().wait(0.05)
            process.send_signal(number)
            said = process.communicate(timeout=LONG)[1]
    finally:
        server.kill()
    assert process.returncode == 130, said
    assert "frames read" in said and "interrupted" in said and "Traceback" not in said
    assert out.read_text().count("\n") >= 3 and out.read_text().endswith("\n")
