"""The order in which an epoch visits the training pictures (METHOD section 9, sampler)."""

import numpy as np

CLASS_AWARE_SAMPLES = 3
CLASS_AWARE_REDUCE = 4


def epoch_order(targets: np.ndarray, *, sampler: str, seed: int, epoch: int) -> np.ndarray:
    """Indices int64 of one epoch, a function of (seed, epoch) only.

    ``shuffle`` visits every picture once. ``class_aware`` is DB-loss' sampler: classes in random cycles, 3 pictures of
    each in turn, max_i n_i * C / 4 draws per epoch (3,875 for VOC-LT, 22,560 for COCO-LT).

    Args:
        targets: uint8 [n, C].
    """
    rng = np.random.default_rng([seed, epoch, 0x5A])
    if sampler == "shuffle":
        return rng.permutation(len(targets))
    positives = [np.flatnonzero(column) for column in targets.T]
    positives = [rows for rows in positives if len(rows)]
    draws = max(len(rows) for rows in positives) * targets.shape[1] // CLASS_AWARE_REDUCE
    decks = [_deck(rows, rng) for rows in positives]
    order: list[int] = []
    while len(order) < draws:
        for label in rng.permutation(len(decks)):
            order.extend(next(decks[label]) for _ in range(CLASS_AWARE_SAMPLES))
    return np.array(order[:draws])


def _deck(rows: np.ndarray, rng: np.random.Generator):
    while True:
        yield from rng.permutation(rows).tolist()
