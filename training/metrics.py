"""The numbers of an evaluation: mAP, its long-tail groups and spread, F1, calibration, bootstrap (NumPy only).

One code path for runs and bundles. All but ECE are in percent (variances in percent squared).
"""

import math
from collections.abc import Callable
from numbers import Integral

import numpy as np

from hpdval_edge.training.average_precision import average_precision, check_scores, row_blocks

HEAD_FROM = 100
MEDIUM_FROM = 20
GROUPS = ("head", "medium", "tail")
ECE_BINS = 15
# Image counts of a bootstrap drawn at a time: its memory does not grow with the number of resamples.
DRAWN = 1 << 22
INTERVAL = (2.5, 97.5)


def multilabel_report(
    scores, targets, class_counts, *, thresholds=None, probabilities=None, bootstrap=0, seed=0, labels=None
) -> dict:
    """Evaluate multi-label scores; every value of the result is a plain Python one, ready for JSON.

    AP is eq. 18 with scikit-learn's treatment of ties (see `average_precision`). Classes without a positive among
    `targets` are left out of every mean and counted; images without labels stay in.

    Args:
        scores: [n,C] float32 or float64, raw (no softmax over the classes: it changes the ranking of images).
        targets: [n,C] 0/1 of any type.
        class_counts: [C] whole numbers, positives in the TRAINING list. Head n_i >= 100, medium 20..99, tail < 20:
            the paper says "more than 100", but its own group sizes count a class of exactly 100 as head.
        thresholds: None, a number or [C]; a label is predicted where score >= threshold.
        probabilities: for ECE; None, [n,C] in 0..1, or a function that gives the rows of a slice of the images, [m,C],
            so that a million images need no second array of the size of the scores.
        bootstrap: number of resamples of the images, 0 for none.
        seed: of the bootstrap.
        labels: None or C names, copied into the report.

    Returns:
        mAP, head, medium, tail: mean AP; None for a group without a scored class.
        var, std: population variance (ddof 0) of per-class AP in percent squared, and its root.
        var_groups: population variance of the three group means, weighted by their scored classes (the paper's "var."
            column holds var in some rows and var_groups in others).
        per_class: C numbers, None for a class without positives. n_absent: how many those are.
        n_images: n. groups: number of classes in each group, with or without positives. labels: when given.
        OF1, CF1 (with thresholds): F1 of all image-label pairs together, and 2 P R / (P + R) of the precision and the
            recall averaged over the classes with positives, where a class never predicted has precision 0.
        ECE (with probabilities): 0..1, expected calibration error over all image-label pairs in 15 bins of equal width,
            [0, 1/15), ..., [14/15, 1]: sum of share * |mean probability - share of positives|.
        interval (with bootstrap): [low, high], 95 % bias-shifted percentile interval over images, of mAP, head, medium
            and tail, see `_interval`. A resample without positives of a class leaves that class out. None where the
            value is None.

    Raises:
        ValueError: an argument has a wrong shape, type or value, NaN scores included.
    """
    scores, positive = check_scores(scores, targets)
    groups = class_groups(class_counts)
    _check_shape("class_counts", groups, (scores.shape[1],))
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, Integral) or bootstrap < 0:
        raise ValueError(f"bootstrap must be a whole number of resamples, 0 or more, got {bootstrap!r}")
    ap = 100 * average_precision(scores, positive)
    report = _average_report(ap, groups)
    report["n_images"] = len(scores)
    if labels is not None:
        _check_shape("labels", labels, (scores.shape[1],))
        report["labels"] = [str(label) for label in labels]
    if thresholds is not None:
        report["OF1"], report["CF1"] = _f1(scores, positive, thresholds)
    if probabilities is not None:
        report["ECE"] = calibration_error(probabilities, positive)
    if bootstrap:
        draws = _resampled(scores, positive, groups, int(bootstrap), seed)
        report["interval"] = {key: _interval(values, report[key]) for key, values in draws.items()}
    return report


def class_groups(class_counts) -> np.ndarray:
    """Return the group of every class, [C] of "head" (n_i >= 100), "medium" (20..99) or "tail" (< 20).

    Args:
        class_counts: [C] whole numbers, positives in the training list.

    Raises:
        ValueError: the shape is not [C], or a count is not a whole number of 0 or more.
    """
    counts = np.asarray(class_counts)
    if counts.ndim != 1:
        raise ValueError(f"class_counts must have shape [C], got {list(counts.shape)}")
    # Written so that NaN is wrong too; infinities have no whole part.
    wrong = ~((counts >= 0) & (counts < np.inf) & (np.floor(counts) == counts))
    if wrong.any():
        raise ValueError(f"class_counts must be whole numbers of 0 or more, got {counts[wrong][0]}")
    return np.where(counts >= HEAD_FROM, "head", np.where(counts >= MEDIUM_FROM, "medium", "tail"))


def _check_shape(name: str, values, shape: tuple[int, ...]) -> None:
    if np.shape(values) != shape:
        raise ValueError(f"{name} must have shape {list(shape)} as the scores do, got {list(np.shape(values))}")


def _average_report(ap: np.ndarray, groups: np.ndarray) -> dict:
    """Return the means and the spread of per-class AP, ap [C] in percent with NaN for absent classes."""
    scored = ap[~np.isnan(ap)]
    means = _group_means(ap[None], groups)
    report = {key: _number(values[0]) for key, values in means.items()}
    report["var"] = _number(scored.var()) if len(scored) else None
    report["std"] = _number(scored.std()) if len(scored) else None
    report["var_groups"] = None
    if len(scored):
        sizes = {group: np.count_nonzero(~np.isnan(ap[groups == group])) for group in GROUPS}
        squares = [size * (means[group][0] - scored.mean()) ** 2 for group, size in sizes.items() if size]
        report["var_groups"] = _number(sum(squares) / len(scored))
    report["per_class"] = [_number(value) for value in ap]
    report["n_absent"] = len(ap) - len(scored)
    report["groups"] = {group: int(np.count_nonzero(groups == group)) for group in GROUPS}
    return report


def _group_means(ap: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean of ap [R,C] over all classes and over each group, [R] each, skipping NaN; NaN where none."""
    means = {}
    for key in ("mAP", *GROUPS):
        chosen = ap if key == "mAP" else ap[:, groups == key]
        count = np.count_nonzero(~np.isnan(chosen), axis=1)
        total = np.nansum(chosen, axis=1)
        means[key] = np.divide(total, count, out=np.full(len(ap), np.nan), where=count > 0)
    return means


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _f1(scores: np.ndarray, positive: np.ndarray, thresholds) -> tuple[float, float]:
    """Return OF1 and CF1 in percent, counted in blocks of rows."""
    thresholds = np.asarray(thresholds, dtype=np.float64)
    if thresholds.ndim:
        _check_shape("thresholds", thresholds, (scores.shape[1],))
    if np.isnan(thresholds).any():
        raise ValueError("thresholds must be numbers, got nan")
    hits, chosen, true = (np.zeros(scores.shape[1], np.int64) for _ in range(3))
    for rows in row_blocks(scores.shape):
        predicted = scores[rows] >= thresholds
        hits += np.count_nonzero(predicted & positive[rows], axis=0)
        chosen += np.count_nonzero(predicted, axis=0)
        true += np.count_nonzero(positive[rows], axis=0)
    quality = decision_quality(hits, chosen, true)
    return quality["OF1"], quality["CF1"]


def decision_quality(hits: np.ndarray, chosen: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 in percent, over all labels together (OP, OR, OF1) and averaged over classes.

    CP and CR are means over the classes with positives, a class never predicted having precision 0; CF1 is theirs.

    Args:
        hits, chosen, true: counts [C] of right predictions, predictions and positives.
    """
    present = true > 0
    overall = hits.sum() / max(1, chosen.sum()), hits.sum() / max(1, true.sum())
    by_class = (0.0, 0.0)
    if present.any():
        by_class = (hits / np.maximum(1, chosen))[present].mean(), (hits[present] / true[present]).mean()
    quality = {}
    for letter, (precision, recall) in (("O", overall), ("C", by_class)):
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        quality |= {f"{letter}P": 100 * precision, f"{letter}R": 100 * recall, f"{letter}F1": 100 * f1}
    return {key: float(value) for key, value in quality.items()}


def calibration_error(probabilities, positive: np.ndarray) -> float:
    """Return ECE in 0..1 of probabilities, [n,C] or a function of a slice, against positive [n,C] bool.

    See `multilabel_report` for its definition; ValueError for a wrong shape or a value outside 0..1.
    """
    if not callable(probabilities):
        probabilities = np.asarray(probabilities)
        _check_shape("probabilities", probabilities, positive.shape)
    read: Callable[[slice], np.ndarray] = probabilities if callable(probabilities) else probabilities.__getitem__
    # share * |mean p - mean y| of a bin is |sum p - sum y| / pairs.
    gaps = np.zeros(ECE_BINS)
    for rows in row_blocks(positive.shape):
        block = np.asarray(read(rows), dtype=np.float64)
        _check_shape("probabilities", block, positive[rows].shape)
        # Written so that NaN is wrong too.
        wrong = ~((block >= 0) & (block <= 1))
        if wrong.any():
            raise ValueError(f"probabilities must lie in 0..1, got {block[wrong][0]}")
        bins = np.minimum((block * ECE_BINS).astype(np.intp), ECE_BINS - 1)
        gaps += np.bincount(bins.ravel(), weights=(block - positive[rows]).ravel(), minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / positive.size)


def _resampled(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> dict:
    """Return {mAP, head, medium, tail: [resamples]}, means under resamples of the images; NaN where there is none."""
    images = len(scores)
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {}
    step = max(1, DRAWN // images)
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        counts = generator.multinomial(images, np.full(images, 1 / images), size=rows)
        ap = 100 * average_precision(scores, positive, counts)
        for key, values in _group_means(ap, groups).items():
            drawn.setdefault(key, []).append(values)
    return {key: np.concatenate(chunks) for key, chunks in drawn.items()}


def _interval(draws: np.ndarray, estimate: float | None) -> list[float] | None:
    """Return the bias-shifted percentile interval of resampled values [R] in percent, cut to 0..100.

    AP rises when a positive is drawn twice, since each copy counts as a hit above the other; for rare labels this bias
    exceeds the spread of the resamples, and the plain percentile interval leaves the estimate below itself. So the
    percentiles are moved by the bootstrap's own estimate of bias, mean(draws) - estimate (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, chapters 10 and 13). The interval is one for the AP that a test list of this
    size has on average; with few positives that lies above the AP of an endless list, for the same reason. In
    simulations with 4 to 60 positives a label, where it held that value about as often as it says, the plain
    percentile, the basic and the bias-corrected (BC) interval lay off centre and held it less often.
    """
    draws = draws[~np.isnan(draws)]
    if estimate is None or not len(draws):
        return None
    shifted = np.percentile(draws, INTERVAL) - (draws.mean() - estimate)
    return [float(edge) for edge in np.clip(shifted, 0, 100)]
