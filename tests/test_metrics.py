"""Evaluation against scikit-learn, hand-computed cases and the likely mistakes of METHOD section 15."""

import json
import math
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from hpdval_edge.training.average_precision import average_precision
from hpdval_edge.training.metrics import class_groups, multilabel_report


def example(seed=0, images=200, classes=6, levels=None, dtype=np.float64):
    """Scores and targets with at least one positive per class; `levels` rounds scores so that they tie."""
    generator = np.random.default_rng(seed)
    targets = generator.random((images, classes)) < np.linspace(0.03, 0.5, classes)
    targets[0] = True
    scores = generator.normal(size=(images, classes)) + targets
    if levels:
        scores = np.round(scores * levels) / levels
    return scores.astype(dtype), targets


def counts_of(path, classes):
    """0/1 targets [n,C] of a list: `path id id ...` per line."""
    rows = [{int(field) for field in line.split()[1:]} for line in path.read_text().splitlines()]
    return np.array([[i in row for i in range(classes)] for row in rows])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [None, 4, 1], ids=["no ties", "ties", "mostly ties"])
def test_average_precision_equals_scikit_learn(levels, dtype):
    """METHOD 15 row 11: ties broken by the order of the list; interpolated or 11-point AP."""
    scores, targets = example(levels=levels, dtype=dtype)
    expected = [average_precision_score(targets[:, c], scores[:, c]) for c in range(targets.shape[1])]
    np.testing.assert_allclose(average_precision(scores, targets), expected, rtol=1e-12)


def test_average_precision_by_hand():
    """Positives at ranks 1 and 3 of 4: (1/1 + 2/3) / 2; all tied: the share of positives; absent: NaN."""
    scores = np.array([[4.0, 1.0, 1.0], [3.0, 1.0, 2.0], [2.0, 1.0, 3.0], [1.0, 1.0, 4.0]])
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(average_precision(scores, targets), [5 / 6, 1 / 4, math.nan], rtol=1e-15)
    # -0.0 and 0.0 are one score.
    zeros = np.array([[0.0], [-0.0]], dtype=np.float32)
    assert average_precision(zeros, np.array([[0], [1]])).item() == 0.5


def test_average_precision_is_not_the_11_point_one():
    """METHOD 15 row 11: VOC07's mean of the best precision at recalls 0, 0.1, ..., 1, here 28/33 and not 5/6.

    Planted mistake: each precision replaced by the best at the same or a higher recall, which gives 1/2 for 5/12.
    """
    scores = np.array([[4.0, 4], [3, 3], [2, 2], [1, 1]])
    targets = np.array([[1, 0], [0, 1], [1, 0], [0, 0]])
    targets[3, 1] = 1
    found = average_precision(scores, targets)
    np.testing.assert_allclose(found, [5 / 6, 1 / 2], rtol=1e-15)
    assert [eleven_point(scores[:, c], targets[:, c]) for c in range(2)] == pytest.approx([28 / 33, 1 / 2])
    later = np.array([[0], [1], [0], [0], [1], [1]])
    ranked = np.arange(6.0, 0, -1)[:, None]
    assert average_precision(ranked, later).item() == pytest.approx((1 / 2 + 2 / 5 + 3 / 6) / 3)
    assert eleven_point(ranked[:, 0], later[:, 0]) == pytest.approx(1 / 2)


def eleven_point(scores, targets):
    """AP of the VOC2007 kit for scores [n] without ties and targets [n]."""
    hits = np.cumsum(targets[np.argsort(-scores)])
    recall, precision = hits / hits[-1], hits / np.arange(1, len(hits) + 1)
    return np.mean([precision[recall >= level / 10 - 1e-12].max() for level in range(11)])


def test_order_and_monotone_maps_of_the_images_do_not_matter():
    """METHOD 15 row 11: a sort that keeps the list's order in ties; float16 inside; AP(s) == AP(20 s + 3)."""
    scores, targets = example(levels=2)
    expected = average_precision(scores, targets)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(scores))
        np.testing.assert_array_equal(average_precision(scores[order], targets[order]), expected)
    np.testing.assert_array_equal(average_precision(20 * scores + 3, targets), expected)
    close = np.array([[0.5], [0.5 + 2**-13]], dtype=np.float32)  # one score in float16, two in float32
    assert average_precision(close, np.array([[0], [1]])).item() == 1.0


@pytest.mark.parametrize("levels", [None, 3], ids=["no ties", "ties"])
def test_weighted_average_precision(levels):
    """Planted mistakes: weights forgotten among the positives; zero weights counted as one image."""
    scores, targets = example(images=60, levels=levels)
    generator = np.random.default_rng(1)
    counts = generator.multinomial(60, np.full(60, 1 / 60), size=7)
    weights = generator.random((7, 60)) * (generator.random((7, 60)) < 0.7)
    repeated, weighted = average_precision(scores, targets, counts), average_precision(scores, targets, weights)
    assert repeated.shape == weighted.shape == (7, 6)
    for r in range(7):
        rows = np.repeat(np.arange(60), counts[r])
        for c in range(6):
            if not targets[rows, c].any():
                assert np.isnan(repeated[r, c])
                continue
            drawn = average_precision_score(targets[rows, c], scores[rows, c])
            assert repeated[r, c] == pytest.approx(drawn, rel=1e-12)
            exact = average_precision_score(targets[:, c], scores[:, c], sample_weight=weights[r])
            assert weighted[r, c] == pytest.approx(exact, rel=1e-12)
    np.testing.assert_allclose(average_precision(scores, targets, counts[2]), repeated[2], rtol=1e-14)
    assert np.isnan(average_precision(scores, targets, np.zeros(60))).all()
    assert average_precision(scores, targets, counts[:0]).shape == (0, 6)


def test_chunks_of_weights_do_not_change_the_result(monkeypatch):
    """Planted mistake: the last, shorter chunk lost."""
    scores, targets = example(images=50)
    weights = np.random.default_rng(0).random((11, 50))
    whole = average_precision(scores, targets, weights)
    monkeypatch.setattr("hpdval_edge.training.average_precision.GATHERED", 200)
    np.testing.assert_allclose(average_precision(scores, targets, weights), whole, rtol=1e-14)


def test_report_by_hand():
    """Three classes of AP 5/6 (head), 1/2 (medium), 1 (tail) and an absent head class."""
    scores = np.array([[4.0, 1, 4, 0], [3, 2, 3, 0], [2, 1, 2, 0], [1, 1, 1, 1]])
    targets = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]])
    report = multilabel_report(scores, targets, [100, 99, 19, 500], labels=["a", "b", "c", "d"])
    # Class b: one threshold holds both positives after the image at rank 1: AP = 2/4.
    ap = [250 / 3, 50.0, 100.0]
    mean = sum(ap) / 3
    assert report["per_class"] == [pytest.approx(ap[0]), 50.0, 100.0, None]
    assert report["n_absent"] == 1 and report["n_images"] == 4
    assert report["mAP"] == pytest.approx(mean)
    assert (report["head"], report["medium"], report["tail"]) == (pytest.approx(ap[0]), 50.0, 100.0)
    assert report["groups"] == {"head": 2, "medium": 1, "tail": 1}
    variance = sum((value - mean) ** 2 for value in ap) / 3
    assert report["var"] == pytest.approx(variance) and report["std"] == pytest.approx(math.sqrt(variance))
    assert report["var_groups"] == pytest.approx(variance)
    assert report["labels"] == ["a", "b", "c", "d"]
    assert not {"OF1", "CF1", "ECE", "interval"} & report.keys()


def test_variance_of_the_groups_is_weighted_by_their_scored_classes():
    """METHOD 10.4. Planted mistakes: three equal weights, sample variance, absent classes weighed."""
    scores, targets = example(classes=9)
    targets[:, 8] = False
    counts = [200, 100, 50, 40, 30, 20, 19, 1, 0]
    report = multilabel_report(scores, targets, counts)
    ap = [100 * average_precision_score(targets[:, c], scores[:, c]) for c in range(8)]
    groups = [ap[:2], ap[2:6], ap[6:8]]
    grand = sum(ap) / 8
    expected = sum(len(g) * (sum(g) / len(g) - grand) ** 2 for g in groups) / 8
    assert report["var_groups"] == pytest.approx(expected)
    assert report["var"] == pytest.approx(np.var(ap)) and report["var"] != pytest.approx(np.var(ap, ddof=1))
    assert report["groups"] == {"head": 2, "medium": 4, "tail": 3}


def test_empty_groups_and_no_positives_are_none():
    """Planted mistake: NaN, or the warning of a mean over nothing."""
    scores, targets = example(classes=3)
    report = multilabel_report(scores, targets, [5, 150, 0], bootstrap=3)
    assert report["medium"] is None and report["interval"]["medium"] is None and report["tail"] is not None
    nothing = multilabel_report(scores, np.zeros_like(targets), [5, 150, 0], thresholds=9, bootstrap=3)
    assert nothing["n_absent"] == 3 and nothing["per_class"] == [None] * 3
    assert {nothing[key] for key in ("mAP", "head", "medium", "tail", "var", "std", "var_groups")} == {None}
    assert nothing["OF1"] == nothing["CF1"] == 0.0 and set(nothing["interval"].values()) == {None}


def test_head_starts_at_100_and_medium_at_20():
    """METHOD 15 row 10: "more than 100" as the paper says."""
    assert class_groups([101, 100, 99, 20, 19, 0]).tolist() == ["head", "head", "medium", "medium", "tail", "tail"]


@pytest.mark.parametrize(
    ("data", "classes", "sizes", "boundary"),
    [("voc", 20, (6, 6, 8), "pottedplant"), ("coco", 80, (22, 33, 25), "backpack")],
)
def test_group_sizes_of_the_published_lists(shared_data, data, classes, sizes, boundary):
    """METHOD 15 row 10: groups from test counts, or head above 100; the class with exactly 100 is head."""
    splits = shared_data / "splits"
    names = [line.rsplit(maxsplit=1)[0].strip() for line in (splits / f"{data}_labels.txt").read_text().splitlines()]
    counts = counts_of(splits / f"{data}_lt_train.txt", classes).sum(axis=0)
    groups = class_groups(counts)
    assert tuple((groups == group).sum() for group in ("head", "medium", "tail")) == sizes
    assert counts[names.index(boundary)] == 100 and groups[names.index(boundary)] == "head"


def test_images_without_labels_stay_in(shared_data):
    """METHOD 15 row 11: the 48 empty images of the COCO-LT test list dropped; all 5,000 rows count."""
    targets = counts_of(shared_data / "splits" / "coco_lt_test.txt", 80)
    empty = ~targets.any(axis=1)
    assert len(targets) == 5000 and empty.sum() == 48
    # Every empty image outranks every other, so that dropping them would give AP 1.
    scores = np.where(empty[:, None], 2.0, targets)
    report = multilabel_report(scores, targets, targets.sum(axis=0))
    n = targets.sum(axis=0)
    np.testing.assert_allclose(report["per_class"], 100 * n / (n + 48))
    assert report["n_images"] == 5000 and report["n_absent"] == 0


def test_raw_scores_are_averaged_over_classes():
    """METHOD 15 row 11: a softmax over the classes, or micro-averaged AP."""
    scores, targets = example(seed=3)
    scores += np.random.default_rng(4).normal(size=(len(scores), 1))
    report = multilabel_report(scores, targets, [200] * 6)
    assert report["mAP"] == pytest.approx(100 * average_precision_score(targets, scores, average="macro"))
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert abs(report["mAP"] - 100 * average_precision_score(targets, softmax, average="macro")) > 0.5
    assert abs(report["mAP"] - 100 * average_precision_score(targets, scores, average="micro")) > 0.5


def test_f1_by_hand_and_by_scikit_learn():
    """Planted mistakes: `>` for `>=`, CF1 as a mean of F1, a class never predicted left out of the precision."""
    scores = np.array([[0.5, 0.1, 0.9], [0.5, 0.2, 0.1], [0.1, 0.3, 0.8], [0.2, 0.4, 0.1]])
    targets = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    report = multilabel_report(scores, targets, [9, 9, 9], thresholds=[0.5, 1.0, 0.5])
    # Predicted 2 + 0 + 2, true 2 + 2 + 0, hits 1 + 0 + 0. Class 3 has no positive and stays out of CF1.
    assert report["OF1"] == pytest.approx(100 * 2 * 1 / (4 + 4))
    precision, recall = (1 / 2 + 0) / 2, (1 / 2 + 0) / 2
    assert report["CF1"] == pytest.approx(100 * 2 * precision * recall / (precision + recall))
    scores, targets = example()
    report = multilabel_report(scores, targets, [9] * 6, thresholds=0.7)
    assert report["OF1"] == pytest.approx(100 * f1_score(targets, scores >= 0.7, average="micro"))


def test_calibration_error_in_loops():
    """Planted mistakes: the mean over bins instead of over pairs, p = 1 in a sixteenth bin."""
    scores, targets = example(images=40, classes=4)
    probabilities = 1 / (1 + np.exp(-2 * scores))
    probabilities[0, 0], probabilities[1, 1] = 0.0, 1.0
    bins = [[] for _ in range(15)]
    for p, y in zip(probabilities.ravel(), targets.ravel(), strict=True):
        bins[min(14, math.floor(15 * p))].append((p, y))
    expected = 0.0
    for pairs in filter(None, bins):
        confidence, accuracy = sum(p for p, _ in pairs) / len(pairs), sum(y for _, y in pairs) / len(pairs)
        expected += len(pairs) / 160 * abs(confidence - accuracy)
    report = multilabel_report(scores, targets, [9] * 4, probabilities=probabilities)
    assert report["ECE"] == pytest.approx(expected, rel=1e-12) and 0 < report["ECE"] < 1
    # Gaps of 1 and -0.05 meet in the last bin; in two bins they would add up.
    last = multilabel_report(np.ones((2, 1)), [[0], [1]], [9], probabilities=[[1.0], [0.95]])
    assert last["ECE"] == pytest.approx(0.95 / 2)


def test_bootstrap_intervals(monkeypatch):
    """Planted mistakes: a 90 % interval, each class with its own resample, resamples of another size than n, a shift
    the wrong way.
    """
    scores, targets = example(images=120, classes=4)
    drawn = []

    def recorded(scores, targets, weights=None):
        drawn.extend([] if weights is None else weights)
        return average_precision(scores, targets, weights)

    monkeypatch.setattr("hpdval_edge.training.metrics.average_precision", recorded)
    report = multilabel_report(scores, targets, [150, 100, 30, 3], bootstrap=130, seed=1)
    assert len(drawn) == 130 and {int(counts.sum()) for counts in drawn} == {120}
    # Each image is missing from about 1/e of the resamples.
    assert np.mean(np.array(drawn) == 0) == pytest.approx(1 / math.e, abs=0.02)
    means = {"mAP": [], "head": [], "medium": [], "tail": []}
    for counts in drawn:
        rows = np.repeat(np.arange(120), counts)
        # Class 0 is rare enough to be missing from a resample.
        ap = [
            100 * average_precision_score(targets[rows, c], scores[rows, c]) if targets[rows, c].any() else math.nan
            for c in range(4)
        ]
        for key, values in {"mAP": ap, "head": ap[:2], "medium": ap[2:3], "tail": ap[3:]}.items():
            means[key].append(np.nanmean(values))
    for key, values in means.items():
        shifted = np.percentile(values, [2.5, 97.5]) - np.mean(values) + report[key]
        assert report["interval"][key] == pytest.approx(list(np.clip(shifted, 0, 100)), rel=1e-10)


def test_intervals_of_rare_labels_hold_the_estimate():
    """Planted mistake: plain percentiles, which lie above the AP of rare labels: a picture drawn twice lifts it."""
    generator = np.random.default_rng(0)
    targets = generator.random((200, 200)) < 0.02
    scores = generator.normal(size=(200, 200)) + 1.5 * targets
    counts = generator.multinomial(200, np.full(200, 1 / 200), size=200)
    plain = np.nanpercentile(100 * np.nanmean(average_precision(scores, targets, counts), axis=1), 2.5)
    report = multilabel_report(scores, targets, [5] * 200, bootstrap=200)
    low, high = report["interval"]["tail"]
    assert low < report["tail"] < plain
    assert abs((low + high) / 2 - report["tail"]) < 0.1 * (high - low)


def test_bootstrap_depends_on_the_seed_alone():
    """Planted mistake: a generator without the seed."""
    scores, targets = example(images=120, classes=4)
    first, again, other = (multilabel_report(scores, targets, [9] * 4, bootstrap=30, seed=s) for s in (1, 1, 2))
    assert first == again and first["interval"] != other["interval"]
    perfect = multilabel_report(targets.astype(np.float32), targets, [9] * 4, bootstrap=20)
    assert perfect["interval"]["mAP"] == [100.0, 100.0]


def test_probabilities_may_come_block_by_block(monkeypatch):
    """Planted mistakes: the last block lost, blocks counted as bins of their own, a block of another shape accepted."""
    scores, targets = example(images=70, classes=4)
    probabilities = 1 / (1 + np.exp(-scores))
    thresholds = np.linspace(0, 1, 4)
    whole = multilabel_report(scores, targets, [9] * 4, thresholds=thresholds, probabilities=probabilities)
    monkeypatch.setattr("hpdval_edge.training.average_precision.PAIRS", 100)
    asked = []

    def read(rows):
        asked.append(rows)
        return probabilities[rows]

    blocks = multilabel_report(scores, targets, [9] * 4, thresholds=thresholds, probabilities=read)
    assert [row for rows in asked for row in range(rows.start, rows.stop)] == list(range(70)) and len(asked) == 3
    assert blocks.pop("ECE") == pytest.approx(whole.pop("ECE"), rel=1e-12) and blocks == whole
    with pytest.raises(ValueError, match=r"shape \[25, 4\] .* got \[70, 4\]"):
        multilabel_report(scores, targets, [9] * 4, probabilities=lambda rows: probabilities)
    scores[60, 2] = np.nan
    with pytest.raises(ValueError, match="got nan for image 60, class 2"):
        multilabel_report(scores, targets, [9] * 4)


def test_memory_is_the_scores_and_a_few_columns(monkeypatch):
    """Planted mistakes: the rankings of all classes kept, a bool or float64 copy of the scores."""
    monkeypatch.setattr("hpdval_edge.training.average_precision.PAIRS", 1 << 14)
    generator = np.random.default_rng(0)
    targets = (generator.random((25_000, 100)) < 0.05).astype(np.uint8)
    scores = generator.standard_normal((25_000, 100), dtype=np.float32) + targets
    thresholds = np.full(100, 0.5, np.float32)
    tracemalloc.start()
    try:
        multilabel_report(
            scores, targets, [9] * 100, thresholds=thresholds, probabilities=lambda rows: (scores[rows] > 0.5) * 0.5
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 10 columns of float64; the scores have 50 of them, one bool for each of them is 12.5.
    assert peak < 10 * 8 * 25_000, f"{peak / 2**20:.1f} MiB beside scores of {scores.nbytes / 2**20:.1f} MiB"


def test_report_is_json_and_prints():
    """Planted mistake: NumPy numbers, which json refuses."""
    scores, targets = example(classes=3, dtype=np.float32)
    targets[:, 2] = False
    assert {type(value) for value in multilabel_report(scores, targets, [9, 9, 9])["per_class"]} == {float, type(None)}
    report = multilabel_report(
        scores,
        targets.astype(np.uint8),
        np.array([150, 30, 3]),
        thresholds=np.full(3, 0.5, dtype=np.float32),
        probabilities=1 / (1 + np.exp(-scores)),
        bootstrap=5,
        labels=np.array(["cat", "dog", "cow"]),
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.zeros((4, 2), dtype=np.float16)}, "float32 or float64 .* got float16"),
        ({"scores": np.zeros((4, 2), dtype=int)}, "float32 or float64 .* got int64"),
        ({"scores": np.zeros(4)}, r"shape \[n,C\] .* got \[4\]"),
        ({"scores": np.zeros((0, 2)), "targets": np.zeros((0, 2))}, r"got \[0, 2\]"),
        ({"scores": np.array([[1, 2], [3, np.nan], [0, 0], [0, 0]])}, "got nan for image 1, class 1"),
        ({"scores": np.array([[1, 2], [3, 4], [-np.inf, 0], [0, 0]])}, "got -inf for image 2, class 0"),
        ({"targets": np.zeros((4, 3))}, r"targets .* \[4, 2\], got \[4, 3\]"),
        ({"targets": np.full((4, 2), 2)}, "targets must be 0 or 1, got 2"),
        ({"targets": np.full((4, 2), np.nan)}, "targets must be 0 or 1, got nan"),
        ({"class_counts": [1, 2, 3]}, r"class_counts must have shape \[2\] .* got \[3\]"),
        ({"class_counts": [[1, 2]]}, r"class_counts must have shape \[C\], got \[1, 2\]"),
        ({"class_counts": [1, -2]}, "class_counts .* got -2"),
        ({"class_counts": [1, np.nan]}, "class_counts .* got nan"),
        ({"thresholds": [0.5]}, r"thresholds must have shape \[2\] .* got \[1\]"),
        ({"thresholds": np.nan}, "thresholds .* nan"),
        ({"probabilities": np.zeros((2, 4))}, r"probabilities must have shape \[4, 2\] .* got \[2, 4\]"),
        ({"probabilities": np.full((4, 2), 1.5)}, r"0\.\.1, got 1\.5"),
        ({"probabilities": np.full((4, 2), np.nan)}, r"0\.\.1, got nan"),
        ({"labels": ["one"]}, r"labels must have shape \[2\] .* got \[1\]"),
        ({"bootstrap": -1}, "bootstrap .* got -1"),
        ({"bootstrap": 2.5}, r"bootstrap .* got 2\.5"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"scores": np.arange(8.0).reshape(4, 2), "targets": np.eye(4, 2), "class_counts": [3, 4], **change}
    with pytest.raises(ValueError, match=message):
        multilabel_report(**arguments)


@pytest.mark.parametrize("weights", [np.ones(3), np.ones((2, 5)), np.ones((1, 1, 4)), -np.ones(4), np.full(4, np.nan)])
def test_wrong_weights_are_named(weights):
    with pytest.raises(ValueError, match="weights must"):
        average_precision(np.arange(8.0).reshape(4, 2), np.eye(4, 2), weights)
