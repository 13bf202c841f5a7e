"""Cameras and streams: a thread that reads, the latest frame alone, a connection that is made again when it is lost."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from hpdval_edge.errors import HpedgeError, MissingDependency
from hpdval_edge.progress import say
from hpdval_edge.sources.frame import Frame, Pixels
from hpdval_edge.sources.options import SourceOptions, Thinning

# One frame's ``Frame.read``, or None where there is nothing new yet, so that clocks are looked at.
Shot = Callable[[int], Pixels] | None
# Seconds between attempts to connect: doubled each time, with jitter, so that many boards do not ask at once.
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
# close() leaves a thread that does not come back from a read in this many seconds to the timeout of that read.
_JOIN = 1.0


class Lost(MissingDependency):
    """A camera or stream that cannot be reached now and may come back."""


class LiveSource:
    """Frames of one camera or stream, the latest one whenever one is asked for; connected again as often as it is lost.

    What goes wrong before the first frame and would not go away by waiting is raised; all else is told in one line and
    tried again. Frames carry the time of their receipt, and their index counts through all connections.

    Args:
        name: what the source is called, without credentials.
        connect: opens it and yields what comes; ends, or raises an HpedgeError, when the connection is lost; closes it
            when it is closed itself. Runs in one thread.
    """

    live = True

    def __init__(self, name: str, connect: Callable[[], Iterator[Shot]], options: SourceOptions) -> None:
        self.name = name
        self.options = options
        self.read = self.dropped = self.reconnects = 0
        self._connect = connect
        self._thinning = Thinning(options)
        self._changed = threading.Condition()
        self._latest: Frame | None = None
        self._ended = False
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Frame]:
        self._thread = threading.Thread(target=self._run, name=f"reads {self.name}", daemon=True)
        self._thread.start()
        end = None if self.options.duration is None else time.monotonic() + self.options.duration
        while frame := self._take(end):
            yield frame

    def _take(self, end: float | None) -> Frame | None:
        """The latest frame, waited for; None at the end or at the time ``end`` of the monotonic clock."""
        with self._changed:
            while True:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return None
                if self._latest is not None or self._ended:
                    break
                self._changed.wait(left)
            frame, self._latest = self._latest, None
        if frame is None and self._failure:
            raise self._failure
        return frame

    def _run(self) -> None:
        try:
            self._connect_until_stopped()
        except BaseException as error:
            # Raised where the frames are taken.
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _connect_until_stopped(self) -> None:
        failures = 0
        while not self._stop.is_set():
            before = self.read
            try:
                self._read_connection()
            except HpedgeError as error:
                if not self.read and not isinstance(error, Lost):
                    raise
                failures = 1 if self.read > before else failures + 1
                if self._stop.is_set():
                    return
                self._wait(error, failures)

    def _wait(self, error: HpedgeError, failures: int) -> None:
        """Tell why the connection is lost and wait, longer with each failure in a row; too many raise ``error``."""
        if self.options.retries is not None and failures > self.options.retries:
            raise error
        wait = min(FIRST_WAIT * 2 ** min(failures - 1, 16), LONGEST_WAIT) * random.uniform(0.75, 1.25)
        say(f"{str(error).rstrip('.')}; again in {wait:.1f} s")
        self._stop.wait(wait)

    def _read_connection(self) -> None:
        before, last = self.read, time.monotonic()
        with closing(self._connect()) as shots:
            for shot in shots:
                if self._stop.is_set():
                    return
                now = time.monotonic()
                if shot is not None:
                    if self.read == before:
                        self._tell_connected()
                    last = now
                    self._put(shot, now)
                elif now - last > self.options.stall:
                    raise Lost(f"{self.name}: no frame for {self.options.stall:g} s.")
        raise Lost(f"{self.name}: the stream ended.")

    def _tell_connected(self) -> None:
        if self.read:
            self.reconnects += 1
        say(f"{self.name}: connected{' again' if self.read else ''}")

    def _put(self, shot: Callable[[int], Pixels], now: float) -> None:
        index = self.read
        self.read += 1
        if not self._thinning.takes(index, now):
            return
        with self._changed:
            self.dropped += self._latest is not None
            self._latest = Frame(self.name, shot, index, time.time())
            self._changed.notify_all()

    def summary(self) -> str:
        """What came of it, in words; empty before anything was read."""
        counted = f"{self.name}: {self.read} frames read, {self.dropped} dropped, {self.reconnects} reconnects"
        return counted if self.read else ""

    def close(self) -> None:
        """Stop reading. A read that hangs is left to its own timeout, in a thread that holds no program back."""
        self._stop.set()
        if self._thread:
            self._thread.join(_JOIN)
        with self._changed:
            self.dropped += self._latest is not None
            self._latest = None
            self._ended = True
            self._changed.notify_all()
