"""What the dual-view head accepts: kinds, shapes and values, each mistake named with the value received."""

from __future__ import annotations

import sys
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Array: TypeAlias = np.ndarray | Tensor

DTYPES = ("float32", "float16", "bfloat16")
# NumPy composes a dtype's name anew at each use, 5 microseconds.
NUMPY_NAMES = {np.dtype(name): name for name in DTYPES[:2]}
LAYOUT = {"cls": "[B, E]", "patches": "[B, N, E]", "text_global": "[C, E]", "text_local": "[C, E]"}


def is_tensor(x: object) -> bool:
    # Whoever holds a tensor has imported torch already; nobody else pays for it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def dtype_name(x: Array) -> str:
    if is_tensor(x):
        return str(x.dtype).removeprefix("torch.")
    return NUMPY_NAMES.get(x.dtype) or x.dtype.name


def check_arrays(named: dict[str, Any]) -> None:
    """Raise unless the arrays, named as in LAYOUT, are of one kind and fit together.

    Raises:
        TypeError: One is neither a numpy array nor a torch tensor.
        ValueError: Kinds, devices, dtypes, numbers of dimensions or sizes do not fit.
    """
    _check_kinds(named)
    for name, x in named.items():
        if x.ndim != LAYOUT[name].count(",") + 1:
            raise ValueError(f"{name} must have shape {LAYOUT[name]}, got {list(x.shape)}")
    _check_sizes(named)


def _check_kinds(named: dict[str, Any]) -> None:
    for name, x in named.items():
        if not isinstance(x, np.ndarray) and not is_tensor(x):
            raise TypeError(f"{name} must be a numpy array or a torch tensor, got {type(x).__name__}")
    if len({is_tensor(x) for x in named.values()}) > 1:
        kinds = ", ".join(f"{name} {'torch' if is_tensor(x) else 'numpy'}" for name, x in named.items())
        raise ValueError(f"pass numpy arrays or torch tensors, not both, got {kinds}")
    if len({str(x.device) for x in named.values() if is_tensor(x)}) > 1:
        raise ValueError(f"all tensors must be on one device, got {', '.join(str(x.device) for x in named.values())}")
    for name, x in named.items():
        if dtype_name(x) not in DTYPES:
            raise ValueError(f"{name} must be one of {', '.join(DTYPES)}, got {dtype_name(x)}")


def _check_sizes(named: dict[str, Array]) -> None:
    shapes = {name: list(x.shape) for name, x in named.items()}
    if len({shape[-1] for shape in shapes.values()}) > 1 or 0 in {shape[-1] for shape in shapes.values()}:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"all inputs must share one width E >= 1, their last dimension, got {got}")
    for first, second, what in (
        ("cls", "patches", "images B"),
        ("text_global", "text_local", "classes C"),
    ):
        if first in shapes and second in shapes and shapes[first][0] != shapes[second][0]:
            raise ValueError(
                f"{first} and {second} must hold the same number of {what}, got {shapes[first][0]} and "
                f"{shapes[second][0]}"
            )
    if "patches" in shapes and shapes["patches"][1] == 0:
        raise ValueError(f"patches must hold at least one patch (N >= 1), got shape {shapes['patches']}")


def check_options(k: object, alpha: object) -> None:
    """Raise ValueError unless ``k`` is a whole number of at least 1 and ``alpha`` lies in 0..1."""
    if not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, got {k!r}")
    if not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a number between 0 and 1, got {alpha!r}")
