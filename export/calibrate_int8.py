"""What INT8 needs to know of a model's activations, from a run's training pictures, and the choice between the ways."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import ModelProto, ValueInfoProto

from hpdval_edge.bundle import Manifest
from hpdval_edge.export.quantise import Rules, layers, quantise, quantised_tensors
from hpdval_edge.export.ranges import METHODS, Histogram, limit
from hpdval_edge.export.smooth import norms, smooth
from hpdval_edge.images import model_input
from hpdval_edge.progress import progress
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.image_store import ImageStore

CALIBRATION_PICTURES = 512
# Of the calibration pictures, those whose activations SmoothQuant samples, and rows of each.
SMOOTHING_PICTURES = 128
ROWS_PER_PICTURE = 4
# Held back from calibration, to choose by.
HELD_OUT_PICTURES = 64
BATCH = 8

Banks = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Quantised:
    """The quantised model and how it came about.

    method: key of METHODS with the smallest error. errors: of each, root mean square of score differences to the model
    before, on the pictures held out. smoothed: LayerNorms of ``norms`` that were. layers: how many are quantised.
    """

    model: ModelProto
    method: str
    errors: dict[str, float]
    smoothed: int
    norms: int
    layers: int


def balanced_rows(targets: np.ndarray, count: int) -> np.ndarray:
    """Indices int64 of ``count`` different pictures, or all: labels take turns, the rarest first, each with one more.

    Args:
        targets: uint8 [n, C]. Pictures without a label come last.
    """
    rng = np.random.default_rng(0)
    decks = [rng.permutation(np.flatnonzero(targets[:, label])).tolist() for label in np.argsort(targets.sum(axis=0))]
    chosen: dict[int, None] = {}
    while any(decks) and len(chosen) < count:
        for deck in decks:
            while deck and deck[-1] in chosen:
                deck.pop()
            if deck and len(chosen) < count:
                chosen[deck.pop()] = None
    rest = [row for row in rng.permutation(len(targets)).tolist() if row not in chosen]
    return np.array([*chosen, *rest][:count], np.int64)


def choose_pictures(train: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Training pictures to calibrate with and to choose by, both balanced; a fifth to choose by where there are few."""
    rows = balanced_rows(train.targets, CALIBRATION_PICTURES + HELD_OUT_PICTURES)
    held_out = min(HELD_OUT_PICTURES, len(rows) // 5)
    # Every so often one, so that both parts have every label that has enough.
    picked = np.linspace(0, len(rows) - 1, held_out).astype(int)
    return train.subset(np.delete(rows, picked)), train.subset(rows[picked])


def batches(pictures: LabelledImages, manifest: Manifest) -> Iterator[np.ndarray]:
    """Pictures as the model takes them, up to BATCH at a time."""
    store = ImageStore(pictures, size=manifest.image_size, cache=None)
    with progress("calibrating int8", len(store)) as update:
        for start in range(0, len(store), BATCH):
            pixels = store[start : start + BATCH]
            yield model_input(pixels, manifest.image_size, manifest.mean, manifest.std, manifest.input)
            update(start + len(pixels), len(store))


def open_session(model: ModelProto) -> onnxruntime.InferenceSession:
    """The model in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def visit(
    model: ModelProto,
    names: list[str],
    images: Iterator[np.ndarray],
    banks: Banks,
    look: Callable[[str, np.ndarray], None],
) -> None:
    """Call ``look`` with name and value of each named tensor of the model, batch after batch."""
    watched = ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(ValueInfoProto(name=name) for name in names)
    session = open_session(watched)
    for batch in images:
        for name, value in zip(names, session.run(names, {"image": batch, **banks}), strict=True):
            look(name, value)


def histograms(model: ModelProto, names: list[str], images: Iterator[np.ndarray], banks: Banks) -> dict[str, Histogram]:
    """Magnitudes of each of the named tensors."""
    found = {name: Histogram() for name in names}
    visit(model, list(found), images, banks, lambda name, value: found[name].add(value))
    return found


def sample_rows(model: ModelProto, images: Iterator[np.ndarray], banks: Banks) -> dict[str, np.ndarray]:
    """Rows float32 [R, D] of what each of `norms` gives: random tokens of every picture."""
    found: dict[str, list[np.ndarray]] = {norm.output: [] for norm in norms(model)}
    rng = np.random.default_rng(0)

    def look(name: str, value: np.ndarray) -> None:
        rows = value.reshape(-1, value.shape[-1])
        found[name].append(rows[rng.choice(len(rows), min(len(rows), ROWS_PER_PICTURE * len(value)), replace=False)])

    if found:
        visit(model, list(found), images, banks, look)
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in found.items()}


def scores_of(model: ModelProto, images: list[np.ndarray], banks: Banks) -> np.ndarray:
    """Scores float32 [n, C] of batches of pictures."""
    session = open_session(model)
    return np.concatenate([session.run(["scores"], {"image": batch, **banks})[0] for batch in images])


def calibrate(
    model: ModelProto,
    pictures: tuple[LabelledImages, LabelledImages],
    manifest: Manifest,
    banks: Banks,
    rules: Rules,
) -> Quantised:
    """Smooth and quantise ``model``, from `load_graph`; each way to cut the tails is tried on the pictures held out.

    Args:
        pictures: of `choose_pictures`.
        banks: text_global and text_local, float32 [C, E].
    """
    seen, held_out = pictures
    candidates = norms(model)
    few = seen.subset(np.arange(min(len(seen), SMOOTHING_PICTURES)))
    smoothed = smooth(model, sample_rows(model, batches(few, manifest), banks), rules.weight_top) if candidates else 0
    found = histograms(model, quantised_tensors(model, rules), batches(seen, manifest), banks)
    unsigned = {name for name, histogram in found.items() if not histogram.negative}
    images = list(batches(held_out, manifest))
    expected = scores_of(model, images, banks)
    made, errors = {}, {}
    levels = {name: 256 if rules.unsigned and name in unsigned else 128 for name in found}
    for method in METHODS:
        limits = {name: limit(histogram, method, levels[name]) for name, histogram in found.items()}
        made[method] = quantise(model, limits, unsigned=unsigned, rules=rules)
        difference = scores_of(made[method], images, banks).astype(np.float64) - expected
        errors[method] = float(np.sqrt(np.square(difference).mean()))
    best = min(errors, key=errors.get)
    return Quantised(made[best], best, errors, smoothed, len(candidates), len(layers(model)))
