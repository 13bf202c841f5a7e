"""Average precision of many classes at once, plain or with a weight per image (NumPy only).

AP (eq. 18) is the non-interpolated one: the mean, over the positives of a class, of the precision at their rank. Equal
scores are one threshold, as in scikit-learn, so the order of the images never matters:

    AP = sum_i w_i y_i P(s_i) / sum_i w_i y_i,    P(t) = sum_{s_j >= t} w_j y_j / sum_{s_j >= t} w_j
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Image-label pairs checked or counted at a time: temporaries stay small whatever the number of images.
PAIRS = 1 << 20
# Weights gathered at a time, in numbers: 2 MiB of float64, so that a class is summed inside the cache.
GATHERED = 1 << 18


@dataclass(frozen=True, slots=True)
class _Ranking:
    """One class in descending score order, cut after each tie group that holds a positive (G groups of interest).

    Attributes:
        images: [m] int, indices of the images up to the last positive's tie group.
        starts: [G] int, first position in `images` of each stretch; a stretch ends with a group of interest.
        positives: [p] int, indices of the positives, in the same order.
        positive_starts: [G] int, first position in `positives` of each group of interest.
    """

    images: np.ndarray
    starts: np.ndarray
    positives: np.ndarray
    positive_starts: np.ndarray


def check_scores(scores, targets) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as an array of float32 or float64 [n,C] and targets as bool [n,C], after checking both.

    Neither is copied where it already has such a type, or targets are of one byte.

    Raises:
        ValueError: scores are not float32 or float64 (float16 would create ties), not [n,C] with n, C >= 1, or not
            finite; targets have another shape or a value other than 0 and 1.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.dtype not in (np.float32, np.float64):
        raise ValueError(f"scores must be float32 or float64 (half precision makes ties), got {scores.dtype}")
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must have shape [n,C] with n and C at least 1, got {list(scores.shape)}")
    if targets.shape != scores.shape:
        raise ValueError(f"targets must have the shape of scores {list(scores.shape)}, got {list(targets.shape)}")
    for rows in row_blocks(scores.shape):
        _check_block(scores[rows], targets[rows], rows.start)
    # 0 and 1 in one byte are a bool already.
    return scores, targets.view(bool) if targets.dtype.itemsize == 1 else targets.astype(bool)


def row_blocks(shape: tuple[int, int]) -> Iterator[slice]:
    """Cut the rows of an array [n,C] into slices of about PAIRS numbers."""
    images, classes = shape
    step = max(1, PAIRS // classes)
    return (slice(first, min(first + step, images)) for first in range(0, images, step))


def _check_block(scores: np.ndarray, targets: np.ndarray, first: int) -> None:
    """Check rows scores [m,C] and targets [m,C], of which ``first`` is the number of the first image."""
    finite = np.isfinite(scores)
    if not finite.all():
        image, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"scores must be finite, got {scores[image, column]} for image {first + image}, class {column}"
        )
    wrong = (targets != 0) & (targets != 1)
    if wrong.any():
        raise ValueError(f"targets must be 0 or 1, got {targets[wrong][0]}")


def average_precision(scores, targets, weights=None) -> np.ndarray:
    """Compute the average precision of every class.

    Args:
        scores: [n,C] float32 or float64, higher means more likely; only their order within a class counts.
        targets: [n,C] 0/1 of any type.
        weights: None, [n] (one set) or [R,n] (R sets), finite and not negative: how often each image counts. A
            bootstrap resample is the set of its image counts; this equals scikit-learn's `sample_weight`.

    Returns:
        float64 in 0..1, [C], or [R,C] for weights of shape [R,n]; NaN where the positives of a class weigh nothing.

    Raises:
        ValueError: a shape, a type or a value is wrong.
    """
    scores, positive = check_scores(scores, targets)
    images, classes = scores.shape
    weights = np.ones(images) if weights is None else _checked_weights(weights, images)
    sets = np.atleast_2d(weights)
    result = np.empty((len(sets), classes))
    step = max(1, GATHERED // images)
    # Transposed, so that one image's weights lie together and each sum below runs over long rows.
    chunks = [
        (slice(first, first + step), np.ascontiguousarray(sets[first : first + step].T, dtype=np.float64))
        for first in range(0, len(sets), step)
    ]
    # One class at a time: the rankings of all together would be larger than the scores.
    for c in range(classes):
        ranking = _rank(scores[:, c], positive[:, c])
        for rows, chunk in chunks:
            result[rows, c] = _weighted(ranking, chunk)
    return result[0] if weights.ndim == 1 else result


def _checked_weights(weights, images: int) -> np.ndarray:
    weights = np.asarray(weights)
    if weights.ndim not in (1, 2) or weights.shape[-1] != images:
        raise ValueError(f"weights must have shape [{images}] or [R,{images}], got {list(weights.shape)}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"weights must be finite and not negative, got {weights.min()} as the smallest")
    return weights


def _rank(scores: np.ndarray, positive: np.ndarray) -> _Ranking:
    """Order one class, scores [n] and positive [n] bool, and find its tie groups that hold a positive."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    falls = ranked[1:] != ranked[:-1]
    # The tie group of each position, counted from 0, and the position after each group's last.
    group = np.concatenate([[0], np.cumsum(falls)])
    ends = np.append(np.flatnonzero(falls) + 1, len(order))
    ranks = np.flatnonzero(positive[order])
    groups, positive_starts = np.unique(group[ranks], return_index=True)
    cuts = ends[groups]
    return _Ranking(
        images=order[: cuts[-1]] if len(cuts) else order[:0],
        starts=np.concatenate([[0], cuts[:-1]]).astype(np.intp)[: len(cuts)],
        positives=order[ranks],
        positive_starts=positive_starts,
    )


def _weighted(ranking: _Ranking, weights: np.ndarray) -> np.ndarray:
    """Return the AP [R] of one class under weights [n,R] float64."""
    if not len(ranking.positives):
        return np.full(weights.shape[1], np.nan)
    # [G,R]: the weight of all images down to each group of interest, and of its own positives.
    seen = np.add.reduceat(weights[ranking.images], ranking.starts, axis=0).cumsum(axis=0)
    found = np.add.reduceat(weights[ranking.positives], ranking.positive_starts, axis=0)
    hits = found.cumsum(axis=0)
    # Nothing seen means nothing found, so the quotient of two zeros is left at 0.
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    total = hits[-1]
    return np.divide((found * precision).sum(axis=0), total, out=np.full_like(total, np.nan), where=total > 0)
