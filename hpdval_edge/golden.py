"""An engine against the bundle's golden pictures."""

from typing import TYPE_CHECKING

import numpy as np

from hpdval_edge.bundle import Bundle
from hpdval_edge.images import model_input

if TYPE_CHECKING:
    from hpdval_edge.runtimes import Engine


def compare(bundle: Bundle, engine: "Engine") -> tuple[float, int]:
    """Largest |score - golden score| of an engine, and labels that change; inf for scores that are no numbers.

    Golden scores are float32 PyTorch's, of 16 pictures or so.
    """
    images, expected = bundle.golden()
    manifest = bundle.manifest
    scores = engine(model_input(images, manifest.image_size, manifest.mean, manifest.std, manifest.input))[0]
    error = np.abs(scores.astype(np.float64) - expected).max()
    flips = int(((scores >= bundle.thresholds) != (expected >= bundle.thresholds)).sum())
    return float(error) if np.isfinite(error) else float("inf"), flips
