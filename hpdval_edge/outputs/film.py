"""Frames as an MP4 file that plays at any moment, also after a crash: every two seconds are a part of their own."""

from fractions import Fraction
from pathlib import Path

from PIL import Image

from hpdval_edge.atomic import append_whole, disk_errors
from hpdval_edge.errors import MissingDependency

# Ticks a second, few enough for every encoder. Frames without a time are shown at this rate.
TICKS = 60_000
RATE = 25
SECONDS_A_PART = 2.0
ENCODERS = ("libx264", "libopenh264", "mpeg4")
FASTEST = {"libx264": {"preset": "veryfast", "tune": "zerolatency", "crf": "23"}}


class WholeParts:
    """The file that PyAV writes to, without going back: each part of a fragmented MP4 goes to disk at once.

    A part is what ends with a box of picture data (mdat), or the header (moov); what is not whole at the end is left
    out, since players take it for damage.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb", buffering=0)
        self.pending = bytearray()
        # Whole boxes at the beginning of ``pending``, bytes.
        self.whole = 0

    def write(self, data: bytes) -> int:
        """Take bytes, and write the parts that are whole with them."""
        self.pending += data
        while (end := self._box_end()) is not None:
            kind, self.whole = bytes(self.pending[self.whole + 4 : self.whole + 8]), end
            if kind in (b"moov", b"mdat", b"mfra"):
                part = bytes(self.pending[:end])
                del self.pending[:end]
                self.whole = 0
                append_whole(self.file.fileno(), part)
        return len(data)

    def _box_end(self) -> int | None:
        """Where the first box after the whole ones ends; None where it has not come yet."""
        head = self.pending[self.whole : self.whole + 16]
        if len(head) < 8:
            return None
        size = int.from_bytes(head[:4], "big")
        # 1 stands for a size in 8 bytes behind the name.
        size = int.from_bytes(head[8:16], "big") if size == 1 else size
        end = self.whole + max(size, 8)
        return end if len(self.pending) >= end else None

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class Film:
    """A film in H.264, or MPEG-4 where PyAV cannot encode that, of the size of its first frame, made even.

    PyAV fits frames of another size to it.

    Raises:
        MissingDependency: PyAV is not installed, it has no encoder, the disk is full or the place cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            import av
        except ImportError as error:
            raise MissingDependency(
                f"av is not installed, which writes {path}; run: pip install 'hpdval-edge[video]'."
            ) from error
        self.av = av
        self.path = path
        encoder = next((name for name in ENCODERS if name in av.codecs_available), None)
        if encoder is None:
            raise MissingDependency(f"this PyAV encodes none of {', '.join(ENCODERS)}, which {path} needs.")
        self.encoder = encoder
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parts = WholeParts(path)
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        self.container = av.open(self.parts, "w", format="mp4", options=options)
        self.stream = None
        self.start: float | None = None
        self.last = -1
        self.last_key = float("-inf")

    def add(self, picture: Image.Image, index: int, time: float | None) -> None:
        """Encode one RGB frame, shown ``time`` seconds after the first one's; without a time, by its index."""
        seconds = index / RATE if time is None else time
        if self.stream is None:
            self.start = seconds
            self.stream = self._new_stream(picture.width - picture.width % 2, picture.height - picture.height % 2)
        frame = self.av.VideoFrame.from_image(picture)
        # A clock that was set back does not stop the film.
        self.last = max(self.last + 1, round((seconds - self.start) * TICKS))
        frame.pts, frame.time_base = self.last, Fraction(1, TICKS)
        if self.last - self.last_key >= SECONDS_A_PART * TICKS:
            frame.pict_type, self.last_key = self.av.video.frame.PictureType.I, self.last
        with disk_errors(self.path):
            self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder holds; a film that lost its disk ends where it did."""
        try:
            with disk_errors(self.path):
                if self.stream is not None:
                    self.container.mux(self.stream.encode(None))
                self.container.close()
        finally:
            self.parts.close()

    def _new_stream(self, width: int, height: int):
        stream = self.container.add_stream(self.encoder, rate=RATE, options=FASTEST.get(self.encoder, {}))
        stream.width, stream.height, stream.pix_fmt = max(2, width), max(2, height), "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        # Key frames come by time, as frames come at any pace.
        stream.codec_context.gop_size = 10_000
        return stream
