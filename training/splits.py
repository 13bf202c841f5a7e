"""A validation split that keeps every label on both sides, where that is possible."""

from collections.abc import Sequence

import numpy as np

from hpdval_edge.errors import BadData

SHOWN_NAMES = 10


def split_keeping_labels(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split pictures so that each label with two or more positives has at least one on both sides.

    Iterative stratification (Sechidis et al., ECML 2011): the label with the fewest open pictures is dealt out first,
    each of its pictures to the side that lacks the label most. Then labels that one side misses are mended by single
    moves, and the size is brought to round(fraction * n) by moves that leave every label where it is. A picture with
    a label of a single positive stays in training. ``describe_split`` says what could not be had.

    Args:
        targets: uint8 [n, C] of 0 and 1, n >= 2.
        fraction: Share of the second part, in (0, 1).
        seed: Decides between equals; the same arguments give the same split.

    Returns:
        (train_idx, val_idx): int64, sorted, together 0..n-1, neither empty.

    Raises:
        ValueError: a wrong shape or fraction.
        BadData: fewer than two pictures, or none that may leave training.
    """
    targets = np.asarray(targets)
    if targets.ndim != 2 or (targets.size and not np.isin(targets, (0, 1)).all()):
        raise ValueError(f"targets must be [n, C] of 0 and 1, got {targets.dtype} {list(targets.shape)}")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, both excluded, got {fraction}")
    if len(targets) < 2:
        raise BadData(f"{len(targets)} picture cannot be split into training and validation; give at least 2")
    deal = _Deal(targets, fraction, seed)
    if deal.pinned.all():
        raise BadData(
            f"each of the {len(targets)} pictures has a label that no other has, so none can be kept for validation; "
            "add pictures, or give the validation pictures explicitly"
        )
    deal.stratify()
    deal.mend()
    deal.resize()
    return np.flatnonzero(~deal.in_val), np.flatnonzero(deal.in_val)


class _Deal:
    """The state of one split: which picture lies in validation, and the positives of each label there."""

    def __init__(self, targets: np.ndarray, fraction: float, seed: int) -> None:
        self.counts = targets.sum(axis=0, dtype=np.int64)
        # A label with one positive stays in training and constrains nothing else.
        held = targets.astype(bool) & (self.counts > 1)
        self.pinned = (targets.astype(bool) & (self.counts == 1)).any(axis=1)
        self.labels = [np.flatnonzero(row) for row in held]
        self.members = [np.flatnonzero(column) for column in held.T]
        self.order = np.random.default_rng(seed).permutation(len(targets))
        self.rank = np.argsort(self.order)
        self.in_val = np.zeros(len(targets), bool)
        self.val_counts = np.zeros(targets.shape[1], np.int64)
        self.wanted = np.clip(fraction * self.counts, 1, np.maximum(self.counts - 1, 1))
        self.val_size = min(max(round(fraction * len(targets)), 1), len(targets) - 1)

    def move(self, picture: int) -> None:
        """Put ``picture`` on the other side."""
        self.val_counts[self.labels[picture]] += -1 if self.in_val[picture] else 1
        self.in_val[picture] = not self.in_val[picture]

    def may_move(self, picture: int) -> bool:
        """Whether every label of ``picture`` keeps another positive on the side it would leave."""
        labels = self.labels[picture]
        here = self.val_counts[labels] if self.in_val[picture] else self.counts[labels] - self.val_counts[labels]
        return not self.pinned[picture] and bool((here > 1).all())

    def stratify(self) -> None:
        """Deal out labelled pictures, rarest label first; those without a label wait in training for ``resize``."""
        open_pictures = ~self.pinned & np.array([labels.size > 0 for labels in self.labels])
        left = np.array([np.count_nonzero(open_pictures[members]) for members in self.members])
        dealt = self.counts - left
        while (left > 0).any():
            label = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
            members = self.members[label]
            members = members[open_pictures[members]]
            for picture in members[np.argsort(self.rank[members])]:
                labels = self.labels[picture]
                lacks_val = self.wanted[label] - self.val_counts[label]
                lacks_train = self.counts[label] - self.wanted[label] - (dealt[label] - self.val_counts[label])
                if lacks_val >= lacks_train and lacks_val > 0:
                    self.move(picture)
                dealt[labels] += 1
                left[labels] -= 1
                open_pictures[picture] = False

    def mend(self) -> None:
        """Give each label that one side misses a picture there, directly or after one move that makes room."""
        for label in np.argsort(self.counts, kind="stable"):
            if self.counts[label] < 2 or 0 < self.val_counts[label] < self.counts[label]:
                continue
            members = self.members[label]
            members = members[np.argsort(self.rank[members])]
            if not any(self._cross(picture, int(label)) for picture in members):
                any(self._make_room_and_cross(picture, int(label)) for picture in members)

    def _blockers(self, picture: int, label: int) -> list[int]:
        """Other labels of ``picture`` that would vanish from its side with it."""
        labels = self.labels[picture]
        here = self.val_counts[labels] if self.in_val[picture] else self.counts[labels] - self.val_counts[labels]
        return [int(other) for other in labels[here < 2] if other != label]

    def _cross(self, picture: int, label: int) -> bool:
        if self.pinned[picture] or self._blockers(picture, label):
            return False
        self.move(picture)
        return True

    def _make_room_and_cross(self, picture: int, label: int) -> bool:
        if self.pinned[picture]:
            return False
        side = self.in_val[picture]
        done: list[int] = []
        for blocker in self._blockers(picture, label):
            others = (int(p) for p in self.members[blocker] if self.in_val[p] != side and label not in self.labels[p])
            helper = next((other for other in others if self.may_move(other)), None)
            if helper is None:
                break
            self.move(helper)
            done.append(helper)
        if self._cross(picture, label):
            return True
        for helper in reversed(done):
            self.move(helper)
        return False

    def resize(self) -> None:
        """Move pictures that no label needs where they are, the most superfluous first, until the size is right."""
        surplus = int(self.in_val.sum()) - self.val_size
        leave_val = surplus > 0
        excess = (self.val_counts - self.wanted) * (1 if leave_val else -1)
        candidates = self.order[self.in_val[self.order] == leave_val]
        held = [self.labels[picture] for picture in candidates]
        gain = np.array([excess[labels].mean() if labels.size else 0 for labels in held])
        for picture in candidates[np.argsort(-gain, kind="stable")]:
            if surplus == 0:
                break
            if self.may_move(picture):
                self.move(picture)
                surplus -= 1 if leave_val else -1


def describe_split(
    targets: np.ndarray, labels: Sequence[str], train_idx: np.ndarray, val_idx: np.ndarray
) -> tuple[str, ...]:
    """Say in sentences which labels one side of a split lacks; nothing to say gives ().

    Args:
        targets: uint8 [n, C] that was split.
        labels: C names.
        train_idx: int64, rows in training.
        val_idx: int64, rows in validation.
    """
    counts = targets.sum(axis=0, dtype=np.int64)
    in_train = targets[train_idx].sum(axis=0, dtype=np.int64)
    in_val = targets[val_idx].sum(axis=0, dtype=np.int64)
    cases = (
        (counts == 0, "no positive at all"),
        (counts == 1, "just 1 positive, which stays in training, so validation says nothing about them"),
        ((counts > 1) & (in_val == 0), "all positives in training, no split was found that also keeps the others"),
        ((counts > 1) & (in_train == 0), "all positives in validation, no split was found that also keeps the others"),
    )
    return tuple(f"{name_some(labels, np.flatnonzero(mask))}: {what}" for mask, what in cases if mask.any())


def name_some(labels: Sequence[str], indices: Sequence[int] | np.ndarray) -> str:
    """``3 labels (a, b, c)``, cut after ten names."""
    names = [labels[index] for index in indices[:SHOWN_NAMES]] + ["..."] * (len(indices) > SHOWN_NAMES)
    return f"{len(indices)} label{'s' if len(indices) != 1 else ''} ({', '.join(names)})"
