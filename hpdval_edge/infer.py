"""``hpedge infer``: frames of a source through a Predictor to outputs."""

from collections.abc import Sequence
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


def infer(predictor: Predictor, source: FrameSource, outputs: Sequence[Output], *, batch: int) -> tuple[int, int]:
    """Write one result a frame to every output, in order; return how many were written and how many not readable."""
    done = failed = 0

    def report(frame: Frame, error: BadData) -> None:
        nonlocal failed
        failed += 1
        say(f"hpedge: {error}")

    keep = any(output.pictures for output in outputs)
    try:
        for result in classify(predictor, source, batch=batch, keep_pictures=keep, on_bad=report):
            for output in outputs:
                output.write(result)
            done += 1
    finally:
        source.close()
        for output in outputs:
            output.close()
    return done, failed
