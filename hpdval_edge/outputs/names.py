"""File names for pictures and films, and for what is made of them."""

import re
from pathlib import Path, PurePath
from urllib.parse import urlsplit

from hpdval_edge.sources.frame import Frame

LONGEST = 100


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
    """A path in ``folder``, without suffix, for each picture: its stem, with a number where two pictures share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[str] = set()
        self.films: dict[str, str] = {}

    def __call__(self, source: str) -> Path:
        """A path that no other source has had."""
        stem = source_stem(source)
        name, number = stem, 1
        while name.lower() in self.taken:
            number += 1
            name = f"{stem}-{number}"
        self.taken.add(name.lower())
        return self.folder / name

    def of_frame(self, frame: Frame) -> Path:
        """A path for each frame; those of a film are its path and their number."""
        if frame.index is None:
            return self(frame.source)
        if frame.source not in self.films:
            self.films[frame.source] = self(frame.source).name
        return self.folder / f"{self.films[frame.source]}-{frame.index:06}"
