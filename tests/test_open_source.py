"""What each argument of ``hpedge infer`` is taken for, and what may be seen of it."""

import os
import sys
import zipfile

import pytest
from PIL import Image

from hpdval_edge.errors import MissingDependency, UsageError
from hpdval_edge.sources import gstreamer
from hpdval_edge.sources.addresses import host, masked
from hpdval_edge.sources.archives import Archive
from hpdval_edge.sources.live import LiveSource
from hpdval_edge.sources.open import open_source
from hpdval_edge.sources.options import SourceOptions, Thinning
from hpdval_edge.sources.pictures import Pictures
from hpdval_edge.sources.watched import WatchedFolders

PLAIN = SourceOptions()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with pictures, films (empty files) and an archive."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("sub")
    for name in ("a.png", "b.png", "sub/c.png"):
        Image.new("RGB", (4, 4)).save(name)
    with zipfile.ZipFile("z.zip", "w") as archive:
        archive.write("a.png", "inner.png")
    for name in ("one.mp4", "TWO.MKV", "words.txt"):
        open(name, "w").close()
    return tmp_path


def kinds(*arguments, options=PLAIN):
    return [type(part).__name__ for part in open_source(arguments, options).parts]


def test_each_argument_is_known_for_what_it_is(folder):
    """Mistakes: arguments out of order, neighbours that name one picture twice, patterns that miss films."""
    pytest.importorskip("av", reason="av is not installed; the extra [video] brings it")
    assert kinds("a.png", "sub", "b.png") == ["Pictures"]
    assert kinds("a.png", "one.mp4", "sub", "z.zip", "TWO.MKV") == ["Pictures", "Film", "Pictures", "Archive", "Film"]
    assert kinds("*.m*") == ["Film"] and kinds("*.mp4", "*.zip") == ["Film", "Archive"]
    assert kinds("*") == ["Pictures", "Film", "Film", "Archive"]
    assert kinds("http://host/film.MP4?x=1") == ["Film"]
    for live in (
        "camera:0",
        "/dev/video3",
        "rtsp://host/1",
        "RTSPS://host/1",
        "https://host/1",
        "csi:1",
        "gst:fakesrc",
    ):
        (part,) = open_source([live], PLAIN).parts
        assert isinstance(part, LiveSource) and part.name == live.replace("camera:0", "/dev/video0")


def test_sources_come_one_after_another(folder):
    assert [frame.name for frame in open_source(["z.zip", "b.png", "a.png"], PLAIN)] == [
        *("z.zip/inner.png", "b.png", "a.png")
    ]
    assert [frame.name for frame in open_source(["z.zip", "b.png", "a.png"], PLAIN, 2)] == ["z.zip/inner.png", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no pictures were named"),
        (["absent.mp4"], "'absent.mp4': there is no such file"),
        (["absent.zip"], "'absent.zip': there is no such file"),
        (["absent"], "'absent' matches no file or folder"),
        (["ftp://user:secret@host/1"], r"'ftp://\*\*\*@host/1': no ftp source is known, only rtsp, rtsps, http, https"),
        (["rtsp://u:secret@host:0/1"], r"'rtsp://\*\*\*@host:0/1' has no proper port; it takes a number from 1"),
        (["rtsp://host:70000/1"], "'rtsp://host:70000/1' has no proper port"),
        (["http://host:abc/1"], "'http://host:abc/1' has no proper port"),
        (["http://host:0/a.mp4"], "'http://host:0/a.mp4' has no proper port"),
        (["rtsp://host:/1"], "'rtsp://host:/1' has no proper port"),
        (["rtsp://u:se/cret@host/1"], r"'rtsp://\*\*\*@host/1' has a slash in its user name or password; write %2F"),
        (["rtsp:///1"], "'rtsp:///1' names no host"),
        (["rtsp://[::1/1"], "'rtsp://\\[::1/1' is no address; an IPv6 host stands in brackets"),
        (["camera:front"], "'camera:front': camera: is followed by a number, as in camera:0"),
        (["csi:"], "'csi:': csi: is followed by a number, as in csi:0"),
        (["a.png", "gst:fakesrc"], "a camera or stream has no end, so it is named alone"),
    ],
)
def test_what_is_nothing_is_one_sentence(folder, arguments, words):
    """Mistake: a port that can never answer waited for as a camera that is away."""
    with pytest.raises(UsageError, match=words):
        open_source(arguments, PLAIN)


def test_watch_takes_folders_or_live_sources(folder):
    watch = SourceOptions(watch=True)
    (part,) = open_source(["sub", "."], watch).parts
    assert isinstance(part, WatchedFolders) and list(part.folders) == ["sub", "."]
    assert open_source(["gst:fakesrc"], watch).live
    with pytest.raises(UsageError, match="--watch takes folders alone, or a camera or stream"):
        open_source(["sub", "a.png"], watch)


def test_without_pyav_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for module in ("films", "streams", "decoding", "explain"):
        monkeypatch.delitem(sys.modules, f"hpdval_edge.sources.{module}", raising=False)
    for argument in ("one.mp4", "rtsp://host/1", "camera:0"):
        with pytest.raises(MissingDependency, match=r"run: pip install 'hpdval-edge\[video\]'"):
            open_source([argument], PLAIN)
    assert isinstance(open_source(["a.png"], PLAIN).parts[0], Pictures)
    assert isinstance(open_source(["z.zip"], PLAIN).parts[0], Archive)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://user:secret@host:554/1?x=2", "rtsp://***@host:554/1?x=2"),
        ("rtsp://user:se@cr@et@host/1", "rtsp://***@host/1"),
        ("rtsp://secret@host/1", "rtsp://***@host/1"),
        ("rtsp://user:se/secret@host/1", "rtsp://***@host/1"),
        ("rtsp://user:secret@host/a:b@c", "rtsp://***@host/a:b@c"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("http://host:/a@b", "http://host:/a@b"),
        ("http://host/cgi?user=u&pwd=secret&channel=1", "http://host/cgi?user=u&pwd=***&channel=1"),
        ("http://host/a?token=secret#x", "http://host/a?token=***#x"),
        ("http://host/a@b", "http://host/a@b"),
        (
            'gst:rtspsrc location="rtsp://u:secret@h/1" user-pw=secret ! x',
            'gst:rtspsrc location="rtsp://***@h/1" user-pw=*** ! x',
        ),
        ("photos/a@b.png", "photos/a@b.png"),
    ],
)
def test_credentials_are_masked(address, shown):
    assert masked(address) == shown
    assert "secret" not in masked(address)


def test_host():
    assert host("rtsp://user:se@cret@camera:554/1") == "camera:554"


def test_thinning():
    """Mistakes: drift where the rate is no multiple of fps; a frame just before its slot left out."""
    slots = Thinning(SourceOptions(fps=10))
    taken = [index for index in range(290) if slots.takes(index, index / 29)]
    assert len(taken) == 100
    third = Thinning(SourceOptions(fps=29.97))
    assert all(third.takes(index, round(index * 1001 / 30000, 6)) for index in range(300))


def test_pipelines_for_gstreamer():
    """NVIDIA's elements are not run here: only what would be asked of them is checked."""
    sink = "video/x-raw,format=RGBA ! appsink name=hpedge drop=true max-buffers=1 sync=false"
    pipeline = gstreamer.pipeline_of
    assert pipeline("csi:1", jetson=True) == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1 ! nvvidconv ! "
        + sink
    )
    assert pipeline('rtsp://h/"1', jetson=True) == (
        'rtspsrc location="rtsp://h/\\"1" protocols=tcp latency=100 ! application/x-rtp,media=video ! parsebin ! '
        "nvv4l2decoder ! nvvidconv ! " + sink
    )
    assert " ! decodebin ! videoconvert ! " in pipeline("rtsp://h/1", jetson=False)
    assert pipeline("/dev/video0", jetson=False).startswith(
        'v4l2src device="/dev/video0" ! decodebin ! videoconvert ! '
    )
    assert pipeline("gst:a ! b", jetson=True) == f"a ! b ! nvvidconv ! {sink}"


def test_gstreamer_is_for_rtsp_and_cameras():
    with pytest.raises(UsageError, match="--gstreamer takes cameras and RTSP; write a pipeline"):
        open_source(["http://host/1"], SourceOptions(gstreamer=True))
    for argument in ("rtsp://host/1", "camera:0"):
        assert open_source([argument], SourceOptions(gstreamer=True)).live


def test_without_gstreamer_the_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gi", None)
    with pytest.raises(MissingDependency, match=r"run: sudo apt install python3-gi gir1\.2-gstreamer-1\.0 "):
        next(iter(open_source(["csi:0"], PLAIN)))
