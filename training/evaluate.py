"""Scores and reports: one code path for the teacher, a run's weights and an exported bundle (DESIGN section 6)."""

from collections.abc import Callable

import numpy as np
import torch

from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.image_store import ImageStore
from hpdval_edge.training.metrics import multilabel_report
from hpdval_edge.training.model import DualView

Scorer = Callable[[np.ndarray], np.ndarray]


def model_scorer(model: DualView, device: torch.device) -> Scorer:
    """Scores of a model: uint8 [B, S, S, 3] -> float32 [B, C], in float32 whatever training used."""

    def score(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            return model(images).scores.cpu().numpy()

    return score


def score_store(
    scorer: Scorer, store: ImageStore, *, batch: int = 64, on_progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Scores float32 [n, C] of every picture of an ImageStore."""
    parts = []
    for start in range(0, len(store), batch):
        rows = np.arange(start, min(start + batch, len(store)))
        parts.append(scorer(store[rows]))
        if on_progress:
            on_progress(int(rows[-1]) + 1, len(store))
    return np.concatenate(parts).astype(np.float32)


def post_process(scores: np.ndarray, post: str) -> np.ndarray:
    """``eval.post`` (METHOD section 10.5): softmax or L2 norm over the classes of each picture, or nothing; [n, C]."""
    if post == "softmax":
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)
    if post == "l2class":
        return scores / np.maximum(np.linalg.norm(scores, axis=1, keepdims=True), 1e-12)
    return scores


def report(
    scores: np.ndarray,
    data: LabelledImages,
    class_counts: np.ndarray,
    *,
    post: str = "none",
    thresholds: np.ndarray | None = None,
    logit_scale: float | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> dict:
    """``multilabel_report`` on raw scores float32 [n, C]; probabilities are sigmoid(logit_scale * s), uncalibrated.

    class_counts: training positives [C], which make the groups.
    """
    probabilities = None if logit_scale is None else 1 / (1 + np.exp(-np.float64(logit_scale) * scores))
    return multilabel_report(
        post_process(scores, post),
        data.targets,
        class_counts,
        thresholds=thresholds if post == "none" else None,
        probabilities=probabilities,
        bootstrap=bootstrap,
        seed=seed,
        labels=data.labels,
    )
