"""English captions of drawn scenes, which the demo teacher learns from."""

from collections.abc import Sequence

import numpy as np

from hpdval_edge.training.scenes import KINDS, check_kinds

CAPTIONS = ("a photo of {}.", "a photo of {}", "{}", "{}.", "a picture of {}", "a snapshot of {}.", "an image with {}")


def mention(kinds: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Choose which of ``kinds`` a caption names, in random order: each with probability 1/2, but always one of them.

    Raises:
        ValueError: no kind, or one that is not one of 0..19.
    """
    check_kinds(kinds)
    kept = [kind for kind in kinds if rng.random() < 0.5] or [kinds[rng.integers(len(kinds))]]
    return rng.permutation(kept).tolist()


def caption(kinds: Sequence[int], rng: np.random.Generator) -> str:
    """Name every one of ``kinds``, in this order, in an English sentence or phrase drawn from ``CAPTIONS``.

    Raises:
        ValueError: no kind, or one that is not one of 0..19.
    """
    check_kinds(kinds)
    names = [f"a {KINDS[kind]}" for kind in kinds]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return CAPTIONS[rng.integers(len(CAPTIONS))].format(listed)
