"""Arguments of the command line to one ``FrameSource``: what each of them is, and how it is opened."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from hpdval_edge.commands.extras import import_from
from hpdval_edge.errors import UsageError
from hpdval_edge.sources.addresses import masked, scheme, split_address
from hpdval_edge.sources.archives import ARCHIVE_SUFFIXES, Archive
from hpdval_edge.sources.frame import Frame, FrameSource
from hpdval_edge.sources.options import SourceOptions
from hpdval_edge.sources.pictures import Pictures
from hpdval_edge.sources.watched import WatchedFolders

SCHEMES = ("rtsp", "rtsps", "http", "https")
FILM_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".ogv"),
    *(".3gp", ".mjpeg", ".mjpg", ".h264", ".264", ".h265", ".hevc", ".y4m", ".vob", ".asf", ".mxf"),
)
_CAMERA = re.compile(r"(camera|csi):(.*)|(/dev/video.*)", re.DOTALL)


class Sources:
    """Several sources one after another, or one live source.

    Args:
        most: frames to give, all of them if None.
    """

    def __init__(self, parts: Sequence[FrameSource], most: int | None = None) -> None:
        self.parts = parts
        self.most = most
        self.live = any(part.live for part in parts)

    def __iter__(self) -> Iterator[Frame]:
        return islice((frame for part in self.parts for frame in part), self.most)

    def summaries(self) -> list[str]:
        """What came of each part that counts what it reads, in words."""
        told = [part.summary() for part in self.parts if hasattr(part, "summary")]
        return [words for words in told if words]

    def close(self) -> None:
        """Close all parts."""
        for part in self.parts:
            part.close()


def open_source(arguments: Sequence[str], options: SourceOptions, most: int | None = None) -> Sources:
    """The frames of all arguments, in their order; each is opened when its turn comes.

    Args:
        arguments: pictures, folders, patterns, archives, films, cameras and addresses, see docs/sources.md.
        most: frames to take of all together.

    Raises:
        UsageError: an argument that is nothing, or a live one that is not alone. MissingDependency: the extra.
        BadData: a folder that may not be listed.
    """
    if options.watch and arguments and all(os.path.isdir(argument) for argument in arguments):
        return Sources([WatchedFolders(arguments, exact=options.exact_decode)], most)
    parts: list[FrameSource] = []
    pictures: list[str] = []
    for argument in (part for whole in arguments for part in _expanded(whole)):
        source = _other_than_pictures(argument, options)
        if source is None:
            pictures.append(argument)
            continue
        if pictures:
            parts.append(Pictures(pictures, exact=options.exact_decode))
        parts.append(source)
        pictures = []
    if pictures or not parts:
        parts.append(Pictures(pictures, exact=options.exact_decode))
    sources = Sources(parts, most)
    if sources.live and len(parts) > 1:
        raise UsageError("a camera or stream has no end, so it is named alone; run one `hpedge infer` for each.")
    if options.watch and not sources.live:
        raise UsageError("--watch takes folders alone, or a camera or stream.")
    return sources


def _expanded(argument: str) -> list[str]:
    """A pattern that matches films or archives as these; it itself where it matches pictures, and all else."""
    if scheme(argument) or _CAMERA.fullmatch(argument) or argument.startswith("gst:") or os.path.exists(argument):
        return [argument]
    matches = sorted(glob.glob(argument, recursive=True))
    others = [name for name in matches if _is_film(name) or _is_archive(name)]
    return ([argument] if len(others) < len(matches) or not matches else []) + others


def _other_than_pictures(argument: str, options: SourceOptions) -> FrameSource | None:
    """The source for one argument; None for what names pictures, or nothing."""
    if found := scheme(argument):
        return _at_address(argument, found, options)
    if argument.startswith("gst:"):
        return _gstreamer(argument, options)
    if camera := _CAMERA.fullmatch(argument):
        return _camera(argument, camera, options)
    if os.path.isdir(argument):
        return None
    if _is_film(argument) or _is_archive(argument):
        if not os.path.exists(argument):
            raise UsageError(f"{argument!r}: there is no such file.")
        if _is_archive(argument):
            return Archive(argument, exact=options.exact_decode)
        return _video("films").Film(argument, options)
    return None


def _at_address(argument: str, found: str, options: SourceOptions) -> FrameSource:
    if found not in SCHEMES:
        raise UsageError(f"{masked(argument)!r}: no {found} source is known, only {', '.join(SCHEMES)}.")
    split_address(argument, repr(masked(argument)))
    path = argument.partition("?")[0]
    if found.startswith("http") and _is_film(path):
        return _video("films").Film(argument, options)
    if options.gstreamer and found.startswith("http"):
        raise UsageError(
            f"{masked(argument)!r}: --gstreamer takes cameras and RTSP; write a pipeline for what the server sends, "
            "such as 'gst:souphttpsrc location=ADDRESS ! multipartdemux ! jpegdec'."
        )
    if options.gstreamer:
        return _gstreamer(argument, options)
    return _video("streams").network_stream(argument, options)


def _camera(argument: str, camera: re.Match[str], options: SourceOptions) -> FrameSource:
    kind, number, device = camera.groups()
    if kind and not number.isdecimal():
        raise UsageError(f"{argument!r}: {kind}: is followed by a number, as in {kind}:0.")
    if kind == "csi":
        return _gstreamer(argument, options)
    device = device or f"/dev/video{number}"
    return _gstreamer(device, options) if options.gstreamer else _video("streams").usb_camera(device, options)


def _gstreamer(argument: str, options: SourceOptions) -> FrameSource:
    from hpdval_edge.sources.gstreamer import gstreamer_source

    return gstreamer_source(argument, options)


def _video(module: str) -> Any:
    return import_from("video", f"sources.{module}")


def _is_film(name: str) -> bool:
    return name.lower().endswith(FILM_SUFFIXES)


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)
