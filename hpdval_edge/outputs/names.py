"""File names for pictures and films, and for what is made of them."""

import hashlib
import os
import re
import struct
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path, PurePath
from urllib.parse import urlsplit

from hpdval_edge.sources.frame import Frame

LONGEST = 100
# 8 MiB, and bits of it for each name.
FILTER_BYTES, HASHES = 1 << 23, 4


def safe(text: str) -> str:
    """``text`` as part of a file name on any system: letters and digits of any language, ``_``, ``-`` and dots."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:LONGEST] or "_"


def source_stem(source: str) -> str:
    """What a picture, film, camera or stream is called, without folders, suffix and a URL's password."""
    if "://" in source:
        address = urlsplit(source)
        return safe(f"{address.hostname or ''}{address.path}")
    return PurePath(source).stem


class FileNames:
    """A path in ``folder``, without suffix, for each picture: its stem, with a number where two pictures share it.

    No path is given twice. What was given is remembered in a Bloom filter (Communications of the ACM 13(7), 1970) of
    FILTER_BYTES, however many there are: it knows each name that it has seen, and takes few others for one, which then
    get a number that they had not needed: 1 in 100,000 at a million names, 1 in 25 at ten million. Long after, numbers
    become too long for a file's name.

    Args:
        keep: whether what lies in ``folder`` stays, so that its names count as given.
    """

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        self.folder = folder
        self.filter = bytearray(FILTER_BYTES)
        if keep and folder.is_dir():
            self._keep()
        # The last film's source and name: frames of films come film by film.
        self.film: tuple[str, str] | None = None

    def __call__(self, source: str) -> Path:
        """A path that nothing else has had."""
        return self.folder / self._new(source_stem(source))

    def of_frame(self, frame: Frame) -> Path:
        """A path for each frame; those of a film are its path and their number."""
        if frame.index is None:
            return self(frame.source)
        if self.film is None or self.film[0] != frame.source:
            self.film = frame.source, self(frame.source).name
        return self.folder / self._new(f"{self.film[1]}-{frame.index:06}")

    def _keep(self) -> None:
        """Count the names of the folder's files as given: of ``photo.dog.png`` ``photo`` and ``photo.dog``."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                for dot in re.finditer(r"\.", entry.name):
                    self._give(entry.name[: dot.start()])

    def _new(self, stem: str) -> str:
        """``stem``, or with the lowest number behind it that is free, which is then given."""
        name = stem
        if self._is_given(stem):
            # Numbers are given in order: doubled until one is free, then halved, a million take 40 looks.
            free = 2
            while self._is_given(f"{stem}-{free}"):
                free *= 2
            numbers = range(max(2, free // 2), free)
            number = numbers.start + bisect_left(numbers, True, key=lambda each: not self._is_given(f"{stem}-{each}"))
            name = f"{stem}-{number}"
        self._give(name)
        return name

    def _give(self, name: str) -> None:
        for place in _places(name):
            self.filter[place >> 3] |= 1 << (place & 7)

    def _is_given(self, name: str) -> bool:
        return all(self.filter[place >> 3] & 1 << (place & 7) for place in _places(name))


def _places(name: str) -> Iterator[int]:
    """The bits of FileNames' filter that stand for a name, whatever its case, for file systems may not tell it."""
    digest = hashlib.blake2b(name.lower().encode("utf-8", "surrogatepass"), digest_size=4 * HASHES).digest()
    return (place % (8 * FILTER_BYTES) for place in struct.unpack(f"<{HASHES}I", digest))
