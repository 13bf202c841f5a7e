"""A run's scores on the pictures that it is reported on."""

from dataclasses import dataclass

import numpy as np
import torch

from hpdval_edge.bundle import Calibration
from hpdval_edge.errors import BadData
from hpdval_edge.progress import progress
from hpdval_edge.training.dataset import LabelledImages, Splits
from hpdval_edge.training.evaluate import model_scorer, post_process, score_store
from hpdval_edge.training.image_store import ImageStore
from hpdval_edge.training.model import DualView, load_model
from hpdval_edge.training.precision import choose_device, set_threads
from hpdval_edge.training.report.facts import RunFacts
from hpdval_edge.training.run_folder import CACHE


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of the reported split.

    scores: raw s, float32 [n, C]. model: in eval mode on ``device``, for heat maps of single pictures.
    """

    data: LabelledImages
    scores: np.ndarray
    model: DualView
    device: torch.device

    @property
    def positive(self) -> np.ndarray:
        """Bool [n, C]."""
        return self.data.targets == 1

    def ranking(self, post: str) -> np.ndarray:
        """What pictures are ranked by under ``eval.post``, float32 [n, C]."""
        return post_process(self.scores, post, self.model.logit_scale.item())

    def probabilities(self, *, temperature: float = 1.0, bias: float = 0.0) -> np.ndarray:
        """Float32 [n, C]; without arguments those that training optimised, not calibrated."""
        return Calibration(self.model.logit_scale.item(), temperature, bias).probabilities(self.scores)


def score_run(facts: RunFacts, splits: Splits) -> Scored:
    """Read the pictures and score them with the reported weights.

    Raises:
        BadData: pictures that cannot be read, or labels that are not the run's.
    """
    data = getattr(splits, facts.result["split"])
    if data is None or data.labels != facts.labels:
        raise BadData(
            f"the labels or splits of {facts.config.data.path} are no longer those that {facts.run.path} saw."
        )
    set_threads(facts.config.train.threads)
    device = choose_device(facts.config.train.device)
    model, _, _ = load_model(facts.weights)
    model = model.to(device)
    cache = CACHE if facts.config.data.cache else None
    with progress("checking pictures", len(data)) as update:
        store = ImageStore(data, size=model.student.spec.image_size, cache=cache, on_progress=update)
    with progress("scoring", len(data)) as update:
        scores = score_store(model_scorer(model, device), store, on_progress=update)
    return Scored(data, scores, model, device)
