"""Tokens of pictures: from the encoder in every step, or kept where nothing in it learns."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpdval_edge.atomic import write_file
from hpdval_edge.progress import progress
from hpdval_edge.training.augment import augment, mirrored
from hpdval_edge.training.image_store import ImageStore, cache_key
from hpdval_edge.training.precision import autocast
from hpdval_edge.training.student import Student
from hpdval_edge.training.teacher import fingerprint

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


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """How a run turns pictures into tokens.

    learns: "all", at most "embed" (the embedding layer), or "nothing". cache: folder where an encoder's tokens are kept
    for other runs with the same encoder; None keeps them in memory only.
    """

    learns: str
    aug: str
    seed: int
    device: torch.device
    amp: str
    cache: Path | None = None


class TokenSource:
    """Tokens of pictures ``rows`` of a store, augmented as ``augment`` does for (seed, epoch, row).

    Where the encoder does not learn, its tokens of every picture (and of its mirror image, for "light") are computed
    once and kept, if that takes at most 2 GiB.
    """

    def __init__(self, student: Student, store: ImageStore, options: TokenOptions) -> None:
        self.student, self.store, self.options = student, store, options
        width = student.width if options.learns == "embed" else student.embed_dim
        versions = len(MIRRORED.get(options.aug, ()))
        size = 4 * len(store) * versions * (1 + student.num_patches) * width
        self.keeps = options.learns != "all" and versions > 0 and size <= MAX_BYTES
        self._kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, rows: np.ndarray, *, epoch: int) -> Tokens:
        """Tokens of B pictures, int64 [B]; gradients flow into what learns."""
        if self.options.learns == "nothing":
            return Tokens(None, *self._frozen(rows, epoch))
        with self._precision():
            learnt = self.options.learns == "all"
            hidden = self.student.hidden(self._images(rows, epoch)) if learnt else self._frozen(rows, epoch)
            return Tokens(hidden[0], *self.student.embed(*hidden))

    def _precision(self):
        return autocast(self.options.device, self.options.amp)

    def _images(self, rows: np.ndarray, epoch: int) -> Tensor:
        options = self.options
        images = augment(self.store[rows], options.aug, seed=options.seed, epoch=epoch, indices=rows)
        return images.to(options.device)

    @torch.no_grad()
    def _constant(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What does not learn: the student's output, or its encoder's; float32."""
        with self._precision():
            tokens = self.student(images) if self.options.learns == "nothing" else self.student.hidden(images)
        return tokens[0].float(), tokens[1].float()

    def _frozen(self, rows: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        options = self.options
        if not self.keeps:
            return self._constant(self._images(rows, epoch))
        if self._kept is None:
            self._kept = self._load_or_compute()
        if options.aug == "light":
            rows = rows + len(self.store) * np.array([mirrored(options.seed, epoch, int(row)) for row in rows])
        index = torch.from_numpy(rows)
        return tuple(tokens[index].to(options.device) for tokens in self._kept)

    def _load_or_compute(self) -> tuple[Tensor, Tensor]:
        options = self.options
        if options.cache is None or options.learns == "nothing":
            return self._compute_all()
        versions = ["mirrored" if mirror else "plain" for mirror in MIRRORED[options.aug]]
        parts = (
            fingerprint(self.student.encoder, self.student.spec.to_json()),
            cache_key(self.store.data, self.store.size),
            *versions,
        )
        key = hashlib.sha256(" ".join([*parts, options.amp, options.device.type]).encode()).hexdigest()[:24]
        path = options.cache / f"tokens-{key}.safetensors"
        try:
            kept = load_file(path)
            return kept["cls"], kept["patches"]
        # An older hpedge's or a damaged file is made again.
        except (FileNotFoundError, SafetensorError, KeyError):
            cls, patches = self._compute_all()
            write_file(path, lambda partial: save_file({"cls": cls, "patches": patches}, partial))
            return cls, patches

    def _compute_all(self) -> tuple[Tensor, Tensor]:
        """Class tokens [V*n, D] and patches [V*n, N, D] of V versions of n pictures, float32 on the CPU."""
        parts: list[tuple[Tensor, Tensor]] = []
        versions, total = MIRRORED[self.options.aug], len(MIRRORED[self.options.aug]) * len(self.store)
        with progress("the frozen student looks at pictures", total) as update:
            for mirror in versions:
                for start in range(0, len(self.store), BATCH):
                    pixels = torch.from_numpy(self.store[start : start + BATCH]).to(self.options.device)
                    images = pixels.permute(0, 3, 1, 2).float() / 255
                    parts.append(tuple(x.cpu() for x in self._constant(images.flip(-1) if mirror else images)))
                    update(min(total, len(parts) * BATCH), total)
        return tuple(torch.cat(tokens) for tokens in zip(*parts, strict=True))
