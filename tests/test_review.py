"""The review queue: which pictures it keeps."""

from hpdval_edge.monitor.review import ReviewQueue, read_review
from hpdval_edge.sources.frame import Frame


def doubt(margin, label="red"):
    return {
        "time": 0.0, "label": label, "score": 0.1, "threshold": 0.1, "probability": 0.5, "margin": margin,
        "labels": ("red", "blue"),
    }  # fmt: skip


def test_the_queue_is_bounded_prefers_doubt_and_is_spread(tmp_path):
    """Planted mistakes: the first that come, the nearest alone, which neighbouring frames fill; weights upside down."""
    queue = ReviewQueue(tmp_path, copies=False, size=50, seed=0)
    for number in range(4000):
        queue.offer(Frame(f"{number}.jpg", None), doubt(0.0 if number % 2 else 1.0), None)
    numbers = [int(entry.path.split(".")[0]) for entry in queue.heap]
    assert len(numbers) == len(set(numbers)) == 50
    assert sum(number % 2 for number in numbers) >= 35
    assert sum(not number % 2 for number in numbers) >= 1
    assert 15 < sum(number < 2000 for number in numbers) < 35


def test_the_queue_goes_on_where_it_stopped(tmp_path):
    """Planted mistakes: every run fills it anew; a picture that comes again is there twice."""
    whole = ReviewQueue(tmp_path / "whole", copies=False, size=20, seed=0)
    parts = tmp_path / "parts"
    for number in range(300):
        whole.offer(Frame(f"{number}.jpg", None), doubt(0.1), None)
    state = None
    for start in range(0, 300, 100):
        queue = ReviewQueue(parts, copies=False, size=20, seed=0)
        if state:
            queue.random.setstate(state)
        for number in range(start, start + 100):
            queue.offer(Frame(f"{number}.jpg", None), doubt(0.1), None)
        state = queue.random.getstate()
        queue.save()
    assert {entry.path for entry in read_review(parts)} == {entry.path for entry in whole.heap}
    kept = read_review(parts)[0]
    for _ in range(500):
        queue.offer(Frame(kept.path, None), doubt(0), None)
    assert [entry.path for entry in queue.heap].count(kept.path) == 1
