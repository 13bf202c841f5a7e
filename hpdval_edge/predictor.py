"""``Predictor``: pictures in, labels and scores out, wherever the bundle runs."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from hpdval_edge.bundle import Bundle, load_bundle
from hpdval_edge.errors import UsageError
from hpdval_edge.images import model_input, open_rgb
from hpdval_edge.runtimes import EngineOptions, load_engine

Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one picture shows.

    labels: chosen ones, best first. scores: float32 [C] in the manifest's order, cosines of about -1..1.
    patch_scores: float32 [rows, columns, C], the local view's cosine of each patch with each label.
    probabilities: float32 [C] in 0..1, how often pictures with such a score show the label, each label by itself (they
    do not add up to 1): sigmoid((logit_scale * s - bias) / temperature), fitted on the validation pictures and right
    as far as yours resemble those. Bundles without a fit have temperature 1 and bias 0, which is no calibrated
    probability. None only in a Prediction made by hand.
    """

    labels: tuple[str, ...]
    scores: np.ndarray
    patch_scores: np.ndarray
    probabilities: np.ndarray | None = None


class PrecisionWarning(UserWarning):
    """Thresholds and calibration were fitted on scores of another precision than the bundle computes in."""


class Predictor:
    """Runs a bundle on pictures; never imports torch unless the backend torchscript or pt2 is asked for.

    Args:
        model: path of a bundle, or a Bundle.
        backend: ``auto`` or one of the names in ``hpdval_edge.runtimes``.
        threshold: ``fitted`` takes the bundle's own, fitted on validation; a number serves all labels alike.
        top: choose the N best labels instead, whatever their scores.
        threads: CPU threads, 0 for the engine's own choice.
        build: whether a TensorRT engine that is not there yet may be built now, which takes minutes.
        engines: folder of TensorRT engines; None is beside the bundle.

    Warns:
        PrecisionWarning: the bundle's thresholds and calibration were fitted at another precision.
    """

    def __init__(
        self,
        model: str | Path | Bundle,
        backend: str = "auto",
        *,
        threshold: str | float = "fitted",
        top: int | None = None,
        threads: int = 0,
        build: bool = True,
        engines: Path | None = None,
    ) -> None:
        self.bundle = model if isinstance(model, Bundle) else load_bundle(model)
        self.engine = load_engine(self.bundle, backend, EngineOptions(threads, build, engines))
        warn_of_precision(self.bundle)
        self.top = top
        self.thresholds = _thresholds(threshold, self.bundle.thresholds)
        if top is not None and not 1 <= top <= len(self.labels):
            raise UsageError(
                f"top={top}, but the bundle has {len(self.labels)} labels; choose 1 to {len(self.labels)}."
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order of the scores."""
        return self.bundle.manifest.labels

    @overload
    def __call__(self, pictures: Picture) -> Prediction: ...

    @overload
    def __call__(self, pictures: Sequence[Picture]) -> list[Prediction]: ...

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Prediction | list[Prediction]:
        """Predict one picture or a list of them, each a path, a PIL image or uint8 [H, W, 3] RGB.

        Raises:
            BadData: a picture that cannot be read, named. ValueError: an array that is not uint8 [H, W, 3].
        """
        single = isinstance(pictures, (str, Path, Image.Image, np.ndarray))
        batch = [pictures] if single else list(pictures)
        if not batch:
            return []
        predictions = self.predict_images(self.prepare(batch))
        return predictions[0] if single else predictions

    def prepare(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Pictures as the model takes them (``images.INPUTS``): squashed to its size and normalised."""
        manifest = self.bundle.manifest
        sources = [as_pixels(picture) for picture in pictures]
        return model_input(sources, manifest.image_size, manifest.mean, manifest.std, manifest.input)

    def predict_pixels(self, pixels: np.ndarray) -> list[Prediction]:
        """Predict pictures already at the model's size, uint8 [B, S, S, 3]."""
        return self.predict_images(self.prepare(pixels))

    def predict_images(self, images: np.ndarray) -> list[Prediction]:
        """Predict what ``prepare`` made of pictures."""
        scores, patch_scores = self.engine(images)
        maps = patch_scores.reshape(len(scores), *self.bundle.manifest.grid, -1)
        probabilities = self.bundle.calibration.probabilities(scores)
        rows = zip(scores, maps, probabilities, strict=True)
        return [Prediction(self._choose(row), row, grid, chances) for row, grid, chances in rows]

    def _choose(self, scores: np.ndarray) -> tuple[str, ...]:
        order = np.argsort(-scores, kind="stable")
        chosen = order[: self.top] if self.top else [i for i in order if scores[i] >= self.thresholds[i]]
        return tuple(self.labels[i] for i in chosen)


def warn_of_precision(bundle: Bundle) -> None:
    """PrecisionWarning where the bundle's thresholds were fitted on scores of another precision than its own."""
    precision = bundle.manifest.precision
    if bundle.fitted_at != precision:
        warnings.warn(
            f"bundle {bundle.path} computes in {precision}, its thresholds and probabilities were fitted at "
            f"{bundle.fitted_at}; fit them anew with `hpedge calibrate {bundle.path} --data VALIDATION_LIST`.",
            PrecisionWarning,
            stacklevel=3,
        )


def as_pixels(picture: Picture) -> Image.Image | np.ndarray:
    """A path or a PIL image as an RGB PIL image; a uint8 [H, W, 3] array as it is."""
    if isinstance(picture, (str, Path)):
        return open_rgb(picture)
    if isinstance(picture, Image.Image):
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        found = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise ValueError(f"a picture must be a path, a PIL image or uint8 [H, W, 3], got {found}")
    return picture


def _thresholds(threshold: str | float, fitted: np.ndarray) -> np.ndarray:
    if threshold == "fitted":
        return fitted
    try:
        return np.full_like(fitted, float(threshold))
    except ValueError:
        raise UsageError(f"threshold {threshold!r} is neither 'fitted' nor a number.") from None
