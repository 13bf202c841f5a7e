"""Tokens of the training pictures: from the encoder in every step, or from a cache where nothing in it learns."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpdval_edge.progress import progress
from hpdval_edge.training.augment import augment, mirrored
from hpdval_edge.training.image_store import ImageStore
from hpdval_edge.training.precision import autocast
from hpdval_edge.training.student import Student

# Pictures a forward pass; always the same, so that a resumed run computes the same bits.
BATCH = 64
MAX_BYTES = 2 << 30
# How each augmentation that leaves few versions of a picture changes it; "strong" leaves none to keep.
MIRRORED = {"none": (False,), "light": (False, True)}


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of B pictures: the encoder's class token [B, D] (None from a frozen student), embedded cls [B, E], patches
    [B, N, E]."""

    hidden: Tensor | None
    cls: Tensor
    patches: Tensor


class TokenSource:
    """Tokens of pictures ``rows`` of a store, augmented as ``augment`` does for (seed, epoch, row).

    Where the encoder does not learn, its tokens of every picture (and of its mirror image, for "light") are computed
    once and kept in memory, if that takes fewer passes than the epochs do and at most 2 GiB.

    Args:
        learns: "all", "embed" (the embedding layer alone) or "nothing".
    """

    def __init__(
        self,
        student: Student,
        store: ImageStore,
        *,
        learns: str,
        aug: str,
        seed: int,
        epochs: int,
        device: torch.device,
        amp: str,
    ) -> None:
        self.student, self.store = student, store
        self.learns, self.aug, self.seed, self.device, self.amp = learns, aug, seed, device, amp
        width = student.width if learns == "embed" else student.embed_dim
        versions = len(MIRRORED.get(aug, ()))
        size = 4 * len(store) * versions * (1 + student.num_patches) * width
        self.keeps = learns != "all" and 0 < versions < epochs and size <= MAX_BYTES
        self._kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, rows: np.ndarray, *, epoch: int) -> Tokens:
        """Tokens of B pictures, int64 [B]; gradients flow into what learns."""
        if self.learns == "nothing":
            return Tokens(None, *self._frozen(rows, epoch))
        with autocast(self.device, self.amp):
            learnt = self.learns == "all"
            hidden = self.student.hidden(self._images(rows, epoch)) if learnt else self._frozen(rows, epoch)
            return Tokens(hidden[0], *self.student.embed(*hidden))

    def _images(self, rows: np.ndarray, epoch: int) -> Tensor:
        images = augment(self.store[rows], self.aug, seed=self.seed, epoch=epoch, indices=rows)
        return images.to(self.device)

    @torch.no_grad()
    def _constant(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What does not learn: the student's output, or its encoder's; float32."""
        with autocast(self.device, self.amp):
            tokens = self.student(images) if self.learns == "nothing" else self.student.hidden(images)
        return tokens[0].float(), tokens[1].float()

    def _frozen(self, rows: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        if not self.keeps:
            return self._constant(self._images(rows, epoch))
        if self._kept is None:
            self._kept = self._compute_all()
        if self.aug == "light":
            rows = rows + len(self.store) * np.array([mirrored(self.seed, epoch, int(row)) for row in rows])
        index = torch.from_numpy(rows)
        return tuple(tokens[index].to(self.device) for tokens in self._kept)

    def _compute_all(self) -> tuple[Tensor, Tensor]:
        parts: list[tuple[Tensor, Tensor]] = []
        versions, total = MIRRORED[self.aug], len(MIRRORED[self.aug]) * len(self.store)
        with progress("the frozen student looks at train pictures", total) as update:
            for mirror in versions:
                for start in range(0, len(self.store), BATCH):
                    pixels = torch.from_numpy(self.store[start : start + BATCH]).to(self.device)
                    images = pixels.permute(0, 3, 1, 2).float() / 255
                    parts.append(tuple(x.cpu() for x in self._constant(images.flip(-1) if mirror else images)))
                    update(min(total, len(parts) * BATCH), total)
        return tuple(torch.cat(tokens) for tokens in zip(*parts, strict=True))
