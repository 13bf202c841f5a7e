"""``hpedge export --int8``: quantise the written model, measure it, and keep it only within budget and if faster."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from hpdval_edge.bundle import THRESHOLDS, Manifest
from hpdval_edge.errors import BadData, CheckFailed
from hpdval_edge.export.calibrate_int8 import (
    CALIBRATION_PICTURES,
    HELD_OUT_PICTURES,
    Banks,
    Quantised,
    batches,
    calibrate,
    choose_pictures,
    open_session,
)
from hpdval_edge.export.quantise import CPU, TENSORRT, load_graph
from hpdval_edge.images import model_input
from hpdval_edge.progress import say
from hpdval_edge.training.average_precision import average_precision
from hpdval_edge.training.calibration import stored_objective
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.evaluate import model_scorer, score_pictures
from hpdval_edge.training.measure import own_splits
from hpdval_edge.training.model import load_model
from hpdval_edge.training.run_folder import RunFolder, reported_weights
from hpdval_edge.training.thresholds import Objective, fit

SECONDS = 5.0
FEWEST_PAIRS, MOST_PAIRS = 9, 200


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Float32 PyTorch against int8 on ``pictures`` validation pictures.

    float_map, int8_map: in percent. max_difference: of scores. flips: of ``decisions`` labels, each at the thresholds
    fitted on its own scores.
    """

    float_map: float
    int8_map: float
    max_difference: float
    flips: int
    decisions: int
    pictures: int

    @property
    def loss(self) -> float:
        """Points of mAP."""
        return self.float_map - self.int8_map

    def __str__(self) -> str:
        return (
            f"mAP {self.float_map:.2f} at float32, {self.int8_map:.2f} at int8 on {self.pictures} validation pictures"
        )


@dataclass(frozen=True, slots=True)
class Speed:
    """Time of float32 over time of int8 in interleaved pairs, one picture each: the median and the quartiles."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return (
            f"{self.median:.2f}x the speed of float32 in ONNX Runtime {onnxruntime.__version__} "
            f"({self.low:.2f} to {self.high:.2f}, quartiles of {self.pairs} pairs)"
        )


@dataclass(frozen=True, slots=True)
class Int8Report:
    """How an int8 model was made and what it is worth; speed None where it is not for this machine."""

    method: str
    layers: int
    smoothed: int
    norms: int
    calibration_pictures: int
    accuracy: Accuracy
    budget: float
    speed: Speed | None

    def lines(self) -> list[str]:
        """For the terminal."""
        measured = self.accuracy
        return [
            f"int8: {self.layers} layers, {self.method} of {self.calibration_pictures} training pictures, "
            f"{self.smoothed} of {self.norms} LayerNorms smoothed",
            f"int8: {measured}, {self.budget:g} may be lost; max |score difference| {measured.max_difference:.1e}, "
            f"{measured.flips} of {measured.decisions} labels change",
            f"int8: {self.speed or 'speed is not timed here, the model is meant for TensorRT'}",
        ]


def make_int8(path: Path, run: RunFolder, manifest: Manifest, banks: Banks, budget: float) -> Int8Report:
    """Replace the float model ``path`` by its int8 version, after measuring it.

    Args:
        manifest: precision int8, for CPUs, or int8-fp16, for TensorRT.
        banks: text_global and text_local, float32 [C, E].
        budget: points of mAP that may be lost on the run's validation pictures.

    Raises:
        UsageError, BadData: the run's pictures are not there any more, or too few.
        CheckFailed: it loses more than the budget, or is not faster than float32 in ONNX Runtime.
    """
    cpu = manifest.precision == "int8"
    splits = own_splits(run, manifest.labels)
    pictures = choose_pictures(splits.train)
    _check_number(pictures, splits.train)
    model = load_graph(str(path))
    made = calibrate(model, pictures, manifest, banks, CPU if cpu else TENSORRT)
    accuracy = measure_accuracy(made, run, splits.val, manifest, banks)
    check_budget(accuracy, budget)
    speed = None
    if cpu:
        image = next(batches(pictures[1].subset([0]), manifest))
        speed = measure_speed(model, made.model, {"image": image, **banks})
        check_speed(speed, accuracy)
    onnx.save(made.model, str(path))
    return Int8Report(made.method, made.layers, made.smoothed, made.norms, len(pictures[0]), accuracy, budget, speed)


def _check_number(pictures: tuple[LabelledImages, LabelledImages], train: LabelledImages) -> None:
    if not len(pictures[1]):
        raise BadData(f"--int8 calibrates with training pictures, 5 at least; this run has {len(train)}.")
    if len(train) < CALIBRATION_PICTURES + HELD_OUT_PICTURES:
        say(
            f"note: int8 is calibrated with all {len(train)} training pictures, {len(pictures[1])} of them to choose "
            f"by; {CALIBRATION_PICTURES} and {HELD_OUT_PICTURES} would be better."
        )


def measure_accuracy(
    made: Quantised, run: RunFolder, validation: LabelledImages, manifest: Manifest, banks: Banks
) -> Accuracy:
    """Score the validation pictures with float32 PyTorch and with the quantised model."""
    session = open_session(made.model)

    def int8_scorer(pixels: np.ndarray) -> np.ndarray:
        image = model_input(pixels, manifest.image_size, manifest.mean, manifest.std, manifest.input)
        return session.run(["scores"], {"image": image, **banks})[0]

    # Read anew: the export's own copy of the weights is folded, perhaps rounded.
    exact = model_scorer(load_model(reported_weights(run))[0], torch.device("cpu"))
    pair = [score_pictures(scorer, validation, manifest.image_size) for scorer in (exact, int8_scorer)]
    return compare_scores(*pair, validation.targets, stored_objective(run.read_json(THRESHOLDS)["fp32"]))


def compare_scores(exact: np.ndarray, rounded: np.ndarray, targets: np.ndarray, objective: Objective) -> Accuracy:
    """Accuracy of scores float32 [n, C] against those of float32 PyTorch."""
    if not np.isfinite(rounded).all():
        raise CheckFailed("int8 gives scores that are no numbers; nothing was written. Export without --int8.")
    if not targets.any():
        raise BadData(f"none of the {len(targets)} validation pictures has a label; int8 cannot be measured.")
    chosen = [scores >= fit(scores, targets, objective).values for scores in (exact, rounded)]
    means = [100 * float(np.nanmean(average_precision(scores, targets))) for scores in (exact, rounded)]
    return Accuracy(
        *means,
        max_difference=float(np.abs(exact.astype(np.float64) - rounded).max()),
        flips=int((chosen[0] != chosen[1]).sum()),
        decisions=exact.size,
        pictures=len(targets),
    )


def check_budget(accuracy: Accuracy, budget: float) -> None:
    """CheckFailed where more than ``budget`` points of mAP are lost."""
    if not accuracy.loss <= budget:
        raise CheckFailed(
            f"int8 loses {accuracy.loss:.2f} points of mAP ({accuracy}) and export.int8_budget allows {budget:g}; "
            "nothing was written. Export with --fp16."
        )


def check_speed(speed: Speed, accuracy: Accuracy) -> None:
    """CheckFailed unless int8 is the faster one in three pairs of four."""
    if speed.low <= 1:
        raise CheckFailed(
            f"int8 is not faster than float32 on this CPU: {speed}, {accuracy}; nothing was written. "
            "Export with --fp16, or --int8 --fp16 for TensorRT."
        )


def measure_speed(exact: onnx.ModelProto, rounded: onnx.ModelProto, feed: Banks) -> Speed:
    """Time both models on one input in ONNX Runtime, in turns, for about SECONDS; each pair gives one ratio."""
    sessions = open_session(exact), open_session(rounded)

    def seconds(session: onnxruntime.InferenceSession) -> float:
        start = time.perf_counter()
        session.run(["scores"], dict(feed))
        return time.perf_counter() - start

    for session in sessions:
        seconds(session)
    ratios: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(ratios) < FEWEST_PAIRS or (time.perf_counter() < end and len(ratios) < MOST_PAIRS):
        # The first of a pair changes, so that neither always finds the other's caches.
        order = sessions if len(ratios) % 2 else sessions[::-1]
        taken = {id(session): seconds(session) for session in order}
        ratios.append(taken[id(sessions[0])] / taken[id(sessions[1])])
    low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return Speed(median, low, high, len(ratios))
