"""Pictures for the tests of `hpedge serve`. Loaded with runpy, since tests cannot import each other."""

import io

import numpy as np
from PIL import Image


def picture(number: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    """The PNG file of a picture of its own for every number; size is (width, height)."""
    file = io.BytesIO()
    blocks = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()
