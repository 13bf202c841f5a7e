"""The numbers behind a report's figures, by hand and against the metrics: curves, reliability, ranks, differences."""

import numpy as np
import pytest

from hpdval_edge.config import load_config
from hpdval_edge.training.average_precision import average_precision
from hpdval_edge.training.metrics import multilabel_report
from hpdval_edge.training.report.chart import Figure, draw, spread
from hpdval_edge.training.report.curves import co_occurrence, decide, precision_recall, reliability
from hpdval_edge.training.report.differences import differences
from hpdval_edge.training.report.pictures import best_first, label_ranks


def test_the_area_under_the_curve_is_the_ap():
    """With ties. Planted mistake: every picture is a threshold of its own."""
    rng = np.random.default_rng(0)
    scores = np.round(rng.random(200), 1).astype(np.float32)
    positive = rng.random(200) < 0.3
    recall, precision = precision_recall(scores, positive)
    area = float((np.diff(recall, prepend=0) * precision).sum())
    assert area == pytest.approx(average_precision(scores[:, None], positive[:, None])[0])
    assert recall[-1] == 1


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    scores = np.linspace(1, 0, 5000)
    recall, precision = precision_recall(scores, np.arange(5000) % 2 == 1)
    assert len(recall) <= 300
    assert recall[0] == pytest.approx(1 / 2500)
    assert (recall[-1], precision[-1]) == (1, 0.5)


def test_reliability_has_the_error_of_the_report():
    """Planted mistake: bins counted equally."""
    rng = np.random.default_rng(0)
    probabilities = rng.random((50, 6)) ** 3
    targets = rng.random((50, 6)) < 0.2
    expected = multilabel_report(probabilities, targets, np.full(6, 30), probabilities=probabilities)["ECE"]
    measured = reliability(probabilities, targets)
    assert measured.error == pytest.approx(expected)
    assert measured.averages == pytest.approx((probabilities.mean(), targets.mean()))
    assert measured.pairs.sum() == 300


def test_co_occurrence_reads_row_by_row():
    """Planted mistake: transposed."""
    targets = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]], np.uint8)
    shares = co_occurrence(targets, np.array([0, 1, 2]))
    assert shares[0, 1] == 0.5
    assert shares[1, 0] == 1
    assert np.isnan(np.diag(shares)).all()
    assert np.isnan(shares[2]).all()


def test_decisions_by_hand():
    scores = np.array([[0.9, 0.1], [0.6, 0.2], [0.2, 0.3]], np.float32)
    positive = np.array([[True, False], [False, False], [True, False]])
    made = decide(scores, positive, np.array([0.5, 0.5], np.float32))
    assert made.precision[0] == made.recall[0] == made.f1[0] == 50
    assert np.isnan([made.precision[1], made.recall[1], made.f1[1]]).all()


def test_pictures_are_ordered_by_the_ranks_of_their_true_labels():
    """Planted mistake: the mean rank alone, which calls two labels at ranks 1 and 2 worse than one at rank 1."""
    scores = np.array([[3, 2, 1, 0], [9, 8, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [1, 1, 1, 1]], np.float32)
    positive = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    assert label_ranks(scores[:1]).tolist() == [[1, 2, 3, 4]]
    assert best_first(scores, positive).tolist() == [1, 0, 2]


def test_only_changed_settings_differ_from_the_paper():
    paper = load_config(preset="paper", values={"data.path": "birds", "train.threads": 3})
    assert differences(paper) == []
    changed = load_config(preset="paper", values={"data.path": "birds", "fuse.alpha": 0.5, "train.stage1.lr": 0})
    rows = [(row.key, row.paper, row.here) for row in differences(changed)]
    assert rows == [("fuse.alpha", "0.4", "0.5"), ("train.stage1.lr", "1e-05", "automatic")]


def test_labels_at_line_ends_keep_apart():
    moved = spread([5, 5.1, 9, 5.2], gap=1)
    assert np.argsort(moved).tolist() == [0, 1, 3, 2]
    assert np.diff(np.sort(moved)).min() >= 1 - 1e-6
    assert spread([1, 5], gap=1) == [1, 5]


def test_other_warnings_of_a_figure_are_passed_on():
    import warnings

    def paint(narrow):
        warnings.warn("something odd", stacklevel=1)
        return Figure()

    with pytest.raises(UserWarning, match="something odd"):
        draw("x", "y", paint)
