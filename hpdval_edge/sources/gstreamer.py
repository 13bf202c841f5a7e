"""Cameras and streams through GStreamer: on a Jetson its hardware decodes, elsewhere what is installed."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from hpdval_edge.errors import HpedgeError, MissingDependency, UsageError
from hpdval_edge.sources.addresses import masked
from hpdval_edge.sources.frame import Pixels
from hpdval_edge.sources.live import LiveSource, Lost, Shot
from hpdval_edge.sources.options import SourceOptions

INSTALL = (
    "sudo apt install python3-gi gir1.2-gstreamer-1.0 gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-bad"
)
# Rows of RGBA are never padded; of RGB they are.
_SINK = "video/x-raw,format=RGBA ! appsink name=hpedge drop=true max-buffers=1 sync=false"
_POLL_NS = 100_000_000


def gstreamer_source(argument: str, options: SourceOptions) -> LiveSource:
    """``gst:PIPELINE``, ``csi:N``, ``/dev/videoN`` or the address of an RTSP stream as a live source.

    PIPELINE is in the words of gst-launch-1.0 and ends in raw video of any format; what makes RGB of it is added.
    """
    return LiveSource(masked(argument), partial(_shots, argument), options)


def pipeline_of(argument: str, *, jetson: bool) -> str:
    """The whole pipeline for what ``gstreamer_source`` takes.

    Args:
        jetson: whether NVIDIA's decoder and converter are there.
    """
    kind, _, rest = argument.partition(":")
    convert = f"{'nvvidconv' if jetson else 'videoconvert'} ! {_SINK}"
    decode = "parsebin ! nvv4l2decoder" if jetson else "decodebin"
    if kind == "gst":
        return f"{rest} ! {convert}"
    if kind == "csi":
        memory = "video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1"
        return f"nvarguscamerasrc sensor-id={int(rest)} ! {memory} ! {convert}"
    if argument.startswith("/dev/"):
        return f"v4l2src device={_quoted(argument)} ! decodebin ! {convert}"
    # The filter picks the video of a stream that has sound as well.
    source = f"rtspsrc location={_quoted(argument)} protocols=tcp latency=100 ! application/x-rtp,media=video"
    return f"{source} ! {decode} ! {convert}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _gst() -> Any:
    """The module Gst, initialised."""
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import Gst, GstApp  # noqa: F401  GstApp gives appsinks their methods
    except (ImportError, ValueError) as error:
        raise MissingDependency(
            f"GStreamer's Python side is not installed ({error}); run: {INSTALL}. A virtual environment sees it when "
            "made with --system-site-packages."
        ) from error
    if not Gst.init_check(None):
        raise MissingDependency(f"GStreamer does not start; run: {INSTALL}.")
    return Gst


def _shots(argument: str) -> Iterator[Shot]:
    Gst = _gst()
    name = masked(argument)
    jetson = Gst.ElementFactory.find("nvv4l2decoder") is not None
    if argument.startswith("csi:") and Gst.ElementFactory.find("nvarguscamerasrc") is None:
        raise MissingDependency(
            f"{name}: CSI cameras need a Jetson and its element nvarguscamerasrc; run: "
            "sudo apt install nvidia-l4t-gstreamer."
        )
    from gi.repository import GLib

    try:
        pipeline = Gst.parse_launch(pipeline_of(argument, jetson=jetson))
    except GLib.Error as error:
        words = masked(error.message).rstrip(".")
        raise UsageError(f"{name}: not a pipeline of GStreamer ({words}); try it with gst-launch-1.0.") from error
    try:
        sink, bus = pipeline.get_by_name("hpedge"), pipeline.get_bus()
        pipeline.set_state(Gst.State.PLAYING)
        while True:
            sample = sink.try_pull_sample(_POLL_NS)
            if sample is None:
                _check_bus(Gst, bus, name)
                yield None
            else:
                yield partial(_read, Gst, sample)
    finally:
        pipeline.set_state(Gst.State.NULL)


def _check_bus(Gst: Any, bus: Any, name: str) -> None:
    """Raise what went wrong in the pipeline, if anything did."""
    message = bus.pop_filtered(Gst.MessageType.ERROR | Gst.MessageType.EOS)
    if message is None:
        return
    if message.type == Gst.MessageType.EOS:
        raise Lost(f"{name}: the stream ended.")
    raise _explained(Gst, message.parse_error()[0], name)


def _explained(Gst: Any, error: Any, name: str) -> HpedgeError:
    words = masked(error.message).rstrip(".")
    if error.matches(Gst.ResourceError.quark(), Gst.ResourceError.NOT_AUTHORIZED):
        return UsageError(f"{name}: {words}; give name and password as in rtsp://user:password@host.")
    if error.matches(Gst.CoreError.quark(), Gst.CoreError.MISSING_PLUGIN):
        return MissingDependency(f"{name}: {words}; run: {INSTALL}.")
    return Lost(f"{name}: {words}.")


def _read(Gst: Any, sample: Any, size: int) -> Pixels:
    """uint8 [H, W, 3] of a sample of RGBA."""
    structure = sample.get_caps().get_structure(0)
    width, height = structure.get_value("width"), structure.get_value("height")
    found, mapped = sample.get_buffer().map(Gst.MapFlags.READ)
    if not found:
        raise MemoryError("GStreamer gives no access to a frame's memory")
    try:
        return np.ascontiguousarray(np.frombuffer(mapped.data, np.uint8).reshape(height, width, 4)[:, :, :3])
    finally:
        sample.get_buffer().unmap(mapped)
