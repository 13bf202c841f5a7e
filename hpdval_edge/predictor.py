"""``Predictor``: pictures in, labels and scores out, wherever the bundle runs."""

import math
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from hpdval_edge.bundle import LABEL_FILES, Bundle, Manifest
from hpdval_edge.errors import UsageError
from hpdval_edge.images import input_shape, model_input, model_input_into, open_rgb
from hpdval_edge.runtimes import Engine, EngineOptions, load_engine
from hpdval_edge.watch import load_unchanged, stamp

Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of one prediction, which a reload may change: names in the order of its scores, thresholds float32
    [C] in use, unfitted, the names whose fitted threshold is not their own (``Bundle.unfitted``), and bundle, the
    ``Bundle.fingerprint`` that they are of.
    """

    names: tuple[str, ...]
    thresholds: np.ndarray
    unfitted: frozenset[str]
    bundle: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one picture shows.

    labels: chosen ones, best first. scores: float32 [C] in the manifest's order, cosines of about -1..1.
    patch_scores: float32 [rows, columns, C], the local view's cosine of each patch with each label; None where they
    were not asked for.
    probabilities: float32 [C] in 0..1, how often pictures with such a score show the label, each label by itself (they
    do not add up to 1): sigmoid((logit_scale * s - bias) / temperature), fitted on the validation pictures and right
    as far as yours resemble those. Bundles without a fit have temperature 1 and bias 0, which is no calibrated
    probability. label_set: what the scores are of. Both are None only in a Prediction made by hand.
    """

    labels: tuple[str, ...]
    scores: np.ndarray
    patch_scores: np.ndarray | None
    probabilities: np.ndarray | None = None
    label_set: LabelSet | None = None


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
        self.backend, self.threshold, self.top = backend, threshold, top
        self.options = EngineOptions(threads, build, engines)
        self._reloading = threading.Lock()
        # A bundle read by somebody else may be older than the disk: the first reload looks.
        self._stamp, bundle = (None, model) if isinstance(model, Bundle) else load_unchanged(Path(model))
        self._loaded = self._load(bundle, load_engine(bundle, backend, self.options))
        warn_of_precision(bundle)

    def _load(self, bundle: Bundle, engine: Engine) -> "_Loaded":
        thresholds = _thresholds(self.threshold, bundle.thresholds)
        names = bundle.manifest.labels
        if self.top is not None and not 1 <= self.top <= len(names):
            raise UsageError(f"top={self.top}, but the bundle has {len(names)} labels; choose 1 to {len(names)}.")
        return _Loaded(bundle, engine, LabelSet(names, thresholds, bundle.unfitted, bundle.fingerprint()))

    @property
    def bundle(self) -> Bundle:
        """The bundle in use."""
        return self._loaded.bundle

    @property
    def engine(self) -> Engine:
        """The engine in use."""
        return self._loaded.engine

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order of the scores."""
        return self._loaded.labels.names

    @property
    def thresholds(self) -> np.ndarray:
        """Thresholds in use, float32 [C]."""
        return self._loaded.labels.thresholds

    def reload(self) -> bool:
        """Take over what another program made of the bundle on disk; True where something changed.

        The loaded engine is kept and gets the new text banks where the model is the same. One thread may call this
        while others predict: each prediction is of the old labels or of the new ones throughout, and its ``label_set``
        says which. Where nothing was written it costs one look at the manifest's date.

        Raises:
            HpedgeError: the bundle on disk cannot be used, as when it is opened; the old one stays in use.
        """
        with self._reloading:
            old = self._loaded
            found = stamp(old.bundle.path)
            if found is None or found == self._stamp:
                return False
            found, bundle = load_unchanged(old.bundle.path)
            if bundle.manifest == old.bundle.manifest:
                self._stamp = found
                return False
            same = _model(bundle.manifest) == _model(old.bundle.manifest)
            engine = old.engine.with_banks(bundle) if same else None
            self._loaded = self._load(bundle, engine or load_engine(bundle, self.backend, self.options))
            self._stamp = found
            if not same:
                warn_of_precision(bundle)
            return True

    @overload
    def __call__(self, pictures: Picture) -> Prediction: ...

    @overload
    def __call__(self, pictures: Sequence[Picture]) -> list[Prediction]: ...

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Prediction | list[Prediction]:
        """Predict one picture or a list of them, each a path, a PIL image or uint8 [H, W, 3] RGB.

        Raises:
            BadData: a picture that cannot be read, named. ValueError: what is no picture, as arrays that are not uint8
            [H, W, 3].
        """
        single = isinstance(pictures, (str, Path, Image.Image, np.ndarray)) or not isinstance(pictures, Iterable)
        batch = [pictures] if single else list(pictures)
        if not batch:
            return []
        loaded = self._loaded
        predictions = self._predict(loaded, _prepare(loaded, batch))
        return predictions[0] if single else predictions

    def prepare(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Pictures as the model takes them (``images.INPUTS``): squashed to its size and normalised."""
        return _prepare(self._loaded, pictures)

    def empty_batch(self, count: int) -> np.ndarray:
        """Room for ``count`` pictures as ``prepare`` gives them, for ``prepare_into`` to fill."""
        manifest = self.bundle.manifest
        return np.empty((count, *input_shape(manifest.image_size, manifest.input)), manifest.input)

    def prepare_into(self, picture: Image.Image | np.ndarray, row: np.ndarray) -> None:
        """Write what ``prepare`` makes of one picture into ``row``, one of ``empty_batch``."""
        manifest = self.bundle.manifest
        model_input_into(picture, row, manifest.image_size, manifest.mean, manifest.std)

    def predict_pixels(self, pixels: np.ndarray) -> list[Prediction]:
        """Predict pictures already at the model's size, uint8 [B, S, S, 3]."""
        return self.predict_images(self.prepare(pixels))

    def predict_images(self, images: np.ndarray, patch_scores: bool = True) -> list[Prediction]:
        """Predict what ``prepare`` made of pictures, for the same model: a reload in between may bring another one.

        Without ``patch_scores`` the predictions hold none, which is faster where there are many labels.
        """
        return self._predict(self._loaded, images, patch_scores)

    def _predict(self, loaded: "_Loaded", images: np.ndarray, patch_scores: bool = True) -> list[Prediction]:
        bundle, labels = loaded.bundle, loaded.labels
        scores, cosines = loaded.engine(images, patch_scores)
        maps = [None] * len(scores)
        if patch_scores:
            maps = cosines.reshape(len(scores), *bundle.manifest.grid, -1)
        rows = zip(scores, maps, bundle.calibration.probabilities(scores), strict=True)
        return [Prediction(self._choose(labels, row), row, grid, chances, labels) for row, grid, chances in rows]

    def _choose(self, labels: LabelSet, scores: np.ndarray) -> tuple[str, ...]:
        return tuple(labels.names[i] for i in choose(scores, labels.thresholds, self.top))


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a reload replaces, all at once: who holds one predicts with labels, banks and thresholds that agree."""

    bundle: Bundle
    engine: Engine
    labels: LabelSet


def choose(scores: np.ndarray, thresholds: np.ndarray, top: int | None) -> np.ndarray:
    """Indices of the chosen labels, best first: the ``top`` best, or where None those that reach their thresholds.

    Args:
        scores, thresholds: float32 [C].
    """
    found = np.arange(len(scores)) if top else np.flatnonzero(scores >= thresholds)
    return found[np.argsort(-scores[found], kind="stable")][:top]


def _model(manifest: Manifest) -> Manifest:
    """The manifest without what labels change: equal for bundles that one loaded engine serves."""
    files = {name: digest for name, digest in manifest.files.items() if name not in LABEL_FILES}
    return replace(manifest, labels=(), files=files, provenance={})


def _prepare(loaded: _Loaded, pictures: Sequence[Picture]) -> np.ndarray:
    manifest = loaded.bundle.manifest
    sources = [as_pixels(picture) for picture in pictures]
    return model_input(sources, manifest.image_size, manifest.mean, manifest.std, manifest.input)


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
        number = float(threshold)
    except ValueError:
        number = math.nan
    # Written so that NaN fails.
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise UsageError(f"threshold {threshold!r} is neither 'fitted' nor a finite float32 number.")
    return np.full_like(fitted, number)
