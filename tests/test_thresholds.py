"""Fitted thresholds against an exhaustive search."""

from fractions import Fraction

import numpy as np
import pytest

from hpdval_edge.training.metrics import multilabel_report
from hpdval_edge.training.thresholds import fit_thresholds


def f1(scores, targets, threshold):
    """F1 as an exact fraction."""
    hits = sum(bool(y) for s, y in zip(scores, targets, strict=True) if s >= threshold)
    predicted = sum(s >= threshold for s in scores)
    return Fraction(2 * hits, int(predicted) + int(np.sum(targets)))


def example(seed, levels=None, images=60, classes=4, rate=0.3):
    generator = np.random.default_rng(seed)
    targets = generator.random((images, classes)) < rate
    scores = generator.normal(size=(images, classes)).astype(np.float32) + targets
    if levels:
        scores = np.round(scores * levels) / levels
    return scores.astype(np.float32), targets


@pytest.mark.parametrize("levels", [None, 2], ids=["no ties", "ties"])
@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_has_a_higher_f1(seed, levels):
    """Planted mistakes: a threshold inside a tie group, the lower of two equal F1, the lowest score never tried."""
    scores, targets = example(seed, levels)
    thresholds, fitted = fit_thresholds(scores, targets)
    assert thresholds.dtype == np.float32 and fitted.dtype == bool and fitted.all()
    for c in range(4):
        column, labels = scores[:, c], targets[:, c]
        best = max(f1(column, labels, threshold) for threshold in column)
        assert f1(column, labels, thresholds[c]) == best
        # Of all scores that reach the best F1 the highest is the last one predicted.
        chosen = max(score for score in column if f1(column, labels, score) == best)
        assert column[column >= thresholds[c]].min() == chosen


def test_thresholds_lie_midway():
    """Planted mistake: the score of the last predicted image itself, which leaves no margin on its side."""
    scores = np.array([[9.0], [8], [7], [6], [5], [1], [0]], dtype=np.float32)
    targets = np.array([[1], [1], [1], [1], [1], [0], [0]])
    thresholds, _ = fit_thresholds(scores, targets)
    assert thresholds.tolist() == [3.0]
    # Everything positive: the lowest score, since nothing lies below it.
    assert fit_thresholds(scores, np.ones((7, 1)))[0].tolist() == [0.0]
    assert fit_thresholds(np.full((6, 1), 0.3), np.ones((6, 1)))[0].tolist() == [np.float32(0.3)]


def test_the_highest_of_equal_thresholds_wins():
    """F1 is 2/3 with 4, 7 and 10 images predicted. Planted mistake: the last maximum taken."""
    scores = np.arange(10.0, 0.0, -1)[:, None]
    targets = np.array([0, 1, 1, 1, 0, 0, 1, 0, 0, 1])[:, None]
    assert {f1(scores[:, 0], targets[:, 0], t) for t in (7, 4, 1)} == {Fraction(2, 3)}
    assert fit_thresholds(scores, targets)[0].tolist() == [6.5]


def test_rare_classes_take_the_global_threshold():
    """Planted mistakes: 5 positives counted as too few, a mean of the thresholds as the global one."""
    scores, targets = example(0, images=80)
    targets[:, 2] = False
    targets[:4, 2] = True
    targets[:, 3] = False
    targets[:5, 3] = True
    thresholds, fitted = fit_thresholds(scores, targets)
    assert fitted.tolist() == [True, True, False, True]
    best = max(f1(scores.ravel(), targets.ravel(), threshold) for threshold in scores.ravel())
    assert f1(scores.ravel(), targets.ravel(), thresholds[2]) == best
    own = max(f1(scores[:, 3], targets[:, 3], threshold) for threshold in scores[:, 3])
    assert f1(scores[:, 3], targets[:, 3], thresholds[3]) == own
    report = multilabel_report(scores, targets, [9] * 4, thresholds=thresholds[2])
    assert report["OF1"] == pytest.approx(100 * float(best))


def test_adjacent_floats_stay_apart():
    """Planted mistake: a midpoint that rounds down to the lower score and predicts it too."""
    for exponent in range(-20, 20):
        low = np.float32(1.5) * np.float32(2) ** exponent
        for below in (low, np.nextafter(low, np.float32(np.inf))):
            above = np.nextafter(below, np.float32(np.inf))
            scores = np.array([[above]] * 5 + [[below]] * 5, dtype=np.float32)
            targets = np.array([[1]] * 5 + [[0]] * 5)
            thresholds, _ = fit_thresholds(scores, targets)
            assert below < thresholds[0] <= above


def test_double_scores_are_rounded_as_a_bundle_does():
    """Planted mistake: two float64 scores separated by a threshold that float32 scores cannot honour."""
    scores = np.array([[0.3 + 1e-12]] * 5 + [[0.3]] * 5)
    targets = np.array([[1]] * 5 + [[0]] * 5)
    thresholds, _ = fit_thresholds(scores, targets)
    assert thresholds[0] == np.float32(0.3)


def test_order_of_the_images_does_not_matter():
    """Planted mistake: a sort whose ties depend on the list."""
    scores, targets = example(5, levels=1)
    expected, _ = fit_thresholds(scores, targets)
    before = scores.copy()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(scores))
        np.testing.assert_array_equal(fit_thresholds(scores[order], targets[order])[0], expected)
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 2)), "at least one positive"),
        (np.zeros((3, 2)), np.ones((3, 1)), r"got \[3, 1\]"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "got nan"),
        (np.zeros((3, 2), dtype=np.float16), np.ones((3, 2)), "got float16"),
        (np.full((3, 2), 1e300), np.ones((3, 2)), "float32, got larger"),
    ],
    ids=["no positive", "shape", "nan", "half", "too large"],
)
def test_wrong_arguments_are_named(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        fit_thresholds(scores, targets)
