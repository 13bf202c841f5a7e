"""Pictures with several labels each, and their split into training, validation and test."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """Pictures below one folder and the labels of each; the files themselves are not touched here.

    Args:
        root: Folder that ``paths`` start from.
        paths: n picture paths relative to ``root``, with forward slashes, each once.
        targets: uint8 [n, C], 1 where the picture has the label, else 0.
        labels: C label names, each once, in column order.

    Raises:
        ValueError, TypeError: shapes, types or values that contradict this, naming the first offender.
    """

    root: Path
    paths: tuple[str, ...]
    targets: np.ndarray
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.root, Path) or not isinstance(self.paths, tuple) or not isinstance(self.labels, tuple):
            types = [type(value).__name__ for value in (self.root, self.paths, self.labels)]
            raise TypeError(f"root, paths and labels must be a Path, a tuple and a tuple, got {', '.join(types)}")
        shape = (len(self.paths), len(self.labels))
        if not isinstance(self.targets, np.ndarray) or self.targets.dtype != np.uint8 or self.targets.shape != shape:
            got = f"{getattr(self.targets, 'dtype', type(self.targets).__name__)} {np.shape(self.targets)}"
            raise ValueError(f"targets must be uint8 {shape} (pictures, labels), got {got}")
        if self.targets.size and self.targets.max() > 1:
            raise ValueError(f"targets must be 0 or 1, got {int(self.targets.max())}")
        _check_distinct("paths", self.paths)
        _check_distinct("labels", self.labels)
        for path in self.paths:
            if "\\" in path or PurePosixPath(path).is_absolute():
                raise ValueError(f"paths must be relative with forward slashes, got {path!r}")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.paths)

    @property
    def class_counts(self) -> np.ndarray:
        """Pictures per label, n_i: int64 [C]."""
        return self.targets.sum(axis=0, dtype=np.int64)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "LabelledImages":
        """Return the pictures at ``indices`` (distinct integers in [0, n)), in that order, with all labels."""
        picked = np.asarray(indices)
        if picked.ndim != 1 or (picked.size and not np.issubdtype(picked.dtype, np.integer)):
            raise TypeError(f"indices must be a 1-D sequence of integers, got {picked.dtype} {list(picked.shape)}")
        picked = picked.astype(np.int64)
        if picked.size and not (picked.min() >= 0 and picked.max() < len(self)):
            raise ValueError(f"indices must lie in [0, {len(self)}), got {picked.min()} to {picked.max()}")
        paths = tuple(self.paths[index] for index in picked)
        return LabelledImages(self.root, paths, self.targets[picked], self.labels)

    def absolute(self, index: int) -> Path:
        """Path of picture ``index`` on this machine, below ``root`` as given."""
        return self.root / self.paths[index]


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """The three parts of a data set, with one label order, and what a reader should tell its user.

    Args:
        train: What the weights and the statistics of the losses come from.
        val: What chooses the epoch and the thresholds.
        test: What is only ever reported, or None.
        notes: Sentences for the user, such as labels with a single positive.
        held_out: Whether val was taken out of the training list.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages | None
    notes: tuple[str, ...]
    held_out: bool = False

    @property
    def class_counts(self) -> np.ndarray:
        """Pictures per label in the training list as it was given, int64 [C]: they make the groups of a report."""
        counts = self.train.class_counts
        return counts + self.val.class_counts if self.held_out else counts

    def __post_init__(self) -> None:
        for name, part in (("val", self.val), ("test", self.test)):
            if part is not None and part.labels != self.train.labels:
                pairs = zip(self.train.labels, part.labels, strict=False)
                first = next((pair for pair in pairs if pair[0] != pair[1]), None)
                where = f"{first[0]!r} against {first[1]!r}" if first else "their number"
                raise ValueError(f"train and {name} must have the same labels in one order, they differ in {where}")


def _check_distinct(what: str, names: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{what} must be non-empty strings, got {name!r}")
        if name in seen:
            raise ValueError(f"{what} must differ from each other, got {name!r} twice")
        seen.add(name)
