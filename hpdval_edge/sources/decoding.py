"""Decoded video frames of PyAV to pixels; only modules that need the extra [video] import this one."""

from fractions import Fraction

import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import VideoFrame

from hpdval_edge.sources.frame import Pixels

Matrix = tuple[int, int, int, int]


class Decoded:
    """``Frame.read`` of a decoded frame: colours are converted, and large frames made smaller, when it is called."""

    def __init__(self, frame: VideoFrame) -> None:
        self._frame: VideoFrame | None = frame

    def __call__(self, size: int) -> Pixels:
        """uint8 [H, W, 3], upright, the smaller side at least ``2 * size`` where the frame has as much."""
        frame, self._frame = self._frame, None
        width, height = shrunk(frame.width, frame.height, 2 * size)
        rgb = frame.reformat(width, height, "rgb24", interpolation="AREA", threads=1).to_ndarray()
        return upright(rgb, display_matrix(frame))


def shrunk(width: int, height: int, least: int) -> tuple[int, int]:
    """The size of the same shape whose smaller side is ``least``; the size as it is where that side is smaller."""
    small = min(width, height)
    if small <= least:
        return width, height
    # Rounded up, so that neither side falls below.
    return -(-width * least // small), -(-height * least // small)


def display_matrix(frame: VideoFrame) -> Matrix:
    """The signs (a, b, c, d) of the film's rotation: a pixel (x, y) is shown at (a x + c y, b x + d y)."""
    # Not frame.side_data: the frame and that hold each other, and would stay in memory, pixels and all, until Python
    # next looks for such circles.
    side_data = SideDataContainer(frame)
    if Type.DISPLAYMATRIX not in side_data:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.sign(np.frombuffer(side_data[Type.DISPLAYMATRIX], np.int32)).tolist()
    return a, b, c, d


def upright(pixels: np.ndarray, matrix: Matrix) -> np.ndarray:
    """Pixels [H, W, 3] turned by a quarter, a half or three, and mirrored, as ``display_matrix`` says."""
    a, b, c, d = matrix
    if a == 0 == d and b and c:
        # x and y change places: the new x is c y, the new y is b x.
        turned = pixels.transpose(1, 0, 2)[:: b or 1, :: c or 1]
    elif b == 0 == c and a and d:
        turned = pixels[::d, ::a]
    else:
        # Angles between are nobody's camera; they are shown as they were taken.
        return pixels
    return np.ascontiguousarray(turned)


def seconds(frame: VideoFrame, start: int) -> float | None:
    """When a frame is shown, ``start`` being the timestamp of the beginning; None where the film does not say."""
    if frame.pts is None or frame.time_base is None:
        return None
    return float((frame.pts - start) * Fraction(frame.time_base))
