"""Video files, and those that a web server gives; needs the extra [video]."""

import os
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from hpdval_edge.errors import BadData
from hpdval_edge.sources.addresses import masked, scheme
from hpdval_edge.sources.decoding import Decoded, seconds
from hpdval_edge.sources.explain import reason
from hpdval_edge.sources.frame import Frame, unreadable
from hpdval_edge.sources.options import SourceOptions, Thinning
from hpdval_edge.sources.streams import OPEN_TIMEOUT, open_address

# So many packets in a row that cannot be read end a film: nothing would come of going on.
_MOST_UNREADABLE = 100


class Film:
    """The frames of a film in the order in which they are shown, upright.

    Packets that are damaged are skipped and counted. A film that cannot be opened, or not be read to its end, is a
    frame that cannot be read. A server that cannot be reached, or has no such film, is raised as for a stream.

    Args:
        address: a path, or an http(s) address.
    """

    live = False

    def __init__(self, address: str, options: SourceOptions) -> None:
        self.address = address
        self.name = masked(address)
        self.options = options
        self.read = 0
        self.damaged = 0

    def __iter__(self) -> Iterator[Frame]:
        try:
            container = self._open()
        except BadData as error:
            yield unreadable(self.name, str(error).removeprefix(f"{self.name}: ").rstrip("."))
            return
        with container:
            if not container.streams.video:
                yield unreadable(self.name, "holds no video track")
                return
            yield from self._frames(container, container.streams.video[0])

    def _open(self) -> InputContainer:
        if scheme(self.address):
            return open_address(self.address, self.options.stall, {})
        try:
            # Else libav would take what is before a colon in a file's name for a protocol.
            return av.open(f"file:{self.address}", timeout=(OPEN_TIMEOUT, self.options.stall))
        except (av.FFmpegError, OSError) as error:
            why = f"not a video that can be read ({reason(error)})"
            if isinstance(error, av.InvalidDataError):
                why = self._incomplete_or(why)
            raise BadData(f"{self.name}: {why}.") from error

    def _incomplete_or(self, why: str) -> str:
        """``why`` a film gives no frames, or that its file was cut off, where that can be told."""
        if os.path.isfile(self.address) and _is_cut_off(self.address):
            return "the file is incomplete, as a copy or a recording that was cut off; copy or record it again"
        return why

    def _frames(self, container: InputContainer, stream: VideoStream) -> Iterator[Frame]:
        stream.thread_type = "AUTO"
        thinning = Thinning(self.options)
        start = stream.start_time or 0
        step = 1 / float(stream.average_rate or 25)
        when = -step
        failure = None
        for decoded in self._decoded(container, stream):
            if isinstance(decoded, av.FFmpegError):
                failure = decoded
                continue
            index = self.read
            known = seconds(decoded, start)
            when = when + step if known is None else known
            if self.options.duration is not None and when >= self.options.duration:
                return
            self.read += 1
            if thinning.takes(index, when):
                yield Frame(self.name, Decoded(decoded), index, when)
        if failure or not self.read:
            why = f"ended early ({reason(failure)})" if failure else self._incomplete_or("holds no frame")
            yield unreadable(self.name, why)

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame | av.FFmpegError]:
        """Yield frames, and an error in the end where the file could not be read to its end."""
        unreadable_packets = 0
        while True:
            try:
                for packet in container.demux(stream):
                    unreadable_packets = 0
                    yield from self._of_packet(packet)
                return
            except av.FFmpegError as error:
                self.damaged += 1
                unreadable_packets += 1
                if unreadable_packets == _MOST_UNREADABLE or not isinstance(error, av.InvalidDataError):
                    yield error
                    return

    def _of_packet(self, packet: av.Packet) -> list[VideoFrame]:
        try:
            return packet.decode()
        except av.EOFError:
            return []
        except av.FFmpegError:
            self.damaged += 1
            return []

    def summary(self) -> str:
        """What came of it, in words; empty before anything was read."""
        damaged = f", {self.damaged} damaged packets skipped" if self.damaged else ""
        return f"{self.name}: {self.read} frames read{damaged}" if self.read else ""

    def close(self) -> None:
        """The file is closed with the iteration."""


def _is_cut_off(path: str) -> bool:
    """Whether a file begins as MP4 and MOV do and ends within a box (ISO/IEC 14496-12), or has no index, ``moov``."""
    left, kinds = os.path.getsize(path), []
    with open(path, "rb") as file:
        while left > 0:
            head = file.read(16)
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if size == 1:
                size = int.from_bytes(head[8:], "big")
            kinds.append(kind)
            if kinds[0] != b"ftyp":
                return False
            # A size of 0 reaches to the end of the file.
            size = size or left
            if size < 8 or size > left:
                return size > left
            left -= size
            file.seek(size - len(head), os.SEEK_CUR)
    return bool(kinds) and b"moov" not in kinds
