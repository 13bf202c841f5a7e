"""Still pictures: files, folders, globs."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from hpdval_edge.images import find_images, open_rgb
from hpdval_edge.sources.frame import Frame, Pixels


class Pictures:
    """Pictures that files, folders and globs name, as ``find_images`` finds them.

    exact: decode JPEG files at their full size, also where half of it would do (docs/preprocess.md).
    """

    live = False

    def __init__(self, arguments: Sequence[str], *, exact: bool = False) -> None:
        self.paths = find_images(arguments)
        self.exact = exact

    def __iter__(self) -> Iterator[Frame]:
        return (Frame(path.as_posix(), partial(read_picture, path, self.exact)) for path in self.paths)

    def close(self) -> None:
        """Nothing is held open."""


def read_picture(path: Path, exact: bool, size: int) -> Pixels:
    """The picture for a model of ``size``, by a fraction of a large JPEG file unless ``exact``; BadData names it."""
    return open_rgb(path, None if exact else 2 * size)
