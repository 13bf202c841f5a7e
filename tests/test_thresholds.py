"""Fitted thresholds against an exhaustive search, their shrinkage and its cross-fit."""

from fractions import Fraction

import numpy as np
import pytest

from hpdval_edge.errors import UsageError
from hpdval_edge.training import thresholds as module
from hpdval_edge.training.metrics import decision_quality, multilabel_report
from hpdval_edge.training.thresholds import F1, Objective, best_threshold, fit, parse_objective


def quality(scores, targets, threshold):
    """F1, precision and recall as exact fractions; precision 1 where nothing is predicted."""
    hits = sum(bool(y) for s, y in zip(scores, targets, strict=True) if s >= threshold)
    predicted, true = int(sum(s >= threshold for s in scores)), int(np.sum(targets))
    return Fraction(2 * hits, predicted + true), Fraction(hits, predicted) if predicted else 1, Fraction(hits, true)


def f1(scores, targets, threshold):
    return quality(scores, targets, threshold)[0]


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
    for column, labels in zip(scores.T, targets.T, strict=True):
        threshold = best_threshold(column, labels, F1)
        assert threshold.dtype == np.float32
        best = max(f1(column, labels, score) for score in column)
        assert f1(column, labels, threshold) == best
        # Of all scores that reach the best F1 the highest is the last one predicted.
        chosen = max(score for score in column if f1(column, labels, score) == best)
        assert column[column >= threshold].min() == chosen


@pytest.mark.parametrize("levels", [None, 2], ids=["no ties", "ties"])
@pytest.mark.parametrize("level", [0.3, 0.5, 0.8, 1.0])
def test_precision_and_recall_thresholds_are_the_best_that_reach_the_level(level, levels):
    """Planted mistakes: `>` for `>=` the level, the highest threshold of a precision, the lowest of a recall."""
    scores, targets = example(1, levels)
    for column, labels in zip(scores.T, targets.T, strict=True):
        exact = {score: quality(column, labels, score) for score in column}
        best = max(precision for _, precision, _ in exact.values())
        reached = [score for score in column if exact[score][1] >= min(Fraction(str(level)), best)]
        found = best_threshold(column, labels, Objective("precision", level))
        assert column[column >= found].min() == min(reached)
        reached = [score for score in column if exact[score][2] >= Fraction(str(level))]
        found = best_threshold(column, labels, Objective("recall", level))
        assert column[column >= found].min() == max(reached)


def test_thresholds_lie_midway():
    """Planted mistake: the score of the last predicted image itself, which leaves no margin on its side."""
    scores = np.array([[9.0], [8], [7], [6], [5], [1], [0]], dtype=np.float32)
    targets = np.array([[1], [1], [1], [1], [1], [0], [0]])
    thresholds = fit(scores, targets).values
    assert thresholds.tolist() == [3.0]
    # Everything positive: the lowest score, since nothing lies below it.
    assert fit(scores, np.ones((7, 1))).values.tolist() == [0.0]
    assert fit(np.full((6, 1), 0.3), np.ones((6, 1))).values.tolist() == [np.float32(0.3)]


def test_the_highest_of_equal_thresholds_wins():
    """F1 is 2/3 with 4, 7 and 10 images predicted. Planted mistake: the last maximum taken."""
    scores = np.arange(10.0, 0.0, -1)[:, None]
    targets = np.array([0, 1, 1, 1, 0, 0, 1, 0, 0, 1])[:, None]
    assert {f1(scores[:, 0], targets[:, 0], t) for t in (7, 4, 1)} == {Fraction(2, 3)}
    assert fit(scores, targets).values.tolist() == [6.5]


def shrunk(scores, targets, shrinkage, objective=F1):
    """Thresholds by the formula alone, from an exhaustive search per class and over all classes."""
    together = float(best_threshold(scores.ravel(), targets.ravel(), objective))
    values = []
    for column, labels in zip(scores.T, targets.T, strict=True):
        n = int(labels.sum())
        own = float(best_threshold(column, labels, objective)) if n else together
        values.append(n / (n + shrinkage) * own + (1 - n / (n + shrinkage)) * together if n else together)
    return values


def with_rare_classes():
    """Classes of 24, 20, 3 and 0 positives."""
    scores, targets = example(0, images=80)
    targets[:, 2:] = False
    targets[:3, 2] = True
    return scores, targets


@pytest.mark.parametrize("shrinkage", module.SHRINKAGES)
def test_few_positives_draw_a_threshold_to_the_shared_one(shrinkage, monkeypatch):
    """Planted mistakes: the weights swapped, positives of all classes as n, a mean of the thresholds as shared."""
    monkeypatch.setattr(module, "SHRINKAGES", (shrinkage,))
    scores, targets = with_rare_classes()
    result = fit(scores, targets)
    assert result.shrinkage == shrinkage
    assert result.fitted.tolist() == [True, True, True, False]
    np.testing.assert_allclose(result.values, shrunk(scores, targets, shrinkage), rtol=1e-6)
    best = max(f1(scores.ravel(), targets.ravel(), threshold) for threshold in scores.ravel())
    report = multilabel_report(scores, targets, [9] * 4, thresholds=result.values[3])
    assert report["OF1"] == pytest.approx(100 * float(best))


@pytest.mark.parametrize("objective", ["f1", "precision=0.6", "recall=0.7"])
def test_cross_fit_judges_pictures_it_did_not_see(objective):
    """The same in loops. Planted mistakes: thresholds of all pictures, m chosen on the judged fold, the
    first m, one view alone.
    """
    objective = parse_objective(objective)
    scores, targets = with_rare_classes()
    folds = module.fold_numbers(scores, targets)
    assert np.bincount(folds).tolist() == [16] * 5
    predicted = np.zeros((len(module.SHRINKAGES), *scores.shape), bool)
    for fold in range(5):
        seen, held = folds != fold, folds == fold
        for m, shrinkage in enumerate(module.SHRINKAGES):
            predicted[m, held] = scores[held] >= np.float32(shrunk(scores[seen], targets[seen], shrinkage, objective))

    def merit(m, rows):
        report = decision_quality(*counts(predicted[m, rows], targets[rows]))
        if objective.name == "f1":
            return report["OF1"] + report["CF1"]
        wanted, other = "PR" if objective.name == "precision" else "RP"
        level = 100 * objective.level
        near = min(report[f"O{wanted}"], level) + min(report[f"C{wanted}"], level)
        return near, report[f"O{other}"] + report[f"C{other}"]

    def best(rows):
        return max(range(len(module.SHRINKAGES)), key=lambda m: merit(m, rows))

    honest = np.zeros(scores.shape, bool)
    for fold in range(5):
        honest[folds == fold] = predicted[best(folds != fold), folds == fold]
    result = fit(scores, targets, objective)
    assert result.shrinkage == module.SHRINKAGES[best(np.arange(80))]
    assert result.cross_fitted == pytest.approx(decision_quality(*counts(honest, targets)))
    assert result.reached == pytest.approx(decision_quality(*counts(scores >= result.values, targets)))


def counts(predicted, targets):
    return (predicted & targets).sum(axis=0), predicted.sum(axis=0), targets.sum(axis=0)


def test_cross_fitted_figures_are_honest_and_shrinking_helps():
    """On many fresh pictures. Planted mistakes: in-sample figures as cross-fitted ones; never shrinking."""
    gaps, gains = [], []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        rates, lift = np.geomspace(0.25, 0.006, 30), generator.uniform(1.5, 3.5, 30)
        targets = generator.random((3000, 30)) < rates
        scores = (generator.normal(size=targets.shape) + lift * targets).astype(np.float32)
        result = fit(scores[:150], targets[:150])
        own = module._Unshrunk(scores[:150], targets[:150], F1).shrunk(0)
        fresh = [
            decision_quality(*counts(scores[150:] >= values, targets[150:]))["OF1"] for values in (result.values, own)
        ]
        gaps.append([result.reached["OF1"] - fresh[0], result.cross_fitted["OF1"] - fresh[0]])
        gains.append(fresh[0] - fresh[1])
    in_sample, cross_fitted = np.mean(gaps, axis=0)
    assert in_sample > 2 > abs(cross_fitted)
    assert np.mean(gains) > 1


def test_quality_is_that_of_the_report():
    """Planted mistake: another CF1 than DESIGN section 6 has, e.g. a class without positives counted."""
    scores, targets = with_rare_classes()
    result = fit(scores, targets)
    report = multilabel_report(scores, targets, [9] * 4, thresholds=result.values)
    assert (result.reached["OF1"], result.reached["CF1"]) == pytest.approx((report["OF1"], report["CF1"]))
    predicted = scores >= result.values
    assert result.reached["OP"] == pytest.approx(100 * targets[predicted].mean())
    assert result.reached["OR"] == pytest.approx(100 * predicted[targets].mean())
    np.testing.assert_allclose(result.recall[:3], [predicted[targets[:, c], c].mean() for c in range(3)])
    assert np.isnan(result.recall[3])


def test_too_few_pictures_for_a_cross_fit():
    """Planted mistake: a division by the none that are left."""
    result = fit(np.array([[0.5, 0.1]], np.float32), [[1, 0]])
    assert result.cross_fitted is None
    assert result.values.tolist() == pytest.approx([0.4, 0.3])
    two = fit(np.array([[0.5], [0.1]], np.float32), [[1], [0]])
    assert two.cross_fitted is None
    # Two positives in two pictures can be judged.
    assert fit(np.array([[0.5], [0.1]], np.float32), [[1], [1]]).cross_fitted["OR"] == 50.0


@pytest.mark.parametrize("text", ["f2", "precision", "precision=", "precision=0", "recall=1.1", "recall=nan", "f1=0.5"])
def test_wrong_objectives_are_named(text):
    with pytest.raises(UsageError, match=f"objective '{text}' is not f1, precision=P or recall=R"):
        parse_objective(text)


def test_objectives_read_as_they_print():
    for text in ("f1", "precision=0.9", "recall=1"):
        assert str(parse_objective(text)) == text


def test_adjacent_floats_stay_apart():
    """Planted mistake: a midpoint that rounds down to the lower score and predicts it too."""
    for exponent in range(-20, 20):
        low = np.float32(1.5) * np.float32(2) ** exponent
        for below in (low, np.nextafter(low, np.float32(np.inf))):
            above = np.nextafter(below, np.float32(np.inf))
            scores = np.array([[above]] * 5 + [[below]] * 5, dtype=np.float32)
            targets = np.array([[1]] * 5 + [[0]] * 5)
            thresholds = fit(scores, targets).values
            assert below < thresholds[0] <= above


def test_double_scores_are_rounded_as_a_bundle_does():
    """Planted mistake: two float64 scores separated by a threshold that float32 scores cannot honour."""
    scores = np.array([[0.3 + 1e-12]] * 5 + [[0.3]] * 5)
    targets = np.array([[1]] * 5 + [[0]] * 5)
    thresholds = fit(scores, targets).values
    assert thresholds[0] == np.float32(0.3)


def test_order_of_the_images_does_not_matter():
    """Planted mistake: a sort whose ties depend on the list."""
    scores, targets = example(5, levels=1)
    expected = fit(scores, targets).values
    before = scores.copy()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(scores))
        np.testing.assert_array_equal(fit(scores[order], targets[order]).values, expected)
        assert fit(scores[order], targets[order]).cross_fitted == fit(scores, targets).cross_fitted
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
        fit(scores, targets)
