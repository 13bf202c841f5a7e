"""Augmentation depends on (seed, epoch, index) alone and does what its name says."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import RandAugment

from hpdval_edge.training import augment as module
from hpdval_edge.training.augment import augment, cutout

BATCH = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
NUMBERS = np.arange(100, 112)


def plain(batch: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(batch.transpose(0, 3, 1, 2).astype(np.float32) / 255)


@pytest.mark.parametrize("kind", ["none", "light", "strong"])
def test_contract(kind):
    before, generator, numpy_state = BATCH.copy(), torch.get_rng_state(), np.random.get_state()[1].copy()
    got = augment(BATCH, kind, seed=1, epoch=2, indices=NUMBERS)
    assert got.dtype == torch.float32 and got.shape == (12, 3, 32, 32) and got.is_contiguous() and not got.requires_grad
    assert got.min() >= 0 and got.max() <= 1
    np.testing.assert_array_equal(BATCH, before)
    assert torch.equal(torch.get_rng_state(), generator) and np.array_equal(np.random.get_state()[1], numpy_state)
    assert augment(BATCH[:0], kind, seed=1, epoch=2, indices=[]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("kind", ["none", "light", "strong"])
def test_results_do_not_depend_on_the_batch(kind):
    whole = augment(BATCH, kind, seed=1, epoch=2, indices=NUMBERS)
    torch.manual_seed(999)
    order = np.random.default_rng(3).permutation(12)
    assert torch.equal(augment(BATCH[order], kind, seed=1, epoch=2, indices=NUMBERS[order].tolist()), whole[order])
    for row in (0, 7):
        assert torch.equal(
            augment(BATCH[row : row + 1], kind, seed=1, epoch=2, indices=[NUMBERS[row]]), whole[row : row + 1]
        )


@pytest.mark.parametrize("kind", ["light", "strong"])
def test_seed_epoch_and_index_all_matter(kind):
    same = np.repeat(BATCH[:1], 12, axis=0)
    results = [
        augment(same, kind, seed=seed, epoch=epoch, indices=NUMBERS + shift)
        for seed, epoch, shift in ((1, 2, 0), (2, 2, 0), (1, 3, 0), (1, 2, 50), (2, 1, 0))
    ]
    for one in range(5):
        assert len(results[one].unique(dim=0)) > 1
        assert not any(torch.equal(results[one], results[other]) for other in range(one))


def test_none_only_scales():
    assert torch.equal(augment(BATCH, "none", seed=0, epoch=0, indices=NUMBERS), plain(BATCH))


def test_light_mirrors_half_of_the_pictures():
    same = np.repeat(BATCH[:1], 2000, axis=0)[:, :4, :4]
    got, original = augment(same, "light", seed=0, epoch=0, indices=range(2000)), plain(same[:1])
    mirrored = (got == original.flip(-1)).flatten(1).all(1)
    assert (mirrored | (got == original).flatten(1).all(1)).all()
    # Four standard deviations of a fair coin.
    assert abs(int(mirrored.sum()) - 1000) < 4 * np.sqrt(500)


def test_cutout_covers_a_square_of_half_the_side_with_one_colour():
    draw = np.random.default_rng(0)
    picture = np.full((40, 40, 3), 44, np.uint8)
    areas, centres = [], []
    for _ in range(300):
        covered = cutout(picture, draw)
        rows, columns = np.nonzero((covered != picture).any(axis=-1))
        areas.append(len(rows))
        centres.append((rows.mean(), columns.mean()))
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert len(np.unique(covered[rows, columns], axis=0)) == 1
        assert np.ptp(rows) < 20 and np.ptp(columns) < 20
    # Whole in the middle, a quarter in the corners.
    assert max(areas) == 400 and 100 <= min(areas) < 200
    assert np.ptp(centres, axis=0).min() > 20
    assert (picture == 44).all()


def test_strong_is_cutout_and_two_operations_without_mirroring(monkeypatch):
    calls = []
    recorded = tuple(
        (lambda image, strength, number=number: calls.append((number, strength)) or image, largest, signed)
        for number, (_, largest, signed) in enumerate(module.RAND_AUGMENT)
    )
    monkeypatch.setattr(module, "RAND_AUGMENT", recorded)
    same = np.repeat(BATCH[:1], 600, axis=0)
    got = augment(same, "strong", seed=0, epoch=0, indices=range(600))
    assert len(calls) == 1200
    numbers = [number for number, _ in calls]
    assert set(numbers) == set(range(14)) and max(np.bincount(numbers)) < 2 * 1200 / 14
    for number, (_, largest, signed) in enumerate(module.RAND_AUGMENT):
        strengths = {strength for called, strength in calls if called == number}
        assert strengths == ({-0.3 * largest, 0.3 * largest} if signed else {0.3 * largest})
    # With the operations out of the way, what is left is cutout: at least half of every picture is as it was.
    assert ((got == plain(same)).all(dim=1).flatten(1).float().mean(1) > 0.7).all()


def test_operations_are_those_of_torchvision():
    reference = RandAugment()
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    space = reference._AUGMENTATION_SPACE
    assert len(space) == len(module.RAND_AUGMENT)
    for (name, (magnitudes, signed)), (operation, largest, ours_signed) in zip(
        space.items(), module.RAND_AUGMENT, strict=True
    ):
        assert signed == ours_signed
        steps = magnitudes(31, 64, 64)
        strength = 0.0 if steps is None else float(steps[reference.magnitude])
        for sign in (1, -1) if signed else (1,):
            expected = reference._apply_image_or_video_transform(
                image, name, sign * strength, interpolation=reference.interpolation, fill=reference._fill
            )
            np.testing.assert_array_equal(
                np.asarray(operation(image, sign * largest * module.MAGNITUDE)), np.asarray(expected), name
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "heavy"}, "one of none, light, strong, got 'heavy'"),
        ({"batch": BATCH.astype(np.float32)}, r"uint8 \[B, S, S, 3\], got float32"),
        ({"batch": BATCH[0]}, r"got uint8 \[32, 32, 3\]"),
        ({"batch": BATCH.transpose(0, 3, 1, 2)}, r"got uint8 \[12, 3, 32, 32\]"),
        ({"indices": [1, 2]}, "one number per picture, got 2 for 12"),
        ({"seed": -1}, "must not be negative, got -1"),
        ({"indices": [-1] * 12}, "must not be negative"),
    ],
)
def test_refusals(change, message):
    arguments = {"batch": BATCH, "kind": "light", "seed": 0, "epoch": 0, "indices": NUMBERS} | change
    with pytest.raises(ValueError, match=message):
        augment(arguments.pop("batch"), arguments.pop("kind"), **arguments)
