"""Still pictures: files, folders, globs."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from hpdval_edge.images import find_images, open_rgb
from hpdval_edge.sources.frame import Frame, Pixels


class Pictures:
    """Pictures that files, folders and globs name, as ``find_images`` lists them."""

    live = False

    def __init__(self, arguments: Sequence[str]) -> None:
        self.paths = find_images(arguments)

    def __iter__(self) -> Iterator[Frame]:
        return (Frame(path.as_posix(), partial(_read, path)) for path in self.paths)

    def close(self) -> None:
        """Nothing is held open."""


def _read(path: Path, size: int) -> Pixels:
    return open_rgb(path)
