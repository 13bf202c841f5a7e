"""``Result`` and ``Output``: what a pipeline gives, and what takes it."""

from dataclasses import dataclass
from typing import Protocol

from hpdval_edge.predictor import Prediction
from hpdval_edge.sources.frame import Frame, Pixels


@dataclass(frozen=True, slots=True)
class Result:
    """What a frame shows. picture: the frame as it was read; None unless an output asks for pictures."""

    frame: Frame
    prediction: Prediction
    picture: Pixels | None = None


class Output(Protocol):
    """Takes results in order, from one thread.

    pictures: whether it needs ``Result.picture``. ``write`` may keep results back, ``close`` leaves nothing unwritten
    and every file valid, also after an interruption.
    """

    pictures: bool

    def write(self, result: Result) -> None: ...

    def close(self) -> None: ...
