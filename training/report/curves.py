"""Numbers behind the figures: precision and recall, reliability, co-occurrence (NumPy only)."""

from dataclasses import dataclass

import numpy as np

from hpdval_edge.training.average_precision import average_precision
from hpdval_edge.training.metrics import ECE_BINS

# Enough for a smooth line, and few enough for a small file.
DRAWN_POINTS = 300


def precision_recall(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision wherever recall rises, from the highest score down; equal scores are one threshold.

    Args:
        scores: [n] float. positive: [n] bool with at least one True.

    Returns:
        recall and precision, float64 [m] with m <= DRAWN_POINTS, from the first positive to the last, where
        recall is 1.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(positive[order])[ends]
    recall, precision = hits / hits[-1], hits / (ends + 1)
    # Where recall rises; between those points precision only falls. Long curves keep points evenly spaced in recall.
    counts = np.linspace(1, hits[-1], min(int(hits[-1]), DRAWN_POINTS)).round()
    shown = np.unique(np.searchsorted(hits, counts))
    return recall[shown], precision[shown]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of equal width over 0..1, as ECE uses them: mean probability, share of positives, pairs; each [ECE_BINS].

    Means are NaN in an empty bin.
    """

    predicted: np.ndarray
    observed: np.ndarray
    pairs: np.ndarray

    @property
    def error(self) -> float:
        """ECE, 0..1: the mean distance from the diagonal, weighted by pairs."""
        full = self.pairs > 0
        gaps = np.abs(self.predicted[full] - self.observed[full])
        return float((gaps * self.pairs[full]).sum() / self.pairs.sum())

    @property
    def averages(self) -> tuple[float, float]:
        """Mean probability and share of positives of all pairs."""
        full = self.pairs > 0
        total = self.pairs.sum()
        means = [float((values[full] * self.pairs[full]).sum() / total) for values in (self.predicted, self.observed)]
        return means[0], means[1]


def reliability(probabilities: np.ndarray, positive: np.ndarray) -> Reliability:
    """Bin all picture-label pairs by probability, [n, C] in 0..1, against positive [n, C] bool."""
    flat = probabilities.ravel()
    bins = np.minimum((flat * ECE_BINS).astype(np.intp), ECE_BINS - 1)
    pairs = np.bincount(bins, minlength=ECE_BINS)
    sums = [np.bincount(bins, weights=values, minlength=ECE_BINS) for values in (flat, positive.ravel())]
    means = [np.divide(total, pairs, out=np.full(ECE_BINS, np.nan), where=pairs > 0) for total in sums]
    return Reliability(means[0], means[1], pairs)


def co_occurrence(targets: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Share of the pictures with the row's label that also have the column's, of the labels ``columns`` [K].

    Args:
        targets: [n, C] 0/1.

    Returns:
        float64 [K, K] in 0..1, the diagonal NaN; rows of labels without a picture are NaN.
    """
    chosen = targets[:, columns].astype(np.int64)
    together = chosen.T @ chosen
    counts = np.diag(together).astype(np.float64)
    shares = np.divide(together, counts[:, None], out=np.full(together.shape, np.nan), where=counts[:, None] > 0)
    np.fill_diagonal(shares, np.nan)
    return shares


@dataclass(frozen=True, slots=True)
class Decisions:
    """How the thresholds do: precision, recall and F1 in percent, [C] float64; NaN where a quotient has no meaning."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    positives: np.ndarray
    chosen: np.ndarray
    hits: np.ndarray

    @property
    def overall_f1(self) -> float:
        """OF1 in percent: F1 of all picture-label pairs together."""
        return 200 * float(self.hits.sum()) / max(1, int(self.chosen.sum() + self.positives.sum()))


def decide(scores: np.ndarray, positive: np.ndarray, thresholds: np.ndarray) -> Decisions:
    """Predict label c where scores[:, c] >= thresholds[c]; scores float32 [n, C], positive bool [n, C]."""
    predicted = scores >= thresholds
    hits = (predicted & positive).sum(axis=0)
    chosen, positives = predicted.sum(axis=0), positive.sum(axis=0)

    def percent(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(100 * above, below, out=np.full(len(above), np.nan), where=below > 0)

    recall = percent(hits, positives)
    f1 = np.where(positives > 0, percent(2 * hits, chosen + positives), np.nan)
    return Decisions(percent(hits, chosen), recall, f1, positives, chosen, hits)


def mean_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """mAP in percent over the labels with a positive; scores float32 [n, C], positive bool [n, C]."""
    return 100 * float(np.nanmean(average_precision(scores, positive)))
