"""Decision thresholds from a validation split (NumPy only); the test split never chooses them."""

import numpy as np

from hpdval_edge.training.average_precision import check_scores

# Below this many positives a class's own best threshold is mostly chance.
MIN_POSITIVES = 5


def fit_thresholds(scores, targets) -> tuple[np.ndarray, np.ndarray]:
    """Choose, per class, the threshold with the highest F1; a label is predicted where score >= threshold.

    A threshold lies midway between two neighbouring scores of its class, or is the lowest score where predicting every
    image is best. Among equal F1 the highest threshold wins. Classes with fewer than 5 positives take one global
    threshold, the one with the highest micro-F1, found in the same way over the scores of all classes together.

    Args:
        scores: [n,C] float32 or float64 on the validation split. Rounded to float32 first, what a bundle computes.
        targets: [n,C] 0/1 of any type.

    Returns:
        thresholds float32 [C], and fitted bool [C]: True where the threshold is the class's own.

    Raises:
        ValueError: a shape, a type or a value is wrong, or no target is positive.
    """
    scores, positive = check_scores(scores, targets)
    if not positive.any():
        raise ValueError("targets must hold at least one positive to fit thresholds on, got none")
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32)
    if not np.isfinite(scores).all():
        raise ValueError("scores must fit into float32, got larger ones")
    fitted = positive.sum(axis=0) >= MIN_POSITIVES
    thresholds = np.full(scores.shape[1], _best_threshold(scores.ravel(), positive.ravel()))
    for c in np.flatnonzero(fitted):
        thresholds[c] = _best_threshold(scores[:, c], positive[:, c])
    return thresholds, fitted


def _best_threshold(scores: np.ndarray, positive: np.ndarray) -> np.float32:
    """Return the threshold of highest F1 for scores [m] float32 and positive [m] bool with at least one True."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # Only the last image of a tie group can be the last one predicted.
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(positive[order])[ends]
    # F1 = 2 tp / (predicted + positives); equal fractions are equal floats, so argmax keeps the highest threshold.
    best = int(np.argmax(2 * hits / (ends + 1 + hits[-1])))
    lowest = ranked[ends[best]]
    if best == len(ends) - 1:
        return lowest
    below = ranked[ends[best + 1]]
    middle = np.float32((np.float64(lowest) + np.float64(below)) / 2)
    # Between adjacent floats the midpoint rounds to one of them, and must not let the lower one in.
    return middle if middle > below else lowest
