"""How far the values of a tensor reach, from many pictures: histograms, and the two ways to cut their tails."""

import numpy as np

BINS = 4096
# Edges that the entropy is computed at; more find the same range to within 2 %.
EDGES = 128
SMALLEST = 1e-12


class Histogram:
    """Magnitudes of a tensor in equal bins; the bins double in width when a value lies beyond the last.

    counts: int64 [BINS], of values that are not 0. zeros: the others, which any scale represents exactly.
    negative: whether a value below 0 was seen.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.width = 0.0
        self.zeros = 0
        self.negative = False

    def add(self, values: np.ndarray) -> None:
        """Count values of any shape and float type; ValueError where one is not finite."""
        values = np.asarray(values, np.float32).ravel()
        if not values.size:
            return
        magnitudes = np.abs(values)
        top = float(magnitudes.max())
        if not np.isfinite(top):
            raise ValueError(f"values must be finite, got {top}")
        zeros = magnitudes.size - np.count_nonzero(magnitudes)
        self.zeros += zeros
        self.negative |= bool(values.min() < 0)
        if not top:
            return
        self.width = self.width or top / BINS
        while top > self.width * BINS:
            self.counts[: BINS // 2] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[BINS // 2 :] = 0
            self.width *= 2
        bins = np.minimum((magnitudes * np.float32(1 / self.width)).astype(np.intp), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)
        self.counts[0] -= zeros

    def percentile(self, share: float) -> float:
        """Smallest bin edge that ``share`` percent of all values, zeros among them, do not exceed."""
        below = self.zeros + np.cumsum(self.counts)
        return float((np.searchsorted(below, share / 100 * below[-1]) + 1) * self.width)

    def entropy(self, levels: int) -> float:
        """Bin edge at which clipping and rounding to 8 bits lose least, by the Kullback-Leibler divergence.

        Migacz, 8-bit inference with TensorRT, GTC 2017: the clipped histogram, outliers in its last bin, against the
        same merged into as many ``levels`` as the integers have on one side of 0.
        """
        used = np.flatnonzero(self.counts)
        last = int(used[-1]) + 1 if used.size else 0
        if last <= levels:
            return last * self.width
        edges = np.unique(np.linspace(levels, last, EDGES).astype(int))
        return float(min(edges, key=lambda edge: _divergence(self.counts, edge, levels)) * self.width)


def _divergence(counts: np.ndarray, edge: int, levels: int) -> float:
    """Divergence of counts [BINS], clipped at bin ``edge``, from what is left of them at ``levels`` levels."""
    kept = counts[:edge].astype(np.float64)
    starts = np.arange(levels) * edge // levels
    filled = np.add.reduceat((kept > 0).astype(np.float64), starts)
    mean = np.add.reduceat(kept, starts) / np.maximum(filled, 1)
    merged = np.repeat(mean, np.diff(starts, append=edge)) * (kept > 0)
    clipped = kept.copy()
    clipped[-1] += counts[edge:].sum()
    if not merged.any():
        return np.inf
    p, q = clipped / clipped.sum(), merged / merged.sum()
    some = p > 0
    return float((p[some] * np.log(p[some] / np.maximum(q[some], SMALLEST))).sum())


# Name -> the percentile's share, None for entropy.
METHODS: dict[str, float | None] = {
    "entropy": None,
    **{f"percentile {share}": share for share in (99.9, 99.99, 99.999)},
}


def limit(histogram: Histogram, method: str, levels: int) -> float:
    """Where ``method`` cuts a tensor's tails that is rounded to so many levels on one side of 0."""
    share = METHODS[method]
    return histogram.entropy(levels) if share is None else histogram.percentile(share)
