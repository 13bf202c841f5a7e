"""``hpedge infer``: frames of a source through a Predictor to outputs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.outputs.output import Output
from hpdval_edge.pipeline import classify
from hpdval_edge.predictor import Predictor
from hpdval_edge.progress import say
from hpdval_edge.sources.frame import Frame, FrameSource

LAST_EXPORT = Path("runs") / "last-export"


def last_export() -> Path:
    """The bundle that the last ``hpedge export`` in this folder wrote."""
    if not LAST_EXPORT.is_file():
        raise UsageError(
            f"there is no bundle here yet ({LAST_EXPORT} is missing); run `hpedge export` or pass --model."
        )
    return Path(LAST_EXPORT.read_text(encoding="utf-8").strip())


def infer(
    predictor: Predictor, source: FrameSource, outputs: Sequence[Output], *, batch: int, watch: bool = False
) -> tuple[int, int]:
    """Write one result a frame to every output, in order; return how many were written and how many not readable.

    Args:
        batch: frames the engine takes at once; a live source gives them one by one. watch: look before each frame
            whether the bundle changed on disk.
    """
    done = failed = 0

    def report(frame: Frame, error: BadData) -> None:
        nonlocal failed
        failed += 1
        say(f"hpedge: {error}")

    frames = _reloading(predictor, source) if watch else source
    keep = any(output.pictures for output in outputs)
    try:
        for result in classify(predictor, frames, batch=1 if source.live else batch, keep_pictures=keep, on_bad=report):
            for output in outputs:
                output.write(result)
            done += 1
    finally:
        source.close()
        for output in outputs:
            output.close()
    return done, failed


def _reloading(predictor: Predictor, source: FrameSource) -> Iterator[Frame]:
    for frame in source:
        if predictor.reload():
            say(f"{predictor.bundle.path}: loaded again, {len(predictor.labels)} labels")
        yield frame
