"""Frames to results: read, prepare, run the engine, choose."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from hpdval_edge.errors import BadData
from hpdval_edge.outputs.output import Result
from hpdval_edge.predictor import Predictor
from hpdval_edge.sources.frame import Frame, Pixels


def classify(
    predictor: Predictor,
    frames: Iterable[Frame],
    *,
    batch: int,
    keep_pictures: bool,
    on_bad: Callable[[Frame, BadData], None],
) -> Iterator[Result]:
    """Yield a result for each frame that can be read, in order.

    Args:
        batch: frames the engine takes at once, at most. keep_pictures: whether results hold the frame's pixels.
        on_bad: told of each frame that cannot be read.
    """
    remaining = iter(frames)
    size = predictor.bundle.manifest.image_size
    while group := list(islice(remaining, batch)):
        readable: list[tuple[Frame, Pixels]] = []
        for frame in group:
            try:
                readable.append((frame, frame.read(size)))
            except BadData as error:
                on_bad(frame, error)
        if not readable:
            continue
        predictions = predictor.predict_images(predictor.prepare([picture for _, picture in readable]))
        for (frame, picture), prediction in zip(readable, predictions, strict=True):
            yield Result(frame, prediction, picture if keep_pictures else None)
