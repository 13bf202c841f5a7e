"""Frames that are on an NVIDIA GPU already, such as a decoder's, to network input without leaving it.

The same pixels as `preprocess.resize_normalize` gives, to the last bit, in two launches of `preprocess_triton.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from hpdval_edge.kernels.gpu import device_refuses, installation_refuses, on_device
from hpdval_edge.kernels.preprocess import LAYOUTS, MAX_SIDE, checked_geometry, checked_table
from hpdval_edge.kernels.preprocess_spec import Geometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Frames = Tensor | tuple[Tensor, Tensor]

# Half the width of the bicubic filter, in input pixels where nothing is shrunk; its parameter is -1/2.
SUPPORT = 2.0
MAX_FRAMES = 65535 // 3


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' filter with a = -1/2, as Pillow evaluates it."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def windows(length: int, resized: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Where outputs ``first`` to ``first + count`` of ``length`` pixels resized to ``resized`` read, and their weights.

    Returns:
        starts int32 [count] and weights int32 [count, taps], of 22 fraction bits, as Pillow rounds them.
    """
    if length == resized:
        return np.arange(first, first + count, dtype=np.int32), np.full((count, 1), 1 << 22, np.int32)
    scale = length / resized
    stretch = max(scale, 1.0)
    taps = np.arange(2 * math.ceil(SUPPORT * stretch) + 1)
    centres = (np.arange(first, first + count) + 0.5) * scale
    starts = np.maximum(centres - SUPPORT * stretch + 0.5, 0.0).astype(np.int64)
    ends = np.minimum((centres + SUPPORT * stretch + 0.5).astype(np.int64), length)
    position = (taps + starts[:, None] - centres[:, None] + 0.5) * (1.0 / stretch)
    weights = np.where(taps < (ends - starts)[:, None], _bicubic(position), 0.0)
    # One after another, as Pillow adds them: another order may round otherwise.
    weights /= np.cumsum(weights, axis=1)[:, -1:]
    rounded = weights * (1 << 22) + np.where(weights < 0, -0.5, 0.5)
    return starts.astype(np.int32), rounded.astype(np.int32)


@dataclass(frozen=True, slots=True)
class Pass:
    """windows: as `windows` gives them, tensors once on a device. lines: how many across, from ``first_line`` on."""

    windows: tuple
    lines: int
    first_line: int


def _pass(frames: Frames, plan: Pass, table: Tensor | None, *, vertical: bool, bgr: bool) -> Tensor:
    """Frames uint8 [B, H, W, 3] or NV12's planes through one pass: uint8 [B, h, w, 3], or with a table [B, 3, h, w]."""
    import torch

    from hpdval_edge.kernels.preprocess_triton import LINES, OUTPUTS, resize_pass

    pixels, chroma = frames if isinstance(frames, tuple) else (frames, None)
    images, height, width = pixels.shape[:3]
    starts, weights = plan.windows
    outputs, taps = weights.shape
    rows, columns = (outputs, plan.lines) if vertical else (plan.lines, outputs)
    shape = (images, rows, columns, 3) if table is None else (images, 3, rows, columns)
    out = torch.empty(shape, dtype=torch.uint8 if table is None else table.dtype, device=pixels.device)
    grid = (-(-plan.lines // LINES), -(-outputs // OUTPUTS), 3 * images)
    sizes = (plan.lines, outputs, taps, height, width, plan.first_line)
    options = {"VERTICAL": vertical, "BGR": bgr, "LINES": LINES, "OUTPUTS": OUTPUTS}
    with on_device(pixels):
        resize_pass[grid](pixels, chroma, starts, weights, table, out, *sizes, **options)
    return out


def _passes(g: Geometry) -> tuple[Pass, Pass]:
    """The two passes in their order; the first makes no line that the second does not read."""
    across = windows(g.width, g.resized_width, g.left, g.out_width)
    down = windows(g.height, g.resized_height, g.top, g.out_height)
    if g.vertical_first:
        # The horizontal pass reads columns of the first one's result, which begins where its windows do.
        begin, end = _extent(across, g.width)
        return Pass(down, end - begin, begin), Pass((across[0] - begin, across[1]), g.out_height, 0)
    begin, end = _extent(down, g.height)
    return Pass(across, end - begin, begin), Pass((down[0] - begin, down[1]), g.out_width, 0)


@lru_cache(maxsize=32)
def _passes_on(g: Geometry, device: torch.device) -> tuple[Pass, Pass]:
    """`_passes` with its windows on ``device``; copied once, for a copy makes the caller wait."""
    import torch

    return tuple(
        replace(step, windows=tuple(torch.from_numpy(x).to(device) for x in step.windows)) for step in _passes(g)
    )


@lru_cache(maxsize=16)
def _table_on(mean: tuple[float, ...], std: tuple[float, ...], dtype: str, device: torch.device) -> Tensor:
    """What becomes of every level, dtype [3, 256] on ``device``."""
    import torch

    return torch.from_numpy(checked_table(mean, std, dtype)[2]).to(device)


def _extent(axis: tuple[np.ndarray, np.ndarray], length: int) -> tuple[int, int]:
    starts, weights = axis
    return int(starts[0]), min(int(starts[-1]) + weights.shape[1], length)


def _check_frames(frames: Frames, layout: str) -> tuple[Tensor, int, int]:
    """Pixels or luma, width and height of a batch.

    Raises:
        TypeError, ValueError: as `resize_normalize_frames`.
    """
    import torch

    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    planes = frames if isinstance(frames, tuple) else (frames,)
    if len(planes) != (2 if layout == "nv12" else 1) or not all(isinstance(x, torch.Tensor) for x in planes):
        wanted = "a tuple of two tensors, luma and chroma," if layout == "nv12" else "a tensor"
        raise TypeError(f"frames must be {wanted} for layout {layout!r}, got {type(frames).__name__}")
    pixels = planes[0]
    if layout == "nv12":
        even = pixels.ndim == 3 and pixels.numel() and pixels.shape[1] % 2 == pixels.shape[2] % 2 == 0
        half = (len(pixels), pixels.shape[1] // 2, pixels.shape[2]) if even else ()
        if not even or tuple(planes[1].shape) != half:
            found = " and ".join(str(list(x.shape)) for x in planes)
            raise ValueError(f"nv12 frames must be [B, H, W] and [B, H / 2, W], H and W even, got {found}")
    elif pixels.ndim != 4 or pixels.shape[3] != 3 or not pixels.numel():
        raise ValueError(f"frames must be [B, H, W, 3] with at least one pixel, got {list(pixels.shape)}")
    for plane in planes:
        if plane.dtype != torch.uint8 or plane.device != pixels.device:
            raise ValueError(
                f"frames must be uint8 on one device, got {plane.dtype} on {plane.device} beside {pixels.device}"
            )
    return pixels, pixels.shape[2], pixels.shape[1]


def refuses(frames: Frames) -> str | None:
    """Why the kernel cannot take ``frames``, or None."""
    pixels = frames[0] if isinstance(frames, tuple) else frames
    if reason := device_refuses(pixels):
        return reason
    longest = max(pixels.shape[1:3])
    if longest > MAX_SIDE:
        return f"it takes sides of at most {MAX_SIDE} pixels, not {longest}"
    # The grid's third side is three channels of every frame.
    if len(pixels) > MAX_FRAMES:
        return f"it takes at most {MAX_FRAMES:,} frames at once and these are {len(pixels):,}"
    return installation_refuses()


def resize_normalize_frames(
    frames: Frames,
    size: int | tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mode: str = "squash",
    dtype: str = "float32",
    layout: str = "rgb",
) -> Tensor:
    """A batch of frames on an NVIDIA GPU, resized and normalised as `preprocess.resize_normalize` does one picture.

    Args:
        frames: uint8 [B, H, W, 3]; for "nv12" a tuple of luma uint8 [B, H, W] and chroma uint8 [B, H / 2, W], H and W
            even. All of one size; copied where they are not contiguous.
        size, mean, std, mode, dtype, layout: As there.

    Returns:
        dtype [B, 3, height, width] on the frames' device, the same numbers to the last bit.

    Raises:
        TypeError: ``frames`` is no tensor, or no tuple of two for "nv12".
        ValueError: A shape, a dtype or an option is not as above, or there is no GPU, triton or C compiler.
    """
    pixels, width, height = _check_frames(frames, layout)
    g = checked_geometry(width, height, size, mode)
    mean, std, values = checked_table(mean, std, dtype)
    if reason := refuses(frames):
        raise ValueError(f"the GPU kernel cannot take these frames: {reason}")
    table = _table_on(mean, std, values.dtype.name, pixels.device)
    frames = tuple(x.contiguous() for x in frames) if layout == "nv12" else frames.contiguous()
    first, second = _passes_on(g, pixels.device)
    between = _pass(frames, first, None, vertical=g.vertical_first, bgr=layout == "bgr")
    return _pass(between, second, table, vertical=not g.vertical_first, bgr=False)
