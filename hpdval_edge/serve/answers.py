"""Predictions as the API tells them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpdval_edge.predictor import Prediction, choose
from hpdval_edge.serve.refusal import Refusal
from hpdval_edge.serve.schema import Options

# Cosines and probabilities are float32 of about seven digits.
DIGITS = 6


def check_options(options: Options, labels: Sequence[str]) -> None:
    """Refusal 422 where ``options`` name a label that is none of the bundle's, or more labels than it has."""
    if options.top is not None and options.top > len(labels):
        raise Refusal(422, f"top={options.top}, but the bundle has {len(labels)} labels.")
    for label in options.heat_map:
        if label not in labels:
            raise Refusal(422, f"heat_map: {label!r} is no label of the bundle; GET /v1/labels lists them.")


def picture_result(name: str, size: tuple[int, int], prediction: Prediction, options: Options) -> dict[str, Any]:
    """One PictureResult; ``size`` is (width, height), ``options`` are those that `check_options` let through."""
    labels, scores, unfitted = prediction.label_set.names, prediction.scores, prediction.label_set.unfitted
    own = options.threshold == "fitted"
    thresholds = prediction.label_set.thresholds if own else np.full_like(scores, options.threshold)
    chosen = choose(scores, thresholds, options.top)
    listed = chosen if options.scores == "chosen" else np.argsort(-scores, kind="stable")
    columns = (listed.tolist(), *(rounded(values[listed]) for values in (scores, prediction.probabilities, thresholds)))
    names = {labels[i] for i in chosen}
    return {
        "name": name,
        "width": size[0],
        "height": size[1],
        "labels": [labels[i] for i in chosen],
        "scores": [
            {
                "label": labels[i],
                "score": score,
                "probability": probability,
                "threshold": threshold,
                "fitted": labels[i] not in unfitted,
                "chosen": labels[i] in names,
            }
            for i, score, probability, threshold in zip(*columns, strict=True)
        ],
        "heat_maps": {
            label: [rounded(row) for row in prediction.patch_scores[:, :, labels.index(label)]]
            for label in options.heat_map
        },
    }


def rounded(values: np.ndarray) -> list[float]:
    """Float32 [n] as numbers of DIGITS decimals."""
    return [round(value, DIGITS) for value in values.tolist()]


def encode(bundle: str, results: Sequence[Mapping[str, Any]]) -> bytes:
    """A ClassifyAnswer of the bundle of this name as JSON."""
    answer = {"bundle": bundle, "results": results}
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
