"""Films: real encoded files whose frames carry their number as a pattern of squares (stream_server.py)."""

import contextlib
import gc
import http.server
import runpy
import socket
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.sources.options import SourceOptions

av = pytest.importorskip("av", reason="av is not installed; the extra [video] brings it")

from hpdval_edge.sources.decoding import shrunk, upright  # noqa: E402
from hpdval_edge.sources.films import Film  # noqa: E402

STREAM_SERVER = runpy.run_path(str(Path(__file__).with_name("stream_server.py")))
picture, number_of = STREAM_SERVER["picture"], STREAM_SERVER["number_of"]
COUNT = 30


def encode(path, pictures, codec="libx264", pix_fmt="yuv420p", options=None, milliseconds=None):
    """Write pictures, uint8 [H, W, 3], at 10 a second or at the times given; B-frames where the codec has them."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if milliseconds:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("film") / "film.mp4", [picture(i) for i in range(COUNT)])


def frames_of(path, **options):
    film = Film(str(path), SourceOptions(**options))
    return film, list(film)


def numbers(frames, size=8):
    return [number_of(frame.read(size)) for frame in frames]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("film.mp4", "libx264", "yuv420p"),
        ("ten-bit.mkv", "libx264", "yuv420p10le"),
        ("film.avi", "mpeg4", "yuv420p"),
        ("jpeg.avi", "mjpeg", "yuvj422p"),
        ("film.ts", "libx264", "yuv420p"),
        ("bare.h264", "libx264", "yuv420p"),
        ("deep.mkv", "ffv1", "rgb48le"),
        ("grey.mkv", "ffv1", "gray"),
        ("like a pattern %02d.mkv", "ffv1", "yuv444p16le"),
    ],
)
def test_every_frame_in_the_order_in_which_it_is_shown(tmp_path, name, codec, pix_fmt):
    """Mistakes: frames in the order of the file (B-frames), the frames that decoders hold back at the end left out,
    pixel formats taken for another.
    """
    path = encode(tmp_path / name, [picture(i) for i in range(COUNT)], codec, pix_fmt)
    film, frames = frames_of(path)
    assert numbers(frames) == list(range(COUNT)) == [frame.index for frame in frames]
    assert film.summary() == f"{path}: 30 frames read"
    rate = 25 if name.endswith("h264") else 10
    assert [frame.time for frame in frames] == pytest.approx([i / rate for i in range(COUNT)])
    assert frames[3].name == f"{path}#3"


def test_a_name_with_a_colon_is_no_protocol(tmp_path, monkeypatch):
    """Mistakes: ``rtp:1.mkv`` looked for on the network."""
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "rtp:1.mkv", [picture(5)], "ffv1")
    assert numbers(frames_of("rtp:1.mkv")[1]) == [5]


def test_times_are_those_of_the_film_also_where_its_rate_varies(tmp_path):
    """Mistakes: index / rate for the time; timestamps that start elsewhere than at 0 kept as they are."""
    when = [1400, 1440, 1480, 1900, 2900, 2940, 4400]
    path = encode(tmp_path / "varies.mkv", [picture(i) for i in range(7)], milliseconds=when)
    _, frames = frames_of(path)
    assert [frame.time for frame in frames] == pytest.approx([(each - 1400) / 1000 for each in when])
    assert numbers(frames) == list(range(7))


def test_every_fps_and_duration(mp4):
    """Mistakes: fps by the clock, two frames of one slot, a slot missed because times are rounded, both options read as
    one, the frame at the end of the duration taken.
    """
    assert numbers(frames_of(mp4, every=7)[1]) == [0, 7, 14, 21, 28]
    assert numbers(frames_of(mp4, fps=5)[1]) == list(range(0, 30, 2))
    assert len(frames_of(mp4, fps=3)[1]) == 9
    assert numbers(frames_of(mp4, fps=100)[1]) == list(range(30))
    assert numbers(frames_of(mp4, every=3, fps=5)[1]) == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    film, frames = frames_of(mp4, duration=0.5)
    assert numbers(frames) == [0, 1, 2, 3, 4] and film.read == 5


def test_colours_are_right(tmp_path):
    """Mistakes: red for blue, full range for studio range."""
    halves = np.zeros((48, 64, 3), np.uint8)
    halves[:, :32] = 250, 20, 20
    halves[:, 32:] = 20, 20, 250
    pixels = frames_of(encode(tmp_path / "colour.mp4", [halves] * 2))[1][1].read(100)
    assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert np.abs(pixels[20, 10].astype(int) - (250, 20, 20)).max() < 12
    assert np.abs(pixels[20, 50].astype(int) - (20, 20, 250)).max() < 12


def test_large_frames_are_made_smaller_but_not_below_twice_the_side(tmp_path, mp4):
    """Mistakes: below twice the side, another shape, small frames made larger."""
    assert shrunk(1920, 1080, 448) == (797, 448)
    assert shrunk(1081, 1920, 448) == (448, 796)
    assert shrunk(400, 4000, 448) == (400, 4000)
    wide = picture(77).repeat(3, 0).repeat(5, 1)
    (frame,) = frames_of(encode(tmp_path / "wide.mkv", [wide], "ffv1", "yuv420p"))[1]
    pixels = frame.read(32)
    assert pixels.shape == (64, 214, 3) and number_of(pixels) == 77
    assert frames_of(mp4)[1][0].read(224).shape == (48, 96, 3)


MATRICES = {
    # As phones write them: what a b u c d v x y w make of a picture, and what numpy makes of it.
    "upright": ((1, 0, 0, 1), lambda shown: shown),
    "a quarter": ((0, 1, -1, 0), lambda shown: np.rot90(shown, -1)),
    "half": ((-1, 0, 0, -1), lambda shown: np.rot90(shown, 2)),
    "three quarters": ((0, -1, 1, 0), lambda shown: np.rot90(shown)),
    "mirrored": ((-1, 0, 0, 1), lambda shown: shown[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda shown: shown[::-1]),
    "mirrored, a quarter": ((0, 1, 1, 0), lambda shown: shown.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_rotation_is_applied(mp4, tmp_path, name):
    """Mistakes: the rotation of phones' films ignored, or turned the other way round."""
    (a, b, c, d), turn = MATRICES[name]
    content = bytearray(mp4.read_bytes())
    # The matrix of the track's header: 9 big-endian numbers, 40 bytes behind the box's version.
    at = content.index(b"tkhd") + 4 + 40
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    content[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    (tmp_path / "turned.mp4").write_bytes(content)
    turned = frames_of(tmp_path / "turned.mp4")[1][9].read(100)
    stored = frames_of(mp4)[1][9].read(100)
    np.testing.assert_array_equal(turned, turn(stored))
    assert turned.flags.c_contiguous


def test_frames_that_were_read_do_not_wait_for_the_garbage_collector(mp4):
    """Mistake: frame.side_data, which holds its frame; each film and reconnect then kept its pixels for an hour."""
    gc.collect()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        for frame in frames_of(mp4)[1]:
            frame.read(32)
        gc.collect()
        left = [kept for kept in gc.garbage if type(kept).__module__.startswith("av.")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not left


def test_angles_that_are_no_quarter_leave_the_picture_as_it_is():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert upright(pixels, (1, 1, -1, 1)) is pixels


def test_damaged_packets_are_skipped_and_counted(tmp_path):
    """Mistakes: a film given up at its first damage, damage not counted, frames around it renumbered."""
    path = encode(tmp_path / "damaged.avi", [picture(i) for i in range(COUNT)], "mjpeg", "yuvj422p")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as film:
        spans = [(packet.pos, packet.size) for packet in film.demux(video=0) if packet.size]
    for start, size in spans[10:13]:
        content[start : start + size] = b"\x55" * size
    path.write_bytes(content)
    film, frames = frames_of(path)
    assert numbers(frames) == [*range(10), *range(13, 30)]
    assert [frame.time for frame in frames][9:11] == pytest.approx([0.9, 1.3])
    assert film.damaged == 3 and film.summary() == f"{path}: 27 frames read, 3 damaged packets skipped"


def refusal(path):
    *_, last = Film(str(path), SourceOptions())
    with pytest.raises(BadData) as caught:
        last.read(8)
    return str(caught.value)


def test_what_is_no_film_is_a_frame_that_cannot_be_read(tmp_path, mp4):
    """Mistakes: an exception of PyAV, a film without pictures taken for an empty one, silence."""
    (tmp_path / "text.mp4").write_text("no film at all, but some words\n" * 100)
    (tmp_path / "empty.mp4").touch()
    for name in ("text.mp4", "empty.mp4"):
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: not a video that can be read (")
    with av.open(str(tmp_path / "sound.mp4"), "w") as film:
        stream = film.add_stream("aac", rate=48000, layout="mono")
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate = 48000
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    assert refusal(tmp_path / "sound.mp4") == f"{tmp_path / 'sound.mp4'}: holds no video track"


@pytest.mark.parametrize("left", [20, 40, 1000, -100])
def test_a_film_without_its_index_is_incomplete(tmp_path, mp4, left):
    """In the first box, behind it, in the pictures, in the index. Mistake: "no video in a format that is known"."""
    (tmp_path / "cut.mp4").write_bytes(mp4.read_bytes()[:left])
    assert refusal(tmp_path / "cut.mp4") == (
        f"{tmp_path / 'cut.mp4'}: the file is incomplete, as a copy or a recording that was cut off; copy or record it "
        "again"
    )


@pytest.fixture
def free_port():
    """A port where nobody listens, as long as the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_film_on_a_server_that_is_not_there(run_hpedge, tiny_bundle, free_port, mp4):
    """As a stream that is refused. Mistakes: "not a video"; exit code 3; the password told."""
    film = f"http://user:secret@127.0.0.1:{free_port}/a.mp4"
    code, _, err = run_hpedge("infer", mp4, film, "--max-frames", COUNT + 1, "--model", tiny_bundle)
    assert (code, "secret" in err) == (4, False)
    assert f"hpedge: http://***@127.0.0.1:{free_port}/a.mp4: 127.0.0.1:{free_port} refuses connections; check" in err


def test_films_on_a_server(tmp_path):
    """Mistakes: the error of an address taken for a film that is damaged; a page taken for what ends all films."""
    film = encode(tmp_path / "film.mkv", [picture(i) for i in range(COUNT)], "ffv1").read_bytes()
    contents = {"/film.mkv": film, "/page.mp4": b"no film " * 375}

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = contents.get(self.path)
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(UsageError, match="is there but has no such stream"):
                list(Film(f"{address}/absent.mp4", SourceOptions()))
            assert numbers(frames_of(f"{address}/film.mkv")[1]) == list(range(COUNT))
            page = f"{address}/page.mp4"
            assert refusal(page) == f"{page}: what the server sends is no video in a format that is known"
        finally:
            server.shutdown()
            thread.join()


def test_a_film_cut_off_gives_what_there_is(tmp_path):
    path = encode(tmp_path / "cut.mkv", [picture(i) for i in range(COUNT)], options={"g": "5"})
    path.write_bytes(path.read_bytes()[:-700])
    frames = [frame for frame in frames_of(path)[1] if frame.index is not None]
    found = numbers(frames)
    assert 5 < len(found) < COUNT and found == list(range(len(found)))


def test_infer_names_frames_and_goes_on_behind_a_bad_film(run_hpedge, tiny, tiny_bundle, mp4, tmp_path):
    """Mistakes: the rest left out behind a bad film, a bad film not told, pictures before films."""
    (tmp_path / "bad.mp4").write_text("no film")
    arguments = (tmp_path / "bad.mp4", mp4, tiny / "test" / "00.png", "--every", "10", "--model", tiny_bundle)
    code, out, err = run_hpedge("infer", *arguments, "--max-frames", "4")
    shown = [line.split("  ")[0] for line in out.splitlines()]
    assert shown == [f"{mp4}#0", f"{mp4}#10", f"{mp4}#20"] and code == 3
    assert f"hpedge: {tmp_path / 'bad.mp4'}: not a video" in err and "3 of 4 pictures" in err
    code, out, err = run_hpedge("infer", *arguments)
    assert [line.split("  ")[0] for line in out.splitlines()] == [*shown, f"{tiny / 'test' / '00.png'}"]
    assert f"{mp4}: 30 frames read\n" in err
