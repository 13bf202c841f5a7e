"""``Result`` and ``Output``: what a pipeline gives, and what takes it."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from hpdval_edge.bundle import Bundle
from hpdval_edge.errors import UsageError
from hpdval_edge.predictor import Prediction
from hpdval_edge.sources.frame import Frame, Pixels


@dataclass(frozen=True, slots=True)
class Result:
    """What a frame shows. picture: the frame as it was read; None unless an output asks for pictures."""

    frame: Frame
    prediction: Prediction
    picture: Pixels | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What outputs know of the model. labels: all, in score order. thresholds: float32 [C], of the chosen labels.

    bundle: sha256 of its manifest.json, which holds those of all its files. precision: what it computes in.
    unfitted: labels whose thresholds are not their own (``Bundle.unfitted``); None where all have one that was chosen
    by hand.
    """

    labels: tuple[str, ...]
    thresholds: np.ndarray
    bundle: str
    precision: str
    unfitted: frozenset[str] | None = None

    @classmethod
    def of(cls, bundle: Bundle, thresholds: np.ndarray) -> "ModelInfo":
        """Of a bundle, with the thresholds in use, float32 [C]."""
        manifest = bundle.manifest
        unfitted = bundle.unfitted if np.array_equal(thresholds, bundle.thresholds) else None
        return cls(manifest.labels, thresholds, bundle.fingerprint(), manifest.precision, unfitted)

    def at(self, prediction: Prediction) -> "ModelInfo":
        """This, with the labels of ``prediction``, which a bundle that is loaded again may have changed."""
        found = prediction.label_set
        if found is None or found.bundle == self.bundle:
            return self
        unfitted = None if self.unfitted is None else found.unfitted
        return replace(self, labels=found.names, thresholds=found.thresholds, bundle=found.bundle, unfitted=unfitted)

    def is_unfitted(self, label: str) -> bool:
        """Whether people are to be told that its threshold is not fitted."""
        return self.unfitted is not None and label in self.unfitted

    def check_columns(self, prediction: Prediction, target: Path) -> None:
        """UsageError where ``prediction`` is of other labels than these, which are the columns of ``target``."""
        labels = self.at(prediction).labels
        if labels != self.labels:
            raise UsageError(
                f"{target} has a column for each of {len(self.labels)} labels, which are others since the bundle was "
                f"loaded again (now {len(labels)}); begin another file, or take JSON lines."
            )


class Closes(Protocol):
    """What is to be closed."""

    def close(self) -> None: ...


class Output(Closes, Protocol):
    """Takes results in order, from one thread.

    pictures: whether it needs ``Result.picture``. ``write`` may keep results back, ``close`` leaves nothing unwritten
    and every file valid, also after an interruption.
    """

    pictures: bool

    def write(self, result: Result) -> None: ...

    def close(self) -> None: ...


def close_all(outputs: Sequence[Closes]) -> None:
    """Close all in order, also where one of them cannot be; what the last such one raised is raised behind them."""
    with contextlib.ExitStack() as stack:
        for output in reversed(outputs):
            stack.callback(output.close)
