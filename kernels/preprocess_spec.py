"""What `preprocess` computes, in Pillow and NumPy: the specification that its backends must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image

Source: TypeAlias = "np.ndarray | Image.Image | tuple[np.ndarray, np.ndarray]"


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes in pixels: of the picture, of it once resized as a whole, and of the crop in that; the order of passes."""

    width: int
    height: int
    resized_width: int
    resized_height: int
    left: int
    top: int
    out_width: int
    out_height: int
    vertical_first: bool


def plan_geometry(width: int, height: int, size: tuple[int, int], mode: str) -> Geometry:
    """Where pixels go: "squash" ignores the shape; "crop" covers ``size`` (height, width) and keeps the centre.

    The cover's longer side is rounded down and the crop's corner to the nearest even half, as torchvision's Resize and
    CenterCrop do it.
    """
    out_height, out_width = size
    resized_width, resized_height = out_width, out_height
    if mode == "crop":
        if out_width * height >= out_height * width:
            resized_height = out_width * height // width
        else:
            resized_width = out_height * width // height
    left, top = round((resized_width - out_width) / 2), round((resized_height - out_height) / 2)
    # Each pass rounds to 8 bits, so their order shows. This is the order of Pillow 13; older ones always begin with the
    # horizontal pass, and would give tall pictures other pixels on a device than in training.
    shrink, narrow = height - resized_height, width - resized_width
    vertical_first = shrink > max(2 * narrow, 0) and narrow != 0
    return Geometry(width, height, resized_width, resized_height, left, top, out_width, out_height, vertical_first)


def pillow_resize(pixels: Source, size: tuple[int, int], *, mode: str, layout: str) -> np.ndarray:
    """The specification of resizing, in Pillow: arguments of `preprocess.resize`, uint8 [h, w, 3] RGB out."""
    if layout == "nv12":
        pixels = numpy_nv12_to_rgb(*pixels)
    elif layout == "bgr":
        pixels = pixels[..., ::-1]
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    g = plan_geometry(image.width, image.height, size, mode)
    between = (g.width, g.resized_height) if g.vertical_first else (g.resized_width, g.height)
    resized = image
    for step in (between, (g.resized_width, g.resized_height)):
        resized = resized.resize(step, Image.Resampling.BICUBIC)
    return np.array(resized.crop((g.left, g.top, g.left + g.out_width, g.top + g.out_height)))


def numpy_normalize(
    pixels: np.ndarray, mean: Sequence[float], std: Sequence[float], dtype: np.dtype | str = "float32"
) -> np.ndarray:
    """The specification of normalising: uint8 [..., H, W, 3] -> [..., 3, H, W], computed in float32."""
    centre, spread = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    unit = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C") / np.float32(255)
    return ((unit - centre[:, None, None]) / spread[:, None, None]).astype(dtype, copy=False)


def numpy_nv12_to_rgb(luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """The specification of NV12: BT.601, limited range (16..235, 16..240), 20-bit fixed point, chroma not smoothed.

        R = 1.164 (Y - 16) + 1.596 (V - 128)
        G = 1.164 (Y - 16) - 0.391 (U - 128) - 0.813 (V - 128)
        B = 1.164 (Y - 16) + 2.018 (U - 128)

    Args:
        luma: uint8 [H, W], Y.
        chroma: uint8 [H / 2, W], U and V in turn; each pair colours 2 x 2 pixels.

    Returns:
        uint8 [H, W, 3] RGB, rounded and clipped.
    """
    y = 1220542 * np.maximum(luma.astype(np.int32) - 16, 0)
    u, v = (np.repeat(np.repeat(chroma[:, i::2], 2, 0), 2, 1).astype(np.int32) - 128 for i in (0, 1))
    sums = np.stack([y + 1673527 * v, y - 852492 * v - 409993 * u, y + 2116026 * u], axis=-1)
    return ((sums + (1 << 19)) >> 20).clip(0, 255).astype(np.uint8)


def pillow_resize_normalize(
    pixels: Source,
    size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mode: str,
    dtype: np.dtype | str,
    layout: str,
) -> np.ndarray:
    """The specification of `preprocess.resize_normalize`: its arguments, dtype [3, h, w] out."""
    return numpy_normalize(pillow_resize(pixels, size, mode=mode, layout=layout), mean, std, dtype)
