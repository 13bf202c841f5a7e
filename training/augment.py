"""Random changes of training pictures that depend on (seed, epoch, index) alone, never on the batch."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as change

CUTOUT_SIDE = 0.5
OPERATIONS = 2
# RandAugment's scale has 31 steps, 0 to 30; 9 is torchvision's default for num_ops=2.
MAGNITUDE = 9 / 30


def augment(batch: np.ndarray, kind: str, *, seed: int, epoch: int, indices: Sequence[int] | np.ndarray) -> Tensor:
    """Augment a batch and scale it to [0, 1].

    "none" only scales. "light" mirrors left-right with probability 1/2. "strong" lays one square of half the side and a
    random colour at a random centre, cut off at the border (Cutout), then applies 2 operations drawn from RandAugment's
    14 (arXiv:1909.13719), without mirroring; METHOD section 9. The same (seed, epoch, index) gives the same change in
    any batch and any process, and no global random state is read or moved.

    Args:
        batch: uint8 [B, S, S, 3].
        kind: "none", "light" or "strong".
        seed: Not negative.
        epoch: Not negative.
        indices: B numbers of the pictures in their data set, not negative.

    Returns:
        float32 [B, 3, S, S] in [0, 1], on the CPU.

    Raises:
        ValueError: another kind, shape or dtype, or a negative number.
    """
    if kind not in CHANGES:
        raise ValueError(f"kind must be one of {', '.join(CHANGES)}, got {kind!r}")
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
        raise ValueError(f"batch must be uint8 [B, S, S, 3], got {batch.dtype} {list(batch.shape)}")
    if len(indices) != len(batch):
        raise ValueError(f"indices must hold one number per picture, got {len(indices)} for {len(batch)} pictures")
    if min(seed, epoch, *(int(index) for index in indices), 0) < 0:
        raise ValueError(f"seed, epoch and indices must not be negative, got {seed}, {epoch} and {list(indices)}")
    changed = np.empty_like(batch)
    for row, index in enumerate(indices):
        changed[row] = CHANGES[kind](batch[row], np.random.default_rng((seed, epoch, int(index))))
    return torch.from_numpy(changed.transpose(0, 3, 1, 2).astype(np.float32, order="C") / np.float32(255))


def mirrored(seed: int, epoch: int, index: int) -> bool:
    """Whether "light" mirrors picture ``index`` in this epoch."""
    return _mirrors(np.random.default_rng((seed, epoch, index)))


def _mirrors(draw: np.random.Generator) -> bool:
    return draw.random() < 0.5


def _light(picture: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Mirror uint8 [S, S, 3] left-right, or not."""
    return picture[:, ::-1] if _mirrors(draw) else picture


def _strong(picture: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Cutout, then RandAugment, on uint8 [S, S, 3]."""
    # Pillow's versions of the operations: on pictures this small they take half the time of those on tensors, and none
    # of the cores that training is using.
    image = Image.fromarray(cutout(picture, draw))
    for _ in range(OPERATIONS):
        operation, largest, signed = RAND_AUGMENT[draw.integers(len(RAND_AUGMENT))]
        strength = largest * MAGNITUDE
        image = operation(image, -strength if signed and draw.random() < 0.5 else strength)
    return np.asarray(image)


def cutout(picture: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Cover a square of half the side of uint8 [H, W, 3], its centre anywhere, one random colour for all."""
    covered = picture.copy()
    spans = []
    for side in picture.shape[:2]:
        start = int(draw.integers(side)) - int(side * CUTOUT_SIDE) // 2
        spans.append(slice(max(start, 0), start + int(side * CUTOUT_SIDE)))
    covered[spans[0], spans[1]] = draw.integers(0, 256, 3, dtype=np.uint8)
    return covered


CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "none": lambda picture, draw: picture,
    "light": _light,
    "strong": _strong,
}


def _shear(image: Image.Image, x: float, y: float) -> Image.Image:
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return change.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])


def _translate(image: Image.Image, x: float, y: float) -> Image.Image:
    pixels = [int(x * image.width), int(y * image.height)]
    return change.affine(image, angle=0.0, translate=pixels, scale=1.0, shear=[0.0, 0.0])


# (operation, strength at full magnitude, whether the sign is drawn), in the order and the ranges of torchvision's
# RandAugment. That class draws from the global generator, which a loading thread must not touch, so it is not used.
RAND_AUGMENT: tuple[tuple[Callable[[Image.Image, float], Image.Image], float, bool], ...] = (
    (lambda image, strength: image, 0.0, False),
    (lambda image, strength: _shear(image, strength, 0.0), 0.3, True),
    (lambda image, strength: _shear(image, 0.0, strength), 0.3, True),
    (lambda image, strength: _translate(image, strength, 0.0), 150 / 331, True),
    (lambda image, strength: _translate(image, 0.0, strength), 150 / 331, True),
    (lambda image, strength: change.rotate(image, angle=strength), 30.0, True),
    (lambda image, strength: change.adjust_brightness(image, 1 + strength), 0.9, True),
    (lambda image, strength: change.adjust_saturation(image, 1 + strength), 0.9, True),
    (lambda image, strength: change.adjust_contrast(image, 1 + strength), 0.9, True),
    (lambda image, strength: change.adjust_sharpness(image, 1 + strength), 0.9, True),
    (lambda image, strength: change.posterize(image, bits=8 - round(strength)), 4.0, False),
    (lambda image, strength: change.solarize(image, threshold=255 * (1 - strength)), 1.0, False),
    (lambda image, strength: change.autocontrast(image), 0.0, False),
    (lambda image, strength: change.equalize(image), 0.0, False),
)
