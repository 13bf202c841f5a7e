"""``Frame`` and ``FrameSource``: what every source of pictures gives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np
from PIL import Image

from hpdval_edge.errors import BadData

Pixels = Image.Image | np.ndarray


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture, not decoded yet.

    source: a picture's path as it was found, or the film, camera or stream that it is a frame of. read: called once,
    from any thread, with the side of the square that the model takes; gives an RGB image or uint8 [H, W, 3], which may
    be smaller than the original but not below twice that side; raises BadData, which names the source. index: of a
    frame in its source, from 0. time: seconds, in a film from its beginning, of a camera or stream since the epoch.
    index and time of a still picture are None.
    """

    source: str
    read: Callable[[int], Pixels]
    index: int | None = None
    time: float | None = None

    @property
    def name(self) -> str:
        """What tells this frame from all others: ``photo.jpg``, ``film.mp4#17``."""
        return self.source if self.index is None else f"{self.source}#{self.index}"


class FrameSource(Protocol):
    """Frames in order; closed when they are no longer wanted, whether all were taken or not.

    live: a camera, a stream or a watched folder. It has no end, and nobody knows when its next frame comes, so a batch
    does not wait to be full. Of the frames of a camera or stream that come while nobody asks the latest alone is kept.
    """

    live: bool

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...


def unreadable(source: str, reason: str) -> Frame:
    """A frame that stands for what could not be read: reading it raises BadData ``source: reason``."""

    def read(size: int) -> NoReturn:
        raise BadData(f"{source}: {reason}")

    return Frame(source, read)
