"""Few-shot splits: base and novel labels, the pictures of each, the support set of an episode (METHOD section 11)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.protocols.longtail import LISTS

SHOTS = (1, 5)
EPISODES = range(1, 11)


@dataclass(frozen=True, slots=True)
class FewShot:
    """A few-shot protocol on a user's pictures.

    Args:
        base_train, base_test: Pictures with base labels; novel labels have no column.
        novel_test: Pictures with novel labels; base labels have no column.
        support: ``support(shots, episode)`` gives the training pictures of an episode, with novel labels, each of them
            on at least ``shots`` pictures.
    """

    base_train: LabelledImages
    base_test: LabelledImages
    novel_test: LabelledImages
    support: Callable[[int, int], LabelledImages]


def showing_any(data: LabelledImages, names: Sequence[str]) -> LabelledImages:
    """Pictures with at least one of ``names``, whatever else they show; other labels lose their column."""
    return _restricted(data, names, _columns(data, names).any(axis=1))


def showing_only(data: LabelledImages, names: Sequence[str]) -> LabelledImages:
    """Pictures with at least one of ``names`` and no other label; other labels lose their column."""
    chosen = _columns(data, names)
    return _restricted(data, names, chosen.any(axis=1) & (chosen.sum(axis=1) == data.targets.sum(axis=1)))


def _columns(data: LabelledImages, names: Sequence[str]) -> np.ndarray:
    return data.targets[:, [data.labels.index(name) for name in names]]


def _restricted(data: LabelledImages, names: Sequence[str], rows: np.ndarray) -> LabelledImages:
    paths = tuple(path for path, kept in zip(data.paths, rows, strict=True) if kept)
    return LabelledImages(data.root, paths, _columns(data, names)[rows], tuple(names))


def shipped_episode(file: str, shots: int, episode: int) -> list[tuple[str, str]]:
    """Pairs (picture, labels) of one episode of a shipped file with lines ``shots episode picture labels``."""
    lines = (line.split(maxsplit=3) for line in (LISTS / file).read_text(encoding="utf-8").splitlines())
    return [(picture, labels) for k, number, picture, labels in lines if (int(k), int(number)) == (shots, episode)]
