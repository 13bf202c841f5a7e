"""The scores that a bundle gave on its validation pictures, as histograms: what a monitor compares with.

A bundle keeps them as ``reference.json``, at its own precision. Each label's ten bins are cut at the deciles of its
validation scores, the usual bins of the population stability index.
"""

import json
from dataclasses import dataclass

import numpy as np

from hpdval_edge.bundle import REFERENCE, Bundle
from hpdval_edge.errors import BadData

BINS = 10


@dataclass(frozen=True, slots=True)
class Reference:
    """Histograms of validation scores.

    edges: float32 [C, BINS - 1], rising. counts: int64 [C, BINS], each row adds up to ``pictures``; zeros for a label
    that has none. rates: float64 [C], share of pictures at or above the label's threshold; NaN for such a label.
    """

    pictures: int
    edges: np.ndarray
    counts: np.ndarray
    rates: np.ndarray


def bin_of(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each score, int64 like ``scores`` [..., C]; edges [C, BINS - 1]; a score at an edge lies above it."""
    return (scores[..., None] >= edges).sum(axis=-1)


def reference_json(scores: np.ndarray, thresholds: np.ndarray, labels: tuple[str, ...], precision: str) -> bytes:
    """The file of validation scores float32 [n, C] at ``precision``; thresholds float32 [C]."""
    cuts = np.arange(1, BINS) / BINS
    edges = np.quantile(scores, cuts, axis=0).T.astype(np.float32)
    bins = bin_of(scores, edges)
    counts = np.stack([(bins == number).sum(axis=0) for number in range(BINS)], axis=1)
    content = {
        "precision": precision,
        "pictures": len(scores),
        "labels": list(labels),
        # As short as float32 can be written.
        "edges": [[float(str(edge)) for edge in row] for row in edges],
        "counts": counts.tolist(),
        "rates": (scores >= thresholds).mean(axis=0).round(6).tolist(),
    }
    return (json.dumps(content) + "\n").encode()


def read_reference(bundle: Bundle) -> Reference | None:
    """A bundle's reference in its order of labels; None where it has none for its precision.

    Labels added since have no counts, and edges at probabilities 0.1 to 0.9.

    Raises:
        BadData: the file is not what ``reference_json`` writes.
    """
    if REFERENCE not in bundle.manifest.files:
        return None
    try:
        content = json.loads(bundle.read(REFERENCE))
        if content["precision"] != bundle.manifest.precision:
            return None
        rows = {label: row for row, label in enumerate(content["labels"])}
        edges, counts = np.array(content["edges"], np.float32), np.array(content["counts"], np.int64)
        rates, pictures = np.array(content["rates"], np.float64), int(content["pictures"])
        if edges.shape != (len(rows), BINS - 1) or counts.shape != (len(rows), BINS) or rates.shape != (len(rows),):
            raise ValueError(f"{edges.shape} edges, {counts.shape} counts, {rates.shape} rates of {len(rows)} labels")
    except (KeyError, TypeError, ValueError) as error:
        raise BadData(f"bundle {bundle.path}: {REFERENCE} cannot be read ({error}); export it again.") from error
    own = no_reference(bundle)
    for column, label in enumerate(bundle.manifest.labels):
        if (row := rows.get(label)) is not None:
            own.edges[column], own.counts[column], own.rates[column] = edges[row], counts[row], rates[row]
    return Reference(pictures, own.edges, own.counts, own.rates)


def no_reference(bundle: Bundle) -> Reference:
    """No counts, and every label's edges where its probability is 0.1, 0.2, … 0.9."""
    calibration, count = bundle.calibration, len(bundle.manifest.labels)
    chances = np.arange(1, BINS) / BINS
    logits = calibration.temperature * np.log(chances / (1 - chances)) + calibration.bias
    edges = np.tile((logits / calibration.logit_scale).astype(np.float32), (count, 1))
    return Reference(0, edges, np.zeros((count, BINS), np.int64), np.full(count, np.nan))
