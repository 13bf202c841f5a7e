"""Pictures to measure with."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from hpdval_edge.errors import UsageError

GENERATED = 8
QUALITY = 90
LARGEST = 16384


def parse_size(text: str) -> tuple[int, int]:
    """``640x480`` -> (width, height); UsageError for anything else."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= min(size) <= max(size) <= LARGEST:
        raise UsageError(f"--jpeg {text!r} is no size such as 640x480, each side 1 to {LARGEST} pixels.")
    return size


def generate(folder: Path, size: tuple[int, int]) -> list[Path]:
    """Write GENERATED JPEGs of ``size``: smooth colours and noise, about as hard to decode as a photo; seeded."""
    paths = []
    for number in range(GENERATED):
        rng = np.random.default_rng(number)
        colours = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        noise = rng.normal(0, 8, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(colours, np.float32) + noise, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=QUALITY)
    return paths
