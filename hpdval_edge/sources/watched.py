"""Folders that are watched for pictures that appear."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hpdval_edge.errors import BadData
from hpdval_edge.images import is_image_name
from hpdval_edge.sources.frame import Frame
from hpdval_edge.sources.pictures import read_picture

# Seconds between two looks at the folders.
INTERVAL = 0.25
# A picture whose file did not change for so many seconds is whole.
QUIET = 1.0
# Clocks of file systems tick in steps of up to this many seconds, so a folder may change and keep its time.
_CLOCK_STEP = 2.0


@dataclass(slots=True)
class _Folder:
    """What was last seen of one folder. pictures: names with inodes, so that a file put in another's place is new."""

    changed: float = -1.0
    listed: float = 0.0
    pictures: set[tuple[str, int]] = field(default_factory=set)
    folders: list[str] = field(default_factory=list)


class WatchedFolders:
    """Pictures in folders and below, those that are there and those that come, each once, as they come.

    Hidden names are left out, links to folders not followed. A file that is still written to is waited for. Folders
    are listed again only when they change, so that many old pictures cost nothing; so a picture that is overwritten in
    place is not seen again, one that is replaced by another file of its name is. exact: `SourceOptions.exact_decode`.
    """

    live = True

    def __init__(
        self, folders: Sequence[str], *, exact: bool = False, interval: float = INTERVAL, quiet: float = QUIET
    ) -> None:
        self.folders = folders
        self.exact = exact
        self.interval = interval
        self.quiet = quiet
        self.read = 0
        self._seen: dict[str, _Folder] = {}
        # Paths not taken yet, with size and time of the file and when it was first seen so.
        self._waiting: dict[str, tuple[tuple[int, int], float]] = {}
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        while not self._stop.is_set():
            for folder in self.folders:
                self._look_into(folder)
            for path in sorted(self._waiting):
                if self._is_whole(path):
                    del self._waiting[path]
                    self.read += 1
                    yield Frame(Path(path).as_posix(), partial(read_picture, Path(path), self.exact))
            self._stop.wait(self.interval)

    def _look_into(self, top: str) -> None:
        """Note new pictures in ``top`` and below."""
        todo = [top]
        while todo:
            path = todo.pop()
            try:
                todo += self._list_if_changed(path).folders
            except OSError as error:
                self._forget(path)
                if path == top:
                    raise BadData(f"{path}: the folder can no longer be listed ({error.strerror}).") from error

    def _list_if_changed(self, path: str) -> _Folder:
        seen = self._seen.setdefault(path, _Folder())
        changed = os.stat(path).st_mtime
        if changed == seen.changed and seen.listed > changed + _CLOCK_STEP:
            return seen
        listed, pictures, folders = time.time(), set(), []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders += [entry.path] * (not entry.name.startswith("."))
                elif is_image_name(entry.name):
                    pictures.add((entry.name, entry.inode()))
        for gone in {*seen.folders} - {*folders}:
            self._forget(gone)
        for name, _ in pictures - seen.pictures:
            self._waiting[os.path.join(path, name)] = ((-1, -1), 0.0)
        self._seen[path] = _Folder(changed, listed, pictures, folders)
        return self._seen[path]

    def _forget(self, path: str) -> None:
        """A folder that is gone: one that comes under its name has new pictures, also where inodes are used again."""
        for folder in self._seen.pop(path, _Folder()).folders:
            self._forget(folder)

    def _is_whole(self, path: str) -> bool:
        try:
            status = os.stat(path)
        except OSError:
            # Gone before it was taken, as files are that a program writes under a name for the time being.
            del self._waiting[path]
            return False
        now, stamp = time.monotonic(), (status.st_size, status.st_mtime_ns)
        before, since = self._waiting[path]
        if stamp != before:
            self._waiting[path], since = (stamp, now), now
        old = time.time() - status.st_mtime
        return status.st_size > 0 and (old >= self.quiet or now - since >= self.quiet)

    def summary(self) -> str:
        """What came of it, in words."""
        return f"{self.read} pictures seen in {', '.join(self.folders)}"

    def close(self) -> None:
        """Stop waiting."""
        self._stop.set()
