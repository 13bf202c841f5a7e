"""The Triton resize, interpreted on the CPU; `test_preprocess_gpu.py` runs this file, in a process of its own.

Each test was seen to fail on the planted mistakes that its docstring names.
"""

import numpy as np
import pytest
import torch

from hpdval_edge.kernels.gpu import interpreted
from hpdval_edge.kernels.preprocess import resize_normalize
from hpdval_edge.kernels.preprocess_gpu import resize_normalize_frames

assert interpreted(), "run this file with TRITON_INTERPRET=1, as test_preprocess_gpu.py does"

NORMAL = {"mean": (0.48, 0.45, 0.40), "std": (0.27, 0.26, 0.28)}
# Height, width, size, mode: either pass first, enlarged, one side as it is, one pixel, and cuts that leave out the
# first rows or columns of the first pass.
SHAPES = [
    (37, 23, 16, "squash"),
    (60, 20, (16, 12), "squash"),
    (23, 37, (16, 24), "crop"),
    (90, 40, 16, "crop"),
    (40, 17, 16, "crop"),
    (9, 8, 20, "squash"),
    (16, 30, 16, "squash"),
    (1, 1, 5, "squash"),
    (50, 30, 16, "crop"),
    (60, 24, (20, 4), "crop"),
]


def frames(height, width, images=2):
    """Noise, which shows every weight, and hard edges, which overshoot."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, height, width, 3), dtype=np.uint8)
    pixels[:, : height // 2, : width // 2] = 255
    pixels[:, height // 2 :, : width // 2] = 0
    return pixels


@pytest.mark.parametrize(("height", "width", "size", "mode"), SHAPES)
def test_equals_the_cpu_to_the_last_bit(height, width, size, mode):
    """Mistakes: the passes swapped; a cut's first row or column forgotten; no clipping between them; no rounding."""
    pixels = frames(height, width)
    found = resize_normalize_frames(torch.from_numpy(pixels), size, mode=mode, **NORMAL)
    expected = np.stack([resize_normalize(x, size, mode=mode, **NORMAL) for x in pixels])
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), expected)


def test_channels_may_be_the_other_way_round():
    """Mistake: turned round in both passes."""
    pixels = frames(20, 30)
    found = resize_normalize_frames(torch.from_numpy(pixels), 16, layout="bgr", dtype="float16", **NORMAL)
    expected = np.stack([resize_normalize(x, 16, layout="bgr", dtype="float16", **NORMAL) for x in pixels])
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize(("height", "width"), [(40, 26), (24, 60)])
def test_a_decoders_planes(height, width):
    """Mistakes: U and V swapped; the chroma of the next image; its row taken for a column in the vertical pass."""
    generator = np.random.default_rng(1)
    luma = generator.integers(0, 256, (2, height, width), dtype=np.uint8)
    chroma = generator.integers(0, 256, (2, height // 2, width), dtype=np.uint8)
    planes = (torch.from_numpy(luma), torch.from_numpy(chroma))
    found = resize_normalize_frames(planes, 16, layout="nv12", **NORMAL)
    expected = [resize_normalize(x, 16, layout="nv12", **NORMAL) for x in zip(luma, chroma, strict=True)]
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))


def test_any_strides():
    """Mistake: frames taken for contiguous."""
    pixels = frames(24, 40)
    found = resize_normalize_frames(torch.from_numpy(pixels)[:, ::2, ::2], 8, **NORMAL)
    expected = np.stack([resize_normalize(x[::2, ::2], 8, **NORMAL) for x in pixels])
    np.testing.assert_array_equal(found.numpy(), expected)
