"""Decision thresholds from a validation split (NumPy only); the test split never chooses them.

A class's own threshold rests on its positives alone, so where those are few it is drawn towards the one threshold that
serves all classes together:

    t_c = w_c * own_c + (1 - w_c) * shared,    w_c = n_c / (n_c + m)

with n_c the class's validation positives. m, the positives that the shared threshold is worth, is the value that does
best on pictures that the thresholds were not fitted on.
"""

from dataclasses import dataclass

import numpy as np

from hpdval_edge.errors import UsageError
from hpdval_edge.training.average_precision import check_scores
from hpdval_edge.training.metrics import decision_quality

SHRINKAGES = (0, 1, 3, 10, 30, 100)
# Without enough pictures to hold some back; 1 is seldom far from the best.
UNTESTED_SHRINKAGE = 1
FOLDS = 5
OBJECTIVES = ("f1", "precision", "recall")


@dataclass(frozen=True, slots=True)
class Objective:
    """What a threshold is for: the highest F1, or the most labels found at a precision, or the fewest at a recall.

    level: the precision or recall to reach, in (0, 1]; 0 for f1.
    """

    name: str = "f1"
    level: float = 0.0

    def __str__(self) -> str:
        return self.name if self.name == "f1" else f"{self.name}={self.level:g}"


F1 = Objective()


def parse_objective(text: str) -> Objective:
    """``f1``, ``precision=P`` or ``recall=R``, with P and R in (0, 1]; UsageError for anything else."""
    name, equals, level = text.partition("=")
    if text == "f1":
        return F1
    try:
        value = float(level)
    except ValueError:
        value = -1.0
    if name not in OBJECTIVES[1:] or not equals or not 0 < value <= 1:
        raise UsageError(
            f"objective {text!r} is not f1, precision=P or recall=R with a number above 0 and up to 1, "
            "e.g. precision=0.9."
        )
    return Objective(name, value)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Fitted thresholds and how good they are.

    values: float32 [C]. fitted: bool [C], True where the class's own positives have a share. shrinkage: m. shared: the
    one threshold that serves all classes. reached: ``decision_quality`` on the pictures of the fit, which flatters.
    cross_fitted: the same on pictures held back, each judged by thresholds (m included) that others chose; None where
    there are fewer than two pictures.
    precision, recall: [C] on the pictures of the fit, NaN where nothing is predicted or positive.
    """

    values: np.ndarray
    fitted: np.ndarray
    shrinkage: float
    shared: float
    reached: dict[str, float]
    cross_fitted: dict[str, float] | None
    precision: np.ndarray
    recall: np.ndarray


def fit(scores, targets, objective: Objective = F1) -> Thresholds:
    """Choose a threshold per class, shrunk as above; a label is predicted where score >= threshold.

    A threshold lies midway between two neighbouring scores of its class, or is the lowest score where predicting every
    image is best. ``f1``: the highest F1, of equals the highest threshold. ``precision=P``: the lowest threshold whose
    precision is at least P, else the one of the highest precision. ``recall=R``: the highest threshold whose recall is
    at least R. The shared threshold is found in the same way over the scores of all classes together.

    Args:
        scores: [n,C] float32 or float64 on the validation split. Rounded to float32 first, what a bundle computes.
        targets: [n,C] 0/1 of any type.

    Raises:
        ValueError: a shape, a type or a value is wrong, or no target is positive.
    """
    scores, positive = check_scores(scores, targets)
    if not positive.any():
        raise ValueError("targets must hold at least one positive to fit thresholds on, got none")
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32, copy=False)
    if not np.isfinite(scores).all():
        raise ValueError("scores must fit into float32, got larger ones")
    folds = fold_numbers(scores, positive)
    shrinkage, cross_fitted = _cross_fit(scores, positive, folds, objective)
    unshrunk = _Unshrunk(scores, positive, objective)
    values = unshrunk.shrunk(shrinkage)
    counts = _count(scores, positive, values)
    hits, chosen, true = counts
    with np.errstate(invalid="ignore"):
        precision, recall = hits / chosen, hits / true
    quality = decision_quality(*counts)
    return Thresholds(values, true > 0, shrinkage, float(unshrunk.shared), quality, cross_fitted, precision, recall)


def fold_numbers(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the fold of each image, int [n] below FOLDS, evenly at random; whatever the order of the images.

    The images are first put into the order of their scores and targets, so that a shuffled list gives the same folds.
    """
    order = np.lexsort((*positive.T, *scores.T))
    folds = np.empty(len(scores), np.int64)
    folds[order] = np.random.default_rng(0).permutation(len(scores)) % FOLDS
    return folds


class _Unshrunk:
    """Each class's own threshold and the shared one, before they are mixed; infinite without a positive."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray, objective: Objective) -> None:
        self.true = positive.sum(axis=0)
        self.shared = best_threshold(scores.ravel(), positive.ravel(), objective)
        self.own = [
            best_threshold(scores[:, c], positive[:, c], objective) if n else self.shared
            for c, n in enumerate(self.true)
        ]

    def shrunk(self, shrinkage: float) -> np.ndarray:
        """Thresholds float32 [C] with m = ``shrinkage``."""
        weight = np.where(self.true > 0, self.true / np.maximum(self.true + shrinkage, 1), 0.0)
        mixed = self.shared + weight * (np.array(self.own, np.float64) - self.shared)
        # At either end the very float that was found, which may lie between two adjacent ones.
        return np.where(weight == 1, self.own, mixed).astype(np.float32)


def _count(scores: np.ndarray, positive: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return hits, predictions and positives, int [3,C], at thresholds float32 [C]."""
    predicted = scores >= thresholds
    return np.array([np.count_nonzero(kind, axis=0) for kind in (predicted & positive, predicted, positive)])


def _cross_fit(
    scores: np.ndarray, positive: np.ndarray, folds: np.ndarray, objective: Objective
) -> tuple[float, dict[str, float] | None]:
    """Return the best m, and the quality on pictures held back of thresholds whose m was chosen without them."""
    held = [fold for fold in range(FOLDS) if (folds == fold).any() and positive[folds != fold].any()]
    if len(held) < 2:
        return UNTESTED_SHRINKAGE, None
    counts = np.zeros((len(held), len(SHRINKAGES), 3, scores.shape[1]), np.int64)
    for row, fold in enumerate(held):
        out = folds == fold
        unshrunk = _Unshrunk(scores[~out], positive[~out], objective)
        for column, shrinkage in enumerate(SHRINKAGES):
            counts[row, column] = _count(scores[out], positive[out], unshrunk.shrunk(shrinkage))
    together = counts.sum(axis=0)
    # Each fold is judged at the m that the other folds like best, so that the choice of m hardly flatters.
    honest = [counts[row, _preferred(together - counts[row], objective)] for row in range(len(held))]
    return SHRINKAGES[_preferred(together, objective)], decision_quality(*np.sum(honest, axis=0))


def _preferred(counts: np.ndarray, objective: Objective) -> int:
    """Return the index of the best of counts [M,3,C]; of equals the first, the least shrunk."""
    qualities = [decision_quality(*candidate) for candidate in counts]
    if objective.name == "f1":
        return int(np.argmax([quality["OF1"] + quality["CF1"] for quality in qualities]))
    wanted, other = ("P", "R") if objective.name == "precision" else ("R", "P")
    level = 100 * objective.level
    # Reaching the level comes first, over all labels together and on average over classes; then the other figure.
    keys = [
        (sum(min(quality[view + wanted], level) for view in "OC"), sum(quality[view + other] for view in "OC"))
        for quality in qualities
    ]
    return keys.index(max(keys))


def best_threshold(scores: np.ndarray, positive: np.ndarray, objective: Objective) -> np.float32:
    """Return the threshold that ``fit`` describes for scores [m] float32 and positive [m] bool, one True at least."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # Only the last image of a tie group can be the last one predicted.
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(positive[order])[ends]
    best = _choice(hits, ends + 1, objective)
    lowest = ranked[ends[best]]
    if best == len(ends) - 1:
        return lowest
    below = ranked[ends[best + 1]]
    middle = np.float32((np.float64(lowest) + np.float64(below)) / 2)
    # Between adjacent floats the midpoint rounds to one of them, and must not let the lower one in.
    return middle if middle > below else lowest


def _choice(hits: np.ndarray, chosen: np.ndarray, objective: Objective) -> int:
    """Return which of the cuts with hits [G] among chosen [G] predictions serves the objective best."""
    if objective.name == "f1":
        # F1 = 2 tp / (predicted + positives); equal fractions are equal floats, so argmax keeps the highest threshold.
        return int(np.argmax(2 * hits / (chosen + hits[-1])))
    if objective.name == "recall":
        return int(np.argmax(hits / hits[-1] >= objective.level))
    precision = hits / chosen
    # Where no cut is precise enough, the best one there is; in either case the lowest threshold.
    return int(np.flatnonzero(precision >= min(objective.level, precision.max()))[-1])
