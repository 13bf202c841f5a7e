"""Connections to network streams and USB cameras through PyAV; needs the extra [video]."""

import errno
import os
import time
from collections.abc import Iterator
from functools import partial

import av
from av.container import InputContainer

from hpdval_edge.errors import BadData, MissingDependency
from hpdval_edge.sources.addresses import masked
from hpdval_edge.sources.decoding import Decoded
from hpdval_edge.sources.explain import connection_error, reason
from hpdval_edge.sources.live import LiveSource, Lost, Shot
from hpdval_edge.sources.options import SourceOptions

OPEN_TIMEOUT = 10.0
# How often a camera that has nothing new is asked again, in seconds.
_CAMERA_INTERVAL = 0.004
# libav looks at no more of a stream than this before its first frame, in microseconds; its own choice is 5 seconds.
_ANALYSE = {"analyzeduration": "1000000"}


def network_stream(address: str, options: SourceOptions) -> LiveSource:
    """An rtsp, rtsps, http or https address as a live source."""
    return LiveSource(masked(address), partial(_network_shots, address, options.stall), options)


def open_address(address: str, stall: float, options: dict[str, str]) -> InputContainer:
    """What answers at an address, opened by libav with ``options``; a read of it waits ``stall`` seconds.

    Raises:
        HpedgeError: what `connection_error` makes of it.
    """
    began = time.monotonic()
    try:
        return av.open(address, options=options, timeout=(OPEN_TIMEOUT, stall))
    except (av.FFmpegError, OSError) as error:
        # Where libav's clock ran out while it read a header, it speaks of invalid data.
        if time.monotonic() - began >= OPEN_TIMEOUT:
            raise Lost(f"{masked(address)}: no answer in {OPEN_TIMEOUT:g} s.") from None
        raise connection_error(error, address) from None


def usb_camera(device: str, options: SourceOptions) -> LiveSource:
    """A V4L2 device such as ``/dev/video0`` as a live source."""
    return LiveSource(device, partial(_camera_shots, device, options.stall), options)


def _network_shots(address: str, stall: float) -> Iterator[Shot]:
    wanted = {**_ANALYSE, "rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else _ANALYSE
    with open_address(address, stall, wanted) as container:
        try:
            yield from _shots(container, masked(address))
        except av.error.ExitError:
            raise Lost(f"{masked(address)}: no data for {stall:g} s.") from None
        except (av.FFmpegError, OSError) as error:
            raise Lost(f"{masked(address)}: the connection broke ({reason(error)}).") from None


def _camera_shots(device: str, stall: float) -> Iterator[Shot]:
    _check_device(device)
    try:
        # Without waiting inside the driver, where no clock of ours would run.
        container = av.open(device, format="v4l2", options={"fflags": "+nonblock"}, timeout=(OPEN_TIMEOUT, stall))
    except (av.FFmpegError, OSError) as error:
        if getattr(error, "errno", None) == errno.EBUSY:
            raise MissingDependency(f"{device}: the camera is in use by another program; close that first.") from None
        raise MissingDependency(f"{device}: not a camera that gives pictures ({reason(error)}).") from None
    with container:
        while True:
            try:
                yield from _shots(container, device)
                return
            except (av.FFmpegError, OSError) as error:
                if getattr(error, "errno", None) != errno.EAGAIN:
                    raise Lost(f"{device}: the camera went away ({reason(error)}).") from None
            time.sleep(_CAMERA_INTERVAL)
            yield None


def _shots(container: InputContainer, name: str) -> Iterator[Shot]:
    """Yield each frame as a ``Frame.read``, and None for packets that bring none."""
    if not container.streams.video:
        raise BadData(f"{name}: holds no video track.")
    stream = container.streams.video[0]
    # Threads over frames would keep back as many frames as there are threads.
    stream.thread_type = "SLICE"
    for packet in container.demux():
        if packet.stream_index != stream.index:
            yield None
            continue
        try:
            frames = packet.decode()
        except av.FFmpegError:
            frames = []
        yield from (Decoded(frame) for frame in frames)
        if not frames:
            yield None


def _check_device(device: str) -> None:
    if not os.path.exists(device):
        raise MissingDependency(f"{device}: there is no such camera; `ls /dev/video*` shows those that are there.")
    if not os.access(device, os.R_OK | os.W_OK):
        raise MissingDependency(
            f"{device}: no permission; run: sudo usermod -aG video $USER, and log in again (it belongs to group video)."
        )
