"""``hpedge infer``: frames of a source through a Predictor to outputs."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpdval_edge.errors import BadData, HpedgeError, UsageError
from hpdval_edge.outputs.output import Output, close_all
from hpdval_edge.pipeline import Schedule, best_batch, classify
from hpdval_edge.predictor import Predictor
from hpdval_edge.progress import progress, say
from hpdval_edge.sources.frame import Frame, FrameSource

LAST_EXPORT = Path("runs") / "last-export"
# Seconds until a watched bundle that could not be used is read again: to read it means to hash all of it.
RETRY = 1.0


def last_export() -> Path:
    """The bundle that the last ``hpedge export`` in this folder wrote."""
    if not LAST_EXPORT.is_file():
        raise UsageError(
            f"there is no bundle here yet ({LAST_EXPORT} is missing); run `hpedge export` or pass --model."
        )
    return Path(LAST_EXPORT.read_text(encoding="utf-8").strip())


def infer(
    predictor: Predictor,
    source: FrameSource,
    outputs: Sequence[Output],
    *,
    plan: Schedule,
    batch: int | None = None,
    watch: bool = False,
) -> tuple[int, int]:
    """Write one result a frame to every output, in order; return how many were written and how many not readable.

    The source and the outputs are closed, whatever happens.

    Args:
        batch: frames the engine takes at once, if it is not to choose; a live source gives them one by one.
        watch: look before each frame of a live source whether the bundle changed on disk.
    """
    done = failed = 0

    def report(frame: Frame, error: BadData) -> None:
        nonlocal failed
        failed += 1
        say(f"hpedge: {error}")

    # Where results scroll over the terminal themselves, a bar would only be in their way.
    shown = contextlib.nullcontext(lambda done: None) if sys.stdout.isatty() else progress("pictures")
    keep = any(output.pictures for output in outputs)
    batch = 1 if source.live else batch or best_batch(predictor.engine)
    frames = _Reloading(predictor, source) if watch else source
    results = classify(predictor, frames, batch=batch, plan=plan, keep_pictures=keep, on_bad=report)
    try:
        with contextlib.closing(results), shown as update:
            for result in results:
                for output in outputs:
                    output.write(result)
                done += 1
                update(done)
    finally:
        close_all(outputs)
    return done, failed


class _Reloading:
    """A live source, whose predictor is loaded again where its bundle changed before a frame came."""

    live = True

    def __init__(self, predictor: Predictor, source: FrameSource) -> None:
        self.predictor = predictor
        self.source = source
        self.close = source.close

    def __iter__(self) -> Iterator[Frame]:
        told, refused = "", -math.inf
        for frame in self.source:
            try:
                if time.monotonic() - refused >= RETRY and self.predictor.reload():
                    say(f"{self.predictor.bundle.path}: loaded again, {len(self.predictor.labels)} labels")
            except HpedgeError as error:
                # A camera goes on with the labels it has, whatever somebody wrote.
                if str(error) != told:
                    say(f"hpedge: {str(error).rstrip('.')}; the labels stay as they are")
                told, refused = str(error), time.monotonic()
            yield frame
