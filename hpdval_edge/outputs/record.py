"""The record of a result: the one set of keys that lines, tables and messages have (record.schema.json)."""

from importlib.resources import files
from typing import Any

import numpy as np

from hpdval_edge.outputs.output import ModelInfo, Result

SCHEMA = 1
SCHEMA_FILE = files("hpdval_edge.outputs") / "record.schema.json"
# Digits behind the point: finer than any precision computes.
DIGITS = 6


def record(result: Result, model: ModelInfo) -> dict[str, Any]:
    """The record, of JSON's types: what record.schema.json describes and docs/outputs.md explains."""
    frame, prediction = result.frame, result.prediction
    model = model.at(prediction)
    return {
        "schema": SCHEMA,
        "path": frame.source,
        "frame": frame.index,
        "time": None if frame.time is None else round(float(frame.time), DIGITS),
        "labels": list(prediction.labels),
        "scores": _by_label(model.labels, prediction.scores),
        "probabilities": _by_label(model.labels, prediction.probabilities),
        "bundle": model.bundle,
        "precision": model.precision,
    }


def _by_label(labels: tuple[str, ...], values: np.ndarray) -> dict[str, float]:
    return dict(zip(labels, np.round(values.astype(np.float64), DIGITS).tolist(), strict=True))
