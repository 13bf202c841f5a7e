"""Temperature and bias that turn cosines into probabilities, fitted on a validation split (NumPy only).

    p = sigmoid((scale * s - b) / T)

is Platt scaling: T and b minimise the log-loss of all image-label pairs, with Platt's targets (N+ + 1) / (N+ + 2) for a
positive and 1 / (N- + 2) for a negative in place of 1 and 0, so that perfectly separated pairs have a finite T as well.
A bias is needed beside T because cosines have no natural zero: training moves positives above negatives, but not to
either side of 0, and dividing by T leaves p = 1/2 at s = 0.
"""

import math
from typing import Any

import numpy as np

from hpdval_edge.bundle import Calibration
from hpdval_edge.errors import BadData
from hpdval_edge.training.average_precision import check_scores, row_blocks
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.metrics import calibration_error
from hpdval_edge.training.thresholds import Objective, Thresholds, fit, fold_numbers, parse_objective

# Scores that fall where labels hold would ask for a negative temperature; they get this nearly flat one.
HIGHEST_TEMPERATURE = 1e3
LOWEST_TEMPERATURE = 1e-3
STEPS = 100
TOLERANCE = 1e-10
RIDGE = 1e-9


def fit_calibration(scores, targets, logit_scale: float) -> Calibration:
    """Fit T and b by Newton's method with halved steps, in float64 over blocks of rows.

    Args:
        scores: [n,C] float32 or float64 on the validation split.
        targets: [n,C] 0/1 of any type.
        logit_scale: positive, what multiplies the scores first.

    Raises:
        ValueError: a shape, a type or a value is wrong.
    """
    scores, positive = check_scores(scores, targets)
    if not logit_scale > 0:
        raise ValueError(f"logit_scale must be positive, got {logit_scale}")
    loss = _Loss(scores, positive, logit_scale)
    slope, offset = loss.minimum(free_slope=True)
    bounded = float(np.clip(slope, 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE))
    if bounded != slope:
        slope, offset = loss.minimum(free_slope=False, slope=bounded)
    return Calibration(logit_scale, temperature=float(1 / slope), bias=float(-offset / slope))


class _Loss:
    """Log-loss of sigmoid(a * z + c), z = logit_scale * s, against Platt's targets, as a function of a = 1/T and c."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray, logit_scale: float) -> None:
        self.scores, self.positive, self.logit_scale = scores, positive, logit_scale
        positives = np.count_nonzero(positive)
        negatives = positive.size - positives
        self.target = np.array([1 / (negatives + 2), (positives + 1) / (positives + 2)])
        mean = sum(scores[rows].sum(dtype=np.float64) for rows in row_blocks(scores.shape)) / scores.size
        # Around their mean the scores hardly correlate with the offset, which keeps Newton's system well conditioned.
        self.middle = logit_scale * mean
        share = (positives + 1) / (positive.size + 2)
        self.start = np.log(share / (1 - share))

    def derivatives(self, slope: float, offset: float) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the mean loss, its gradient [2] and its Hessian [2,2] in (slope, offset)."""
        value, gradient, hessian = 0.0, np.zeros(2), np.zeros((2, 2))
        for rows in row_blocks(self.scores.shape):
            z = self.logit_scale * self.scores[rows].astype(np.float64) - self.middle
            target = self.target[self.positive[rows].astype(np.intp)]
            logit = slope * z + offset
            value += (np.logaddexp(0, logit) - target * logit).sum()
            probability = 0.5 + 0.5 * np.tanh(0.5 * logit)
            error, curvature = probability - target, probability * (1 - probability)
            gradient += ((error * z).sum(), error.sum())
            mixed = (curvature * z).sum()
            hessian += [[(curvature * z * z).sum(), mixed], [mixed, curvature.sum()]]
        size = self.scores.size
        return value / size, gradient / size, hessian / size

    def minimum(self, *, free_slope: bool, slope: float = 1.0) -> tuple[float, float]:
        """Return slope and offset (of z, not of its middle) of the lowest loss; without ``free_slope`` it stays."""
        point = np.array([slope, self.start])
        free = np.array([free_slope, True])
        value, gradient, hessian = self.derivatives(*point)
        for _ in range(STEPS):
            step = np.where(free, gradient, 0.0)
            system = np.where(np.outer(free, free), hessian, 0.0) + np.diag(np.where(free, RIDGE, 1.0))
            step = np.linalg.solve(system, step)
            length = 1.0
            while length > TOLERANCE:
                candidate = self.derivatives(*(point - length * step))
                # A step must bring a part of what its slope promises (Armijo), or it is halved.
                if candidate[0] <= value - 1e-4 * length * (gradient @ step):
                    break
                length /= 2
            else:
                break
            point, (value, gradient, hessian) = point - length * step, candidate
            if np.abs(length * step).max() < TOLERANCE * np.abs(point).max():
                break
        return float(point[0]), float(point[1] - point[0] * self.middle)


def calibration_quality(scores, targets, calibration: Calibration) -> dict[str, float | None]:
    """ECE (0..1, see ``multilabel_report``) on the pictures of a fit.

    Returns:
        before: of sigmoid(logit_scale * s). after: of ``calibration``, on the pictures it was fitted on.
        cross_fitted: each picture's probability from a fit on the other folds; None for fewer than two pictures.
    """
    scores, positive = check_scores(scores, targets)
    plain = Calibration(calibration.logit_scale)
    quality: dict[str, float | None] = {
        "before": calibration_error(lambda rows: plain.probabilities(scores[rows]), positive),
        "after": calibration_error(lambda rows: calibration.probabilities(scores[rows]), positive),
    }
    folds = fold_numbers(scores, positive)
    held = np.unique(folds)
    quality["cross_fitted"] = None
    if len(held) > 1:
        probabilities = np.empty(scores.shape, np.float32)
        for fold in held:
            out = folds == fold
            fitted = fit_calibration(scores[~out], positive[~out], calibration.logit_scale)
            probabilities[out] = fitted.probabilities(scores[out])
        quality["cross_fitted"] = calibration_error(probabilities, positive)
    return quality


def stored_objective(entry: dict[str, Any]) -> Objective:
    """The objective of an entry of thresholds.json; f1 in those that name none."""
    return parse_objective(entry.get("objective", "f1"))


def fit_entry(
    scores: np.ndarray, pictures: LabelledImages, *, logit_scale: float, objective: Objective, precision: str
) -> dict[str, Any]:
    """Fit everything on validation scores float32 [n, C] and return the entry of thresholds.json, ready for JSON.

    Returns:
        values, fitted, labels: per label, see ``Thresholds``. objective, shrinkage, shared, fitted_at (the precision).
        temperature, bias: see ``Calibration``. pictures: n. reached, cross_fitted: ``decision_quality`` on the
        pictures of the fit and on pictures held back. ECE: see ``calibration_quality``. short: labels below the
        objective's level on the pictures of the fit, each with ``label``, ``positives`` and ``reached`` in 0..1.

    Raises:
        BadData: no picture has a label.
    """
    if not pictures.targets.any():
        raise BadData(f"none of the {len(pictures)} validation pictures has a label; thresholds need positives.")
    thresholds = fit(scores, pictures.targets, objective)
    calibration = fit_calibration(scores, pictures.targets, logit_scale)
    return {
        "values": thresholds.values.tolist(),
        "fitted": thresholds.fitted.tolist(),
        "labels": list(pictures.labels),
        "objective": str(objective),
        "shrinkage": thresholds.shrinkage,
        "shared": thresholds.shared,
        "fitted_at": precision,
        "temperature": calibration.temperature,
        "bias": calibration.bias,
        "pictures": len(pictures),
        "reached": thresholds.reached,
        "cross_fitted": thresholds.cross_fitted,
        "ECE": calibration_quality(scores, pictures.targets, calibration),
        "short": _short(thresholds, pictures, objective),
    }


def _short(thresholds: Thresholds, pictures: LabelledImages, objective: Objective) -> list[dict[str, Any]]:
    """Labels below the level of a precision or recall objective; ``reached`` None where nothing is to be measured."""
    if objective.name == "f1":
        return []
    reached = thresholds.precision if objective.name == "precision" else thresholds.recall
    rows = zip(pictures.labels, pictures.class_counts.tolist(), reached.tolist(), strict=True)
    return [
        {"label": label, "positives": positives, "reached": None if math.isnan(value) else value}
        for label, positives, value in rows
        if not value >= objective.level
    ]
