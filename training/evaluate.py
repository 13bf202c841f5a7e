"""Scores and reports: one code path for the teacher, a run's weights and an exported bundle (DESIGN section 6)."""

from collections.abc import Callable

import numpy as np
import torch

from hpdval_edge.bundle import Bundle, Calibration
from hpdval_edge.images import model_input
from hpdval_edge.progress import progress
from hpdval_edge.runtimes import Engine
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.image_store import ImageStore
from hpdval_edge.training.metrics import multilabel_report
from hpdval_edge.training.model import DualView
from hpdval_edge.training.run_folder import CACHE

Scorer = Callable[[np.ndarray], np.ndarray]


def model_scorer(model: DualView, device: torch.device) -> Scorer:
    """Scores of a model: uint8 [B, S, S, 3] -> float32 [B, C], in float32 whatever training used."""

    def score(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            return model(images).scores.cpu().numpy()

    return score


def engine_scorer(bundle: Bundle, engine: Engine) -> Scorer:
    """Scores of a bundle's engine: uint8 [B, S, S, 3] -> float32 [B, C], in the bundle's precision."""
    manifest = bundle.manifest

    def score(pixels: np.ndarray) -> np.ndarray:
        return engine(model_input(pixels, manifest.image_size, manifest.mean, manifest.std, manifest.input))[0]

    return score


def score_pictures(scorer: Scorer, pictures: LabelledImages, size: int) -> np.ndarray:
    """Scores float32 [n, C] of labelled pictures, read at ``size`` pixels; the cache is used where there is one.

    Raises:
        BadData: pictures that cannot be read, named.
    """
    with progress("checking pictures", len(pictures)) as update:
        store = ImageStore(pictures, size=size, cache=CACHE if CACHE.is_dir() else None, on_progress=update)
    with progress("scoring", len(pictures)) as update:
        return score_store(scorer, store, on_progress=update)


def score_store(
    scorer: Scorer, store: ImageStore, *, batch: int = 64, on_progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Scores float32 [n, C] of every picture of an ImageStore."""
    scores = np.empty((len(store), 0), np.float32)
    for start in range(0, len(store), batch):
        rows = np.arange(start, min(start + batch, len(store)))
        part = scorer(store[rows])
        if not start:
            # Filled in place: a list of parts and their concatenation would hold all scores twice.
            scores = np.empty((len(store), part.shape[1]), np.float32)
        scores[rows] = part
        if on_progress:
            on_progress(int(rows[-1]) + 1, len(store))
    return scores


def post_process(scores: np.ndarray, post: str, logit_scale: float | None = None) -> np.ndarray:
    """``eval.post`` (METHOD section 10.5): softmax or L2 norm over the classes of each picture, or nothing; [n, C].

    The softmax is one of logits, ``logit_scale`` * s, as LMPT takes it: of bare cosines it would be almost linear.
    """
    if post == "softmax":
        if logit_scale is None:
            raise ValueError("post='softmax' needs the logit_scale that makes logits of the scores, got None")
        exponentials = np.exp(logit_scale * (scores - scores.max(axis=1, keepdims=True)))
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
    calibration: Calibration | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> dict:
    """``multilabel_report`` on raw scores float32 [n, C].

    class_counts: training positives [C], which make the groups. calibration: gives the probabilities for ECE.
    logit_scale: makes logits of the scores, for post ``softmax``; that of ``calibration`` where there is one.
    """
    if calibration is not None:
        logit_scale = calibration.logit_scale

    def probabilities(rows: slice) -> np.ndarray:
        return calibration.probabilities(scores[rows])

    return multilabel_report(
        post_process(scores, post, logit_scale),
        data.targets,
        class_counts,
        thresholds=thresholds if post == "none" else None,
        probabilities=probabilities if calibration else None,
        bootstrap=bootstrap,
        seed=seed,
        labels=data.labels,
    )
