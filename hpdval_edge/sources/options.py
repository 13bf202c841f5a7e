"""What is wanted of sources, and which of their frames are taken."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Which frames are taken, and how long a live source is waited for.

    every: each N-th frame of films and live sources. fps: at most so many frames a second, by a film's own time and by
    the clock for live sources. duration: seconds of a film, or of the clock for live sources; None is all.
    retries: attempts to reach a live source again, one after another, before it is given up; None is endless. stall:
    seconds without a frame after which a connection counts as lost. gstreamer: decode live sources with GStreamer
    instead of PyAV. watch: folders are watched for pictures that appear. exact_decode: JPEG files are decoded at their
    full size, also where half of it would do (docs/preprocess.md).
    """

    every: int = 1
    fps: float | None = None
    duration: float | None = None
    retries: int | None = None
    stall: float = 10.0
    gstreamer: bool = False
    watch: bool = False
    exact_decode: bool = False


class Thinning:
    """Says of each frame of one source, in order, whether it is taken.

    With ``fps`` the seconds are cut into that many slots each and the first frame of a slot is taken: the frames of a
    regular film stay evenly spaced, and no slot gives two.
    """

    def __init__(self, options: SourceOptions) -> None:
        self.every = options.every
        self.fps = options.fps
        self._slot = None

    def takes(self, index: int, seconds: float) -> bool:
        """index: of the frame, from 0. seconds: when it was, from any fixed beginning."""
        if index % self.every:
            return False
        if self.fps is None:
            return True
        # Times are rounded to their stream's clock: a frame a hair before its slot belongs to it.
        slot = int(seconds * self.fps + 1e-3)
        if slot == self._slot:
            return False
        self._slot = slot
        return True
