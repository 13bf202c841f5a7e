"""Cameras and streams: what is kept, told, tried again and given up, with scripted connections."""

import threading

import numpy as np
import pytest

from hpdval_edge.errors import UsageError
from hpdval_edge.sources import live
from hpdval_edge.sources.live import LiveSource, Lost
from hpdval_edge.sources.options import SourceOptions

# Nothing takes as long as this; what does not come in time fails its test instead of hanging it.
LONG = 60.0


class Script:
    """A connection that plays one list a time: numbers are frames, None is nothing yet, an error is raised, and what
    is callable is called.
    """

    def __init__(self, *connections):
        self.connections = list(connections)
        self.opened = self.closed = 0

    def __call__(self):
        self.opened += 1
        try:
            for step in self.connections.pop(0) if self.connections else [Lost("gone.")]:
                if isinstance(step, Exception):
                    raise step
                if callable(step):
                    step()
                elif step is None:
                    yield None
                else:
                    yield lambda size, step=step: np.full((1, 1, 3), step, np.uint8)
        finally:
            self.closed += 1


@pytest.fixture
def waits(monkeypatch):
    """Waiting takes no time and is noted; jitter is none."""
    noted = []
    monkeypatch.setattr(live.random, "uniform", lambda low, high: 1.0)

    def source(script, **options):
        made = LiveSource("door", script, SourceOptions(**options))
        made._stop.wait = noted.append
        return made

    source.noted = noted
    return source


def test_of_frames_that_nobody_takes_the_latest_alone_is_kept(waits):
    """Mistakes: a queue that lags, the oldest kept, dropped frames not counted."""
    come, taken = threading.Event(), threading.Event()
    script = Script([0, lambda: taken.wait(LONG), 1, 2, 3, 4, come.set, lambda: taken.wait(LONG)])
    source = waits(script, retries=0)
    frames = iter(source)
    first = next(frames)
    assert (first.index, first.name) == (0, "door#0")
    taken.set()
    assert come.wait(LONG)
    frame = next(frames)
    assert frame.index == 4 and frame.read(8)[0, 0, 0] == 4
    with pytest.raises(Lost, match=r"door: the stream ended"):
        next(frames)
    assert source.summary() == "door: 5 frames read, 3 dropped, 0 reconnects"
    source.close()


def test_a_lost_connection_is_made_again_and_indexes_go_on(waits, capsys):
    """Mistakes: a loss told to nobody, indexes from 0 again, a connection left open, waits that do not grow or begin
    anew after a frame.
    """
    steps = threading.Semaphore(0)

    def wait():
        assert steps.acquire(timeout=LONG)

    gone = Lost("door: it went away.")
    script = Script([0, wait], [gone], [gone], [gone], [1, wait], [2, wait])
    source = waits(script, retries=4)
    frames = iter(source)
    indexes = []
    for _ in range(3):
        indexes.append(next(frames).index)
        steps.release()
    assert indexes == [0, 1, 2]
    with pytest.raises(Lost):
        next(frames)
    source.close()
    assert source.reconnects == 2 and script.opened == script.closed == 10
    assert waits.noted == [0.5, 1, 2, 4, 0.5, 0.5, 1, 2, 4]
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == [
        "door: connected",
        "door: the stream ended; again in 0.5 s",
        "door: it went away; again in 1.0 s",
    ]
    assert said.count("door: connected again") == 2


def test_waits_are_bounded(waits):
    source = waits(Script(), retries=12)
    with pytest.raises(Lost):
        next(iter(source))
    assert waits.noted[-3:] == [30, 30, 30]


def test_jitter_is_around_the_wait(monkeypatch):
    """Mistakes: all boards of a site that come back at the same moment."""
    asked = []
    monkeypatch.setattr(live.random, "uniform", lambda low, high: asked.append((low, high)) or 1.0)
    source = LiveSource("door", Script(), SourceOptions(retries=1))
    source._stop.wait = lambda seconds: None
    with pytest.raises(Lost):
        next(iter(source))
    assert asked == [(0.75, 1.25)]


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_are_counted(waits, retries):
    """Mistakes: one attempt too many, endless attempts."""
    script = Script()
    with pytest.raises(Lost, match="gone"):
        next(iter(waits(script, retries=retries)))
    assert script.opened == retries + 1


def test_what_waiting_would_not_mend_ends_it_before_the_first_frame_only(waits):
    """Mistakes: a wrong password asked for for ever; a camera that is being restarted given up."""
    wrong = UsageError("door: wrong password.")
    with pytest.raises(UsageError, match="wrong password"):
        next(iter(waits(Script([wrong]), retries=3)))
    script = Script([0], [wrong], [1])
    source = waits(script, retries=2)
    with pytest.raises(Lost):
        list(source)
    assert source.read == 2 and script.opened == 5


def test_any_error_of_the_thread_is_raised_where_frames_are_taken(waits):
    """Mistakes: a thread that dies in silence while the program waits for ever."""
    with pytest.raises(ZeroDivisionError):
        next(iter(waits(Script([ZeroDivisionError()]))))


def test_a_connection_that_gives_no_frames_is_lost(waits, monkeypatch):
    """Mistakes: packets without pictures taken for life."""
    clock = iter(range(1000))
    monkeypatch.setattr(live.time, "monotonic", lambda: next(clock))
    script = Script([0, *[None] * 500])
    with pytest.raises(Lost, match="door: no frame for 10 s"):
        list(waits(script, retries=0, stall=10))


def test_every_and_fps_choose_before_the_latest_is_kept(waits):
    """Mistakes: of every 2nd frame taken, none where a slow consumer meets odd ones only; thinned called dropped."""
    source = waits(Script([*range(7)]), every=3, retries=0)
    with pytest.raises(Lost):
        list(source)
    assert source.dropped in (0, 1, 2) and source.read == 7
    taken = threading.Event()
    source = waits(Script([0, 1, 2, 3, 4, lambda: taken.wait(LONG)]), every=3, retries=0)
    frames = iter(source)
    indexes = [next(frames).index]
    if indexes == [0]:
        indexes.append(next(frames).index)
    assert indexes[-1] == 3
    taken.set()
    source.close()


def test_duration_and_close_end_the_frames(waits):
    silent = threading.Event()
    source = waits(Script([0, lambda: silent.wait(LONG)]), duration=0.3)
    assert [frame.index for frame in source] == [0]
    silent.set()
    source.close()
    assert not source._thread.is_alive()
