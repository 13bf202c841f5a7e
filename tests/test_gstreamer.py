"""The generic side of GStreamer for real, where it is installed; Jetson's elements are not run."""

import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest

from hpdval_edge.errors import MissingDependency, UsageError
from hpdval_edge.sources import live
from hpdval_edge.sources.gstreamer import _gst
from hpdval_edge.sources.live import Lost

# PyGObject's importer is of an old kind, of which newer Pythons warn.
pytestmark = pytest.mark.filterwarnings("ignore::ImportWarning")
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)
        GST = _gst()
except MissingDependency as error:
    pytest.skip(str(error), allow_module_level=True)


def needs(*elements):
    for element in elements:
        if GST.ElementFactory.find(element) is None:
            pytest.skip(f"GStreamer has no element {element} here")


def test_a_pipeline_of_ones_own(opened):
    """Mistakes: blue for red, rows that are padded read as if they were not."""
    needs("videotestsrc", "videoconvert")
    source = opened("gst:videotestsrc is-live=true pattern=red ! video/x-raw,width=101,height=37")
    frames = iter(source)
    for _ in range(3):
        pixels = next(frames).read(8)
        assert pixels.shape == (37, 101, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
        assert np.abs(pixels.astype(int) - (255, 0, 0)).max() < 5


def test_rtsp_that_is_killed_and_comes_back(opened, monkeypatch):
    """Mistakes: a message of the pipeline that nobody reads, frames of another picture."""
    pytest.importorskip("av", reason="av is not installed; the extra [video] brings it")
    needs("rtspsrc", "decodebin", "rtph264depay", "h264parse")
    if not any(GST.ElementFactory.find(element) for element in ("openh264dec", "avdec_h264")):
        pytest.skip("GStreamer has no decoder for H.264 here (apt: gstreamer1.0-plugins-bad)")
    module = runpy.run_path(str(Path(__file__).with_name("stream_server.py")))
    monkeypatch.setattr(live, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(live, "LONGEST_WAIT", 0.2)
    server = module["RtspServer"](rate=50)
    try:
        found = []
        source = opened(server.address, gstreamer=True)
        for frame in source:
            found.append(module["number_of"](frame.read(8)))
            if len(found) == 10:
                server.kill()
                server.start()
            if len(found) == 20:
                break
        assert None not in found and found == sorted(set(found))
        assert source.parts[0].reconnects == 1
    finally:
        server.kill()


def test_a_silent_source_is_lost(opened):
    needs("appsrc")
    with pytest.raises(Lost, match=r"gst:appsrc: no frame for 0.3 s"):
        next(iter(opened("gst:appsrc", stall=0.3, retries=0)))


@pytest.mark.parametrize(
    ("argument", "error", "words"),
    [
        ("gst:nosuchelement", UsageError, r'not a pipeline of GStreamer \(no element "nosuchelement"\)'),
        ("gst:filesrc location=/absent ! decodebin", Lost, "Resource not found"),
        ("csi:0", MissingDependency, "CSI cameras need a Jetson"),
    ],
)
def test_errors_are_one_sentence(opened, argument, error, words):
    if argument == "csi:0" and GST.ElementFactory.find("nvarguscamerasrc"):
        pytest.skip("this is a Jetson")
    needs("filesrc", "decodebin")
    with pytest.raises(error, match=words):
        next(iter(opened(argument, retries=0)))
