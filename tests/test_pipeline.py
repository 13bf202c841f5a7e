"""Frames come out in order whatever the threads do, few are under way at once, and everything ends when it should."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from hpdval_edge.errors import BadData
from hpdval_edge.infer import infer
from hpdval_edge.pipeline import MOST_WORKERS, Schedule, classify, schedule
from hpdval_edge.sources.frame import Frame

SIZE = 4
PLAN = Schedule(workers=3, engine_threads=1, ahead=4)


class Numbers:
    """Stands for a Predictor: a picture is an array full of one number, which is also its prediction."""

    bundle = SimpleNamespace(manifest=SimpleNamespace(image_size=SIZE))
    engine = SimpleNamespace(name="double")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def empty_batch(self, count):
        return np.full((count, 3, SIZE, SIZE), np.nan, np.float32)

    def prepare_into(self, picture, row):
        row[:] = picture

    def predict_images(self, images, patch_scores=True):
        assert not np.isnan(images).any()
        self.batches.append(len(images))
        return [int(row.mean()) for row in images]


class Source:
    """``count`` frames, or endless ones, that count themselves; ``read(index, size)`` gives their pictures."""

    def __init__(self, count=None, read=lambda index, size: np.full((1,), index), live=False) -> None:
        self.count, self.read, self.live = count, read, live
        self.taken = self.closed = 0

    def __iter__(self):
        while self.taken != self.count and not self.closed:
            index, self.taken = self.taken, self.taken + 1
            yield Frame(f"{index}.jpg", lambda size, index=index: self.read(index, size))

    def close(self):
        self.closed += 1


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("hpedge-worker")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not workers()


def run(source, batch=2, plan=PLAN, keep_pictures=False, on_bad=None, predictor=None):
    return classify(predictor or Numbers(), source, batch=batch, plan=plan, keep_pictures=keep_pictures, on_bad=on_bad)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 14, 15])
def test_results_are_in_order(batch, count):
    """The first frame is only read when another step's was. Planted mistake: steps queued when they are done."""
    another = threading.Event()

    def read(index, size):
        if index >= batch:
            another.set()
        elif count > batch:
            assert another.wait(60)
        return np.full((1,), index)

    source = Source(count, read)
    results = list(run(source, batch))
    assert [result.prediction for result in results] == list(range(count))
    assert [result.frame.source for result in results] == [f"{index}.jpg" for index in range(count)]
    assert source.closed == 1
    assert all(result.picture is None for result in results)


def test_pictures_are_kept_where_they_are_asked_for():
    """Planted mistakes: the last picture of a step kept for all; predictions shifted behind a frame that is bad."""
    bad = []

    def read(index, size):
        assert size == SIZE
        if index % 3 == 1:
            raise BadData(f"{index}.jpg: empty")
        return np.full((1,), index)

    results = list(run(Source(12, read), 4, keep_pictures=True, on_bad=lambda *entry: bad.append(entry)))
    good = [index for index in range(12) if index % 3 != 1]
    assert [result.prediction for result in results] == good
    assert [int(result.picture[0]) for result in results] == good
    assert [(frame.source, str(error)) for frame, error in bad] == [
        (f"{index}.jpg", f"{index}.jpg: empty") for index in (1, 4, 7, 10)
    ]


def test_only_bad_frames_reach_no_engine():
    """Planted mistake: an empty batch handed to the engine."""

    def read(index, size):
        raise BadData("x")

    predictor, bad = Numbers(), []
    assert list(run(Source(5, read), on_bad=lambda *entry: bad.append(entry), predictor=predictor)) == []
    assert len(bad) == 5 and predictor.batches == []


@pytest.mark.parametrize(("live", "batch", "most"), [(False, 2, 4 * 2), (False, 1, 4), (True, 1, 2)])
def test_few_frames_are_under_way(live, batch, most):
    """Taken and not written yet. Planted mistakes: room given back when a step is done; ahead=4 for live sources."""
    plan = schedule(0, live) if live else PLAN
    written, seen = 0, []
    source = Source(60, lambda index, size: seen.append(source.taken - written) or np.full((1,), index), live)
    for _ in run(source, batch, plan):
        written += 1
    assert written == 60
    # The results of a step whose turn it is are handed out one by one while its place is still taken.
    assert max(seen) <= most + batch - 1


@pytest.mark.parametrize(("where", "batch"), [("read", 1), ("source", 1), ("source", 3), ("engine", 1)])
def test_an_error_comes_out_behind_the_results_before_it(where, batch):
    """Planted mistakes: errors of the source swallowed (the caller waits for ever); the source left open; the frames
    that the source gave to the same step dropped.
    """

    class Odd(Source):
        def __iter__(self):
            for frame in super().__iter__():
                if where == "source" and frame.source == "5.jpg":
                    raise LookupError("five")
                yield frame

    class Engine(Numbers):
        def predict_images(self, images, patch_scores=True):
            if where == "engine" and images.max() == 5:
                raise LookupError("five")
            return super().predict_images(images)

    def read(index, size):
        if where == "read" and index == 5:
            raise LookupError("five")
        return np.full((1,), index)

    source, got = Odd(None, read), []
    with pytest.raises(LookupError, match="five"):
        for result in run(source, batch, predictor=Engine()):
            got.append(result.prediction)
    assert got == list(range(5))
    assert source.closed == 1


def test_a_caller_that_leaves_ends_everything():
    """Planted mistake: no room given to threads that wait for it, so that the end waits for them."""
    source = Source()
    results = run(source)
    assert next(results).prediction == 0
    results.close()
    assert source.closed == 1


def test_a_live_source_is_closed_before_its_thread_is_waited_for():
    """Its thread waits for a frame that never comes. Planted mistake: joined first, which never ends."""
    waiting, woken = threading.Event(), threading.Event()

    class Camera(Source):
        def __iter__(self):
            yield from Source(1)
            waiting.set()
            assert woken.wait(60)

        def close(self):
            super().close()
            woken.set()

    camera = Camera(live=True)
    results = run(camera, 1, schedule(0, live=True))
    next(results)
    assert waiting.wait(60)
    results.close()
    assert camera.closed == 1


def test_leaving_while_a_frame_is_fetched_ends_everything():
    """Frames of a film take time to fetch. Planted mistake: the frame that came behind the end undid the end."""
    fetching, ended = threading.Event(), threading.Event()

    class Film(Source):
        def __iter__(self):
            for frame in super().__iter__():
                if self.taken == 3:
                    fetching.set()
                    assert ended.wait(60)
                yield frame

    film = Film()
    results = run(film, 1)
    next(results)
    assert fetching.wait(60)
    work = results.gi_frame.f_locals["work"]
    leaving = threading.Thread(target=results.close, daemon=True)
    leaving.start()
    while not work.stopped:
        pass
    ended.set()
    leaving.join(20)
    film.close()
    assert not leaving.is_alive()


@pytest.mark.parametrize("where", ["frame", "source"])
def test_a_read_that_hangs_is_left_behind(monkeypatch, where):
    """As of a file whose server went away, and Ctrl-C. Planted mistakes: waited for; its picture given to the engine,
    which the end of the program may have taken apart.
    """
    monkeypatch.setattr("hpdval_edge.pipeline.PATIENCE", 0.05)
    hangs, answers = threading.Event(), threading.Event()

    def wait():
        hangs.set()
        assert answers.wait(60)

    class Away(Source):
        def __iter__(self):
            for frame in super().__iter__():
                if where == "source" and self.taken == 3:
                    wait()
                yield frame

    def read(index, size):
        if where == "frame" and index == 2:
            wait()
        return np.full((1,), index)

    predictor, source = Numbers(), Away(None, read)
    results = run(source, 1, predictor=predictor)
    next(results)
    assert hangs.wait(60)
    closing = threading.Thread(target=results.close, daemon=True)
    closing.start()
    closing.join(20)
    ended, left, before = not closing.is_alive(), workers(), len(predictor.batches)
    answers.set()
    for thread in (closing, *left):
        thread.join(60)
    assert ended and left and source.closed == 1
    assert len(predictor.batches) == before


def test_an_engine_that_takes_long_is_waited_for(monkeypatch):
    """Python must not end under its feet. Planted mistake: every thread left behind after a while."""
    monkeypatch.setattr("hpdval_edge.pipeline.PATIENCE", 0.01)
    runs, ready, closed = threading.Event(), threading.Event(), threading.Event()

    class Slow(Numbers):
        def predict_images(self, images, patch_scores=True):
            if images.max() == 3:
                runs.set()
                assert ready.wait(60)
            return super().predict_images(images)

    results = run(Source(), 1, predictor=Slow())
    next(results)
    assert runs.wait(60)
    closing = threading.Thread(target=lambda: (results.close(), closed.set()), daemon=True)
    closing.start()
    assert not closed.wait(0.3)
    ready.set()
    closing.join(60)
    assert closed.is_set()


def test_an_output_that_fails_ends_everything():
    """Planted mistake: outputs closed only after a good end."""

    class Full:
        pictures, closed = False, False

        def write(self, result):
            raise OSError("disk full")

        def close(self):
            self.closed = True

    source, output = Source(), Full()
    with pytest.raises(OSError, match="disk full"):
        infer(Numbers(), source, [output], plan=PLAN)
    assert output.closed and source.closed == 1


def test_an_output_that_cannot_be_closed_keeps_no_other_open():
    """Planted mistake: closed one after another, up to the first that raises."""
    closed = []

    class Closes:
        pictures = False

        def __init__(self, name):
            self.name = name

        def write(self, result):
            pass

        def close(self):
            closed.append(self.name)
            if self.name == "full":
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        infer(Numbers(), Source(3), [Closes("full"), Closes("other")], plan=PLAN)
    assert closed == ["full", "other"]


def test_a_live_source_gives_frames_one_by_one():
    """Planted mistake: the batch that was asked for, which waits for frames to come."""
    predictor = Numbers()
    assert infer(predictor, Source(5, live=True), [], plan=schedule(0, live=True), batch=8) == (5, 0)
    assert predictor.batches == [1] * 5


def test_a_bundle_that_is_loaded_again_meanwhile_changes_no_step_that_is_under_way():
    """Planted mistake: each call asks the predictor anew, so that one model gets what was prepared for another."""

    class Watched(Numbers):
        loaded = 1

        def prepare_into(self, picture, row):
            row[:] = self.loaded

        def predict_images(self, images, patch_scores=True):
            return [(self.loaded, int(row.mean())) for row in images]

    def read(index, size):
        # As another thread does that takes the next frame.
        predictor.loaded += 1
        return np.full((1,), index)

    predictor = Watched()
    plan = Schedule(workers=1, engine_threads=1, ahead=1)
    for number, result in enumerate(run(Source(6, read), 2, plan, predictor=predictor)):
        loaded = 1 + number // 2 * 2
        assert result.prediction == (loaded, loaded)


@pytest.mark.parametrize(("seconds", "looks"), [(600, 1), (0, 5)])
def test_a_bundle_that_cannot_be_used_is_not_read_again_for_every_frame(monkeypatch, seconds, looks):
    """To read it means to hash all of it. Planted mistakes: read anew before each frame; never read again."""

    class Broken(Numbers):
        looks = 0

        def reload(self):
            self.looks += 1
            raise BadData("model.hpedge: not whole.")

    monkeypatch.setattr("hpdval_edge.infer.RETRY", seconds)
    predictor = Broken()
    assert infer(predictor, Source(5, live=True), [], plan=schedule(0, live=True), watch=True) == (5, 0)
    assert predictor.looks == looks


@pytest.mark.parametrize(("cpus", "workers", "each"), [(1, 1, 1), (2, 2, 1), (4, 4, 1), (9, 4, 2), (16, 4, 4)])
def test_all_cpus_are_used(monkeypatch, cpus, workers, each):
    """Planted mistake: a worker a CPU, whatever their number."""
    monkeypatch.setattr("hpdval_edge.pipeline.usable_cpus", lambda: cpus)
    for plan in (schedule(0, live=False), schedule(cpus, live=False)):
        assert (plan.workers, plan.engine_threads) == (workers, each)
        assert plan.workers <= MOST_WORKERS
    assert schedule(0, live=True).engine_threads == 0
