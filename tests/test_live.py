"""Cameras and streams: scripted connections for each rule, and real local streams that are killed, silent or locked."""

import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hpdval_edge.errors import BadData, MissingDependency, UsageError
from hpdval_edge.sources import live
from hpdval_edge.sources.live import LiveSource, Lost
from hpdval_edge.sources.open import open_source
from hpdval_edge.sources.options import SourceOptions

pytest.importorskip("av", reason="av is not installed; the extra [video] brings it")
STREAM_SERVER = runpy.run_path(str(Path(__file__).with_name("stream_server.py")))
number_of = STREAM_SERVER["number_of"]
# Nothing takes as long as this; what does not come in time fails its test instead of hanging it.
LONG = 60.0


class Script:
    """A connection that plays one list a time: numbers are frames, None is nothing yet, an error is raised, and what
    is callable is called.
    """

    def __init__(self, *connections):
        self.connections = list(connections)
        self.opened = self.closed = 0

    def __call__(self):
        self.opened += 1
        try:
            for step in self.connections.pop(0) if self.connections else [Lost("gone.")]:
                if isinstance(step, Exception):
                    raise step
                if callable(step):
                    step()
                elif step is None:
                    yield None
                else:
                    yield lambda size, step=step: np.full((1, 1, 3), step, np.uint8)
        finally:
            self.closed += 1


@pytest.fixture
def waits(monkeypatch):
    """Waiting takes no time and is noted; jitter is none."""
    noted = []
    monkeypatch.setattr(live.random, "uniform", lambda low, high: 1.0)

    def source(script, **options):
        made = LiveSource("door", script, SourceOptions(**options))
        made._stop.wait = noted.append
        return made

    source.noted = noted
    return source


def test_of_frames_that_nobody_takes_the_latest_alone_is_kept(waits):
    """Mistakes: a queue that lags, the oldest kept, dropped frames not counted."""
    come, taken = threading.Event(), threading.Event()
    script = Script([0, lambda: taken.wait(LONG), 1, 2, 3, 4, come.set, lambda: taken.wait(LONG)])
    source = waits(script, retries=0)
    frames = iter(source)
    first = next(frames)
    assert (first.index, first.name) == (0, "door#0")
    taken.set()
    assert come.wait(LONG)
    frame = next(frames)
    assert frame.index == 4 and frame.read(8)[0, 0, 0] == 4
    with pytest.raises(Lost, match=r"door: the stream ended"):
        next(frames)
    assert source.summary() == "door: 5 frames read, 3 dropped, 0 reconnects"
    source.close()


def test_a_lost_connection_is_made_again_and_indexes_go_on(waits, capsys):
    """Mistakes: a loss told to nobody, indexes from 0 again, a connection left open, waits that do not grow or begin
    anew after a frame.
    """
    steps = threading.Semaphore(0)

    def wait():
        assert steps.acquire(timeout=LONG)

    gone = Lost("door: it went away.")
    script = Script([0, wait], [gone], [gone], [gone], [1, wait], [2, wait])
    source = waits(script, retries=4)
    frames = iter(source)
    indexes = []
    for _ in range(3):
        indexes.append(next(frames).index)
        steps.release()
    assert indexes == [0, 1, 2]
    with pytest.raises(Lost):
        next(frames)
    source.close()
    assert source.reconnects == 2 and script.opened == script.closed == 10
    assert waits.noted == [0.5, 1, 2, 4, 0.5, 0.5, 1, 2, 4]
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == [
        "door: connected",
        "door: the stream ended; again in 0.5 s",
        "door: it went away; again in 1.0 s",
    ]
    assert said.count("door: connected again") == 2


def test_waits_are_bounded(waits):
    source = waits(Script(), retries=12)
    with pytest.raises(Lost):
        next(iter(source))
    assert waits.noted[-3:] == [30, 30, 30]


def test_jitter_is_around_the_wait(monkeypatch):
    """Mistakes: all boards of a site that come back at the same moment."""
    asked = []
    monkeypatch.setattr(live.random, "uniform", lambda low, high: asked.append((low, high)) or 1.0)
    source = LiveSource("door", Script(), SourceOptions(retries=1))
    source._stop.wait = lambda seconds: None
    with pytest.raises(Lost):
        next(iter(source))
    assert asked == [(0.75, 1.25)]


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_are_counted(waits, retries):
    """Mistakes: one attempt too many, endless attempts."""
    script = Script()
    with pytest.raises(Lost, match="gone"):
        next(iter(waits(script, retries=retries)))
    assert script.opened == retries + 1


def test_what_waiting_would_not_mend_ends_it_before_the_first_frame_only(waits):
    """Mistakes: a wrong password asked for for ever; a camera that is being restarted given up."""
    wrong = UsageError("door: wrong password.")
    with pytest.raises(UsageError, match="wrong password"):
        next(iter(waits(Script([wrong]), retries=3)))
    script = Script([0], [wrong], [1])
    source = waits(script, retries=2)
    with pytest.raises(Lost):
        list(source)
    assert source.read == 2 and script.opened == 5


def test_any_error_of_the_thread_is_raised_where_frames_are_taken(waits):
    """Mistakes: a thread that dies in silence while the program waits for ever."""
    with pytest.raises(ZeroDivisionError):
        next(iter(waits(Script([ZeroDivisionError()]))))


def test_a_connection_that_gives_no_frames_is_lost(waits, monkeypatch):
    """Mistakes: packets without pictures taken for life."""
    clock = iter(range(1000))
    monkeypatch.setattr(live.time, "monotonic", lambda: next(clock))
    script = Script([0, *[None] * 500])
    with pytest.raises(Lost, match="door: no frame for 10 s"):
        list(waits(script, retries=0, stall=10))


def test_every_and_fps_choose_before_the_latest_is_kept(waits):
    """Mistakes: of every 2nd frame taken, none where a slow consumer meets odd ones only; thinned called dropped."""
    source = waits(Script([*range(7)]), every=3, retries=0)
    with pytest.raises(Lost):
        list(source)
    assert source.dropped in (0, 1, 2) and source.read == 7
    taken = threading.Event()
    source = waits(Script([0, 1, 2, 3, 4, lambda: taken.wait(LONG)]), every=3, retries=0)
    frames = iter(source)
    indexes = [next(frames).index]
    if indexes == [0]:
        indexes.append(next(frames).index)
    assert indexes[-1] == 3
    taken.set()
    source.close()


def test_duration_and_close_end_the_frames(waits):
    silent = threading.Event()
    source = waits(Script([0, lambda: silent.wait(LONG)]), duration=0.3)
    assert [frame.index for frame in source] == [0]
    silent.set()
    source.close()
    assert not source._thread.is_alive()


@pytest.fixture(params=["HttpServer", "RtspServer"])
def server(request):
    made = STREAM_SERVER[request.param](rate=50)
    yield made
    made.kill()


@pytest.fixture
def opened():
    """Open sources that are closed at the end, and whose threads must be gone then."""
    sources = []

    def open_(address, **options):
        sources.append(open_source([address], SourceOptions(**{"duration": LONG, "stall": 20.0, **options})))
        return sources[-1]

    yield open_
    for source in sources:
        source.close()
        thread = source.parts[0]._thread
        thread.join(LONG)
        assert not thread.is_alive()


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
    server = STREAM_SERVER[kind](password="right")
    try:
        with pytest.raises(UsageError, match="wants a name and a password, give them as in rtsp://user:password@host"):
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
