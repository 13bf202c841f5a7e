"""Frames to results: read, prepare, run the engine, choose. Several threads do all of it, each with its own frames."""

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue

from hpdval_edge.errors import BadData
from hpdval_edge.kernels.head_cpu import usable_cpus
from hpdval_edge.outputs.output import Result
from hpdval_edge.predictor import Predictor
from hpdval_edge.runtimes import Engine
from hpdval_edge.sources.frame import Frame, FrameSource

# Each thread that runs the engine needs memory for its activations, so that many cores share these few.
MOST_WORKERS = 4
# Frames a step: a GPU wants many; a thread of a CPU gains nothing from them.
GPU_BATCH, CPU_BATCH = 8, 2
# Seconds that the end waits for a read of the source, such as of a file on a server that went away.
PATIENCE = 2.0

Outcome = Result | tuple[Frame, BadData]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the work is shared out.

    workers: threads, each of which reads, prepares and predicts by itself. engine_threads: CPU threads for each one's
    engine, 0 for the engine's choice. ahead: steps that may be under way or wait to be written, at most.
    """

    workers: int
    engine_threads: int
    ahead: int


def schedule(threads: int, live: bool) -> Schedule:
    """For ``threads`` CPU threads, 0 for all that this process may use.

    Of a live source one frame at a time is taken, all threads work at it, and the next may wait for its output.
    """
    if live:
        return Schedule(workers=1, engine_threads=threads, ahead=2)
    threads = threads or usable_cpus()
    workers = min(threads, MOST_WORKERS)
    return Schedule(workers, engine_threads=max(1, threads // workers), ahead=2 * workers)


def best_batch(engine: Engine) -> int:
    """Frames a step where nobody asked for another number."""
    return GPU_BATCH if engine.name.startswith("tensorrt") else CPU_BATCH


def classify(
    predictor: Predictor,
    source: FrameSource,
    *,
    batch: int,
    plan: Schedule,
    keep_pictures: bool,
    on_bad: Callable[[Frame, BadData], None],
) -> Iterator[Result]:
    """Yield a result for each frame that can be read, in order; the source is closed when the iterator is.

    What a thread raises, comes out where its results would have come.

    Args:
        batch: frames the engine takes at once, at most. keep_pictures: whether results hold the frame's pixels, and
            their predictions patch scores. on_bad: told of each frame that cannot be read, in order.
    """
    work = _Work(predictor, source, batch, plan, keep_pictures)
    try:
        yield from work.results(on_bad)
    finally:
        work.stop()


class _Work:
    """The threads, and the steps they have taken on, in the order of the source."""

    def __init__(
        self, predictor: Predictor, source: FrameSource, batch: int, plan: Schedule, keep_pictures: bool
    ) -> None:
        self.predictor = predictor
        self.source = source
        self.frames = iter(source)
        self.batch = batch
        self.keep_pictures = keep_pictures
        self.taking = threading.Lock()
        self.room = threading.Semaphore(plan.ahead)
        self.steps: SimpleQueue[Future[list[Outcome]] | None] = SimpleQueue()
        self.ended = self.stopped = False
        # Threads that wait for the source.
        self.reading: set[threading.Thread] = set()
        names = (f"hpedge-worker-{index}" for index in range(plan.workers))
        # Daemons: a source that never answers must not keep the program.
        self.threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self.threads:
            thread.start()

    def results(self, on_bad: Callable[[Frame, BadData], None]) -> Iterator[Result]:
        """Results in order until the source ends; ``on_bad`` is told of the others."""
        while step := self.steps.get():
            for outcome in step.result():
                if isinstance(outcome, Result):
                    yield outcome
                else:
                    on_bad(*outcome)
            self.room.release()

    def stop(self) -> None:
        """Close the source and wait for the threads; each finishes the frame or the engine's run it is at.

        A read that does not come back in PATIENCE seconds is left: when it does, its thread ends without the engine.
        """
        self.stopped = True
        for _ in self.threads:
            self.room.release()
        # A live source may keep a thread waiting, and wakes it when it is closed; others close what threads may read.
        if self.source.live:
            self.source.close()
        end = time.monotonic() + PATIENCE
        for thread in self.threads:
            while thread.is_alive() and (thread not in self.reading or time.monotonic() < end):
                thread.join(0.02)
        if not self.source.live:
            self.source.close()

    @contextlib.contextmanager
    def _reads(self) -> Iterator[None]:
        """Inside, this thread waits for the source."""
        thread = threading.current_thread()
        self.reading.add(thread)
        try:
            yield
        finally:
            self.reading.discard(thread)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            frames, step = taken
            try:
                step.set_result(self._predict(frames))
            except BaseException as error:
                step.set_exception(error)

    def _take(self) -> tuple[list[Frame], Future[list[Outcome]]] | None:
        """The next step; None where there is none."""
        self.room.acquire()
        frames: list[Frame] = []
        step: Future[list[Outcome]] = Future()
        end: Future[list[Outcome]] | None = None
        with self._reads(), self.taking:
            if self.ended or self.stopped:
                return None
            try:
                for frame in islice(self.frames, self.batch):
                    frames.append(frame)
            except BaseException as error:
                # Raised behind the frames that came before it.
                end = Future()
                end.set_exception(error)
            if frames:
                self.steps.put(step)
            self.ended = end is not None or not frames
            if self.ended:
                self.steps.put(end)
        return (frames, step) if frames else None

    def _predict(self, frames: list[Frame]) -> list[Outcome]:
        """What became of each frame; pictures are given up one by one unless results hold them."""
        # A copy keeps its bundle when another thread loads a watched one again.
        predictor = copy.copy(self.predictor)
        size = predictor.bundle.manifest.image_size
        rows = predictor.empty_batch(len(frames))
        readable: list[tuple[int, Frame, object]] = []
        outcomes: list[Outcome | None] = [None] * len(frames)
        for place, frame in enumerate(frames):
            if self.stopped:
                return []
            try:
                with self._reads():
                    picture = frame.read(size)
            except BadData as error:
                outcomes[place] = (frame, error)
                continue
            # The program may be ending, without waiting for this thread.
            if self.stopped:
                return []
            predictor.prepare_into(picture, rows[len(readable)])
            readable.append((place, frame, picture if self.keep_pictures else None))
        if readable:
            predictions = predictor.predict_images(rows[: len(readable)], self.keep_pictures)
            for (place, frame, picture), prediction in zip(readable, predictions, strict=True):
                outcomes[place] = Result(frame, prediction, picture)
        return outcomes
