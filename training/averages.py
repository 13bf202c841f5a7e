"""Weights beside the ones being trained: their moving average, and the line back to where they started."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a model's trainable tensors and float buffers, with warm-up (1 + t) / (10 + t)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = _copies(model)

    def update(self, model: nn.Module, step: int) -> None:
        """Blend in the weights after optimizer step ``step`` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        live = dict(_learning(model))
        torch._foreach_lerp_([self.shadow[name] for name in live], list(live.values()), weight)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model holds the averages."""
        with _swapped(model, self.shadow):
            yield


class WeightLine:
    """The straight line from a model's weights at the start of a stage to those it has now.

    A student that starts at CLIP's image tower recognises rare labels before it is trained. Training gains on frequent
    labels and forgets rare ones; a point between start and end keeps both, at no cost when deployed (WiSE-FT,
    arXiv:2109.01903; not of the paper).
    """

    def __init__(self, model: nn.Module) -> None:
        self.start = _copies(model)

    @contextmanager
    def at(self, model: nn.Module, share: float) -> Iterator[None]:
        """Inside, the model holds start + share * (now - start)."""
        point = {name: torch.lerp(self.start[name], value, share) for name, value in _learning(model)}
        with _swapped(model, point):
            yield


def _learning(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What training changes: trainable tensors and the running statistics of batch norms."""
    trained = [(name, value.detach()) for name, value in model.named_parameters() if value.requires_grad]
    statistics = [
        (name, value)
        for name, value in model.named_buffers()
        if value.is_floating_point() and name.endswith(("running_mean", "running_var"))
    ]
    return trained + statistics


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in _learning(model)}


@contextmanager
def _swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    live = _copies(model)
    _assign(model, values)
    try:
        yield
    finally:
        _assign(model, live)


@torch.no_grad()
def _assign(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, target in _learning(model):
        target.copy_(values[name])
