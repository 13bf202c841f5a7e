"""Live streams for tests and the soak benchmark: numbered pictures over HTTP (multipart JPEG) or RTSP (H.264 over TCP).

Loaded with runpy, since tests cannot import each other. Numbers go on while nobody listens, as a camera's do.
"""

import base64
import contextlib
import io
import socket
import threading
import time
from functools import lru_cache

import av
import numpy as np
from PIL import Image

ROWS, COLUMNS = 4, 8
CELL = 12


def picture(number: int) -> np.ndarray:
    """uint8 [48, 96, 3]: 24 bits of ``number`` and 8 that check them, as black and white squares."""
    bits = number | _check(number) << 24
    cells = np.array([bits >> place & 1 for place in range(ROWS * COLUMNS)], np.uint8).reshape(ROWS, COLUMNS)
    return np.repeat(np.kron(20 + 215 * cells, np.ones((CELL, CELL), np.uint8))[..., None], 3, axis=2)


def number_of(pixels: np.ndarray) -> int | None:
    """The number of a picture of any size, uint8 [H, W, 3]; None where it is not one, or no longer."""
    height, width = np.array(pixels.shape[:2]) / (ROWS, COLUMNS)
    bits = 0
    for place in range(ROWS * COLUMNS):
        row, column = divmod(place, COLUMNS)
        top, left = int((row + 0.3) * height), int((column + 0.3) * width)
        bits |= int(pixels[top : int((row + 0.7) * height), left : int((column + 0.7) * width)].mean() > 127) << place
    number = bits & 0xFFFFFF
    return number if _check(number) == bits >> 24 else None


def _check(number: int) -> int:
    """8 bits; of no uniform picture right."""
    return number * 157 % 251 ^ 0x5A


class LiveServer:
    """Serves numbered pictures at ``rate`` a second to everyone who asks, until it is killed.

    Subclasses say in ``talk`` what is spoken on a connection. A killed one comes back on its port with ``start``.

    Attributes:
        sent: of each connection, in order, the numbers sent and when (time.time()).
        silent: connections are taken and nothing is said.
        frozen: nothing more is sent, and no connection closed.
        password: what clients must give with the name ``user``; None lets everyone in.
        status: of HTTP, that is answered instead of pictures where it is not 200.
    """

    scheme = ""

    def __init__(self, rate: float = 50, password: str | None = None) -> None:
        self.rate = rate
        self.password = password
        self.silent = self.frozen = False
        self.status = "200 OK"
        self.sent: list[list[tuple[int, float]]] = []
        self.killed = threading.Event()
        self.began = time.monotonic()
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/live"

    def start(self) -> None:
        """Listen, on the port of before."""
        self.killed = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
        self.port = self.listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept, args=(self.listener, self.killed))]
        self.threads[0].start()

    def kill(self) -> None:
        """Break all connections and refuse new ones."""
        self.killed.set()
        for broken in (self.listener, *self.connections):
            with contextlib.suppress(OSError):
                broken.shutdown(socket.SHUT_RDWR)
            broken.close()
        for thread in self.threads:
            thread.join()

    def numbers(self) -> "contextlib.Iterator[int]":
        """The number of the picture that is due, when it is due; those that nobody waited for are left out."""
        while not self.killed.is_set():
            number = int((time.monotonic() - self.began) * self.rate) + 1
            self.killed.wait(self.began + number / self.rate - time.monotonic())
            if not self.frozen:
                yield number

    def _accept(self, listener: socket.socket, killed: threading.Event) -> None:
        while not killed.is_set():
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            self.connections.append(connection)
            self.threads.append(threading.Thread(target=self._serve, args=(connection, killed)))
            self.threads[-1].start()

    def _serve(self, connection: socket.socket, killed: threading.Event) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as requests:
            if self.silent:
                killed.wait()
                return
            self.talk(connection, requests)

    def allows(self, headers: dict[str, str]) -> bool:
        wanted = f"user:{self.password}".encode()
        return self.password is None or headers.get("authorization") == f"Basic {base64.b64encode(wanted).decode()}"

    def talk(self, connection: socket.socket, requests: io.BufferedReader) -> None:
        raise NotImplementedError


def has_left(connection: socket.socket) -> bool:
    """Whether the client has closed its side; what is sent then is received by nobody and raises nothing at first."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def request(lines: io.BufferedReader) -> tuple[str, dict[str, str]]:
    """The first line and the headers of a request."""
    first = lines.readline().decode().strip()
    if not first:
        raise ValueError("the client has gone")
    headers = {}
    while line := lines.readline().decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return first, headers


class HttpServer(LiveServer):
    """Multipart JPEG, as many network cameras speak it."""

    scheme = "http"

    def __init__(self, rate: float = 50, password: str | None = None, *, cycle: int = 1 << 24, scale: int = 1) -> None:
        """cycle: how many pictures there are, sent again and again. scale: how many times their size."""
        self.cycle, self.scale = cycle, scale
        self.jpeg = lru_cache(64)(self._jpeg)
        super().__init__(rate, password)

    def _jpeg(self, number: int) -> bytes:
        pixels = picture(number).repeat(self.scale, 0).repeat(self.scale, 1)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        return file.getvalue()

    def talk(self, connection, requests):
        _, headers = request(requests)
        if not self.allows(headers):
            connection.sendall(b'HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm="camera"\r\n\r\n')
            return
        if self.status != "200 OK":
            connection.sendall(f"HTTP/1.0 {self.status}\r\n\r\n".encode())
            return
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=part\r\n\r\n")
        self.sent.append([])
        for number in self.numbers():
            if has_left(connection):
                return
            jpeg = self.jpeg(number % self.cycle)
            head = b"--part\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            self.sent[-1].append((number, time.time()))
            connection.sendall(head + jpeg + b"\r\n")


SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=numbers
c=IN IP4 0.0.0.0
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
a=control:track
"""


class RtspServer(LiveServer):
    """H.264 in RTP packets that libav makes, interleaved with the requests on one TCP connection."""

    scheme = "rtsp"

    def talk(self, connection, requests):
        while True:
            first, headers = request(requests)
            method, answer, body = first.split()[0], "200 OK", ""
            extra = "Session: 1\r\n"
            if not self.allows(headers) and method != "OPTIONS":
                answer, extra = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
            elif self.status != "200 OK" and method == "DESCRIBE":
                answer = self.status
            elif method == "DESCRIBE":
                body, extra = SDP.replace("\n", "\r\n"), "Content-Type: application/sdp\r\n"
            elif method == "SETUP":
                extra += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            elif method == "OPTIONS":
                extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            head = f"RTSP/1.0 {answer}\r\nCSeq: {headers['cseq']}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + body).encode())
            if method == "PLAY" and answer == "200 OK":
                self.play(connection)
                return

    def play(self, connection):
        self.sent.append([])
        options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10"}
        file = Interleaved(connection)
        with av.open(file, "w", format="rtp", options={"packetsize": "1200"}) as packets:
            stream = packets.add_stream("libx264", rate=round(self.rate), options=options)
            stream.width, stream.height, stream.pix_fmt = COLUMNS * CELL, ROWS * CELL, "yuv420p"
            for number in self.numbers():
                if file.broken or has_left(connection):
                    return
                frame = av.VideoFrame.from_ndarray(picture(number), "rgb24")
                frame.pts = number
                self.sent[-1].append((number, time.time()))
                packets.mux(stream.encode(frame))


class Interleaved:
    """A file to which libav writes RTP and RTCP packets, one at a time; they go out as RTSP wants them."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.broken = False

    def write(self, packet: bytes) -> int:
        # RTCP's packet types are 200 to 204.
        channel = 1 if 200 <= packet[1] <= 204 else 0
        try:
            self.connection.sendall(b"$" + bytes([channel]) + len(packet).to_bytes(2, "big") + bytes(packet))
        except OSError:
            self.broken = True
        return len(packet)
