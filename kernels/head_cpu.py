"""The dual-view head on a CPU: C++ without libtorch or BLAS, one file per instruction set (kernels/cpu/head.hpp)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from hpdval_edge.kernels import compiled
from hpdval_edge.kernels.arguments import check_arrays, check_options, dtype_name, is_tensor
from hpdval_edge.kernels.compiled import _cpu

if TYPE_CHECKING:
    from hpdval_edge.kernels.arguments import Array

# Each further thread must bring this many multiply-adds, or waking it costs more than it saves.
PRODUCTS_PER_THREAD = 1 << 22
# In which the local view's text is held and multiplied.
PRECISIONS = ("float32", "int16")


def usable_cpus() -> int:
    """CPUs this process may use, at most OMP_NUM_THREADS."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(int(wanted), allowed) if wanted.isdecimal() and int(wanted) > 0 else allowed


def threads_for(products: int) -> int:
    """As many as so many multiply-adds are worth, at most ``usable_cpus``."""
    if products < PRODUCTS_PER_THREAD:
        return 1
    return min(usable_cpus(), 1 + products // PRODUCTS_PER_THREAD)


class TextBank:
    """The text rows of a label list, scaled to unit length and packed once; for scoring many batches against them.

    Args:
        text_global: [C, E], numpy or torch on the CPU, float32, float16 or bfloat16; text for the whole image.
        text_local: [C, E], text for a patch. Both are copied: 2 x C x E float32, rounded up to whole panels of classes.
        precision: "float32", or "int16": the local view's unit rows, text and patches, are rounded to multiples of
            1 / 32767 and multiplied as integers, which is faster where the head spends its time there (C >= 80), and
            text_local takes half the memory. A cosine is off by at most sqrt(E) / 32767, by 1.3e-5 as a root mean
            square; docs/kernels.md has figures. Only for instruction sets where it is faster: not on Arm.
        threads: The most that one batch may use, 0 for as many as `threads_for` allows.

    Attributes:
        classes: C.
        width: E.
        isa: Instruction set that the rows are packed for, see `compiled.instruction_set`.
        precision: As given.

    Raises:
        TypeError, ValueError: As `dual_view_scores`; HPEDGE_ISA names none that this machine has; an unknown precision,
            or int16 where it would not be faster.
        ImportError: The compiled module is not there.
    """

    def __init__(self, text_global: Array, text_local: Array, precision: str = "float32", threads: int = 0) -> None:
        if compiled.MISSING:
            raise ImportError(compiled.MISSING)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        check_arrays({"text_global": text_global, "text_local": text_local})
        self.classes, self.width = text_global.shape
        self.isa = compiled.instruction_set(_cpu.isas())
        self.precision = precision
        self.threads = threads
        self._packed = _cpu.PackedText(_to_float32(text_global), _to_float32(text_local), self.isa, precision=precision)

    def scores(
        self, cls: Array, patches: Array, k: int = 32, alpha: float = 0.4, return_patch_scores: bool = False
    ) -> Array | tuple[Array, Array]:
        """What `dual_view_scores` gives for these texts, without gradients; arguments, result and errors as there."""
        check_arrays({"cls": cls, "patches": patches})
        check_options(k, alpha)
        if cls.shape[1] != self.width:
            raise ValueError(f"cls and patches must have the text's width E = {self.width}, got {cls.shape[1]}")
        if is_tensor(cls) and cls.device.type != "cpu":
            raise ValueError(f"a TextBank reads CPU memory, got tensors on {cls.device}")
        scores, patch_scores = self._run(cls, patches, min(int(k), patches.shape[1]), float(alpha), return_patch_scores)
        return (scores, patch_scores) if return_patch_scores else scores

    def _run(self, cls: Array, patches: Array, k: int, alpha: float, want_patches: bool) -> tuple[Array, Array | None]:
        images, rows, width = patches.shape
        scores = np.empty((images, self.classes), np.float32)
        patch_scores = np.empty((images, rows, self.classes), np.float32) if want_patches else None
        data, dtype = _patch_bits(patches)
        threads = threads_for(images * rows * self.classes * width)
        threads = min(threads, self.threads or threads)
        _cpu.head(_to_float32(cls), data, dtype, self._packed, k, alpha, scores, patch_scores, threads)
        if not is_tensor(cls):
            return scores, patch_scores
        from torch import from_numpy

        return from_numpy(scores), None if patch_scores is None else from_numpy(patch_scores)


def run(arrays: tuple[Array, ...], k: int, alpha: float, want_patches: bool) -> tuple[Array, Array | None]:
    cls, patches, text_global, text_local = arrays
    return TextBank(text_global, text_local)._run(cls, patches, k, alpha, want_patches)


def refuses(arrays: tuple[Array, ...]) -> str | None:
    if is_tensor(arrays[0]):
        if arrays[0].device.type != "cpu":
            return f"it reads CPU memory and the tensors are on {arrays[0].device}"
        if any(dtype_name(x) == "float64" for x in arrays):
            return "it computes in float32 and an input is float64"
    return compiled.missing()


def _to_float32(x: Array) -> np.ndarray:
    """C-contiguous and aligned, copied only where ``x`` is not that already."""
    array = x.detach().float().numpy() if is_tensor(x) else x
    if array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned:
        return array
    return np.require(array, np.float32, "CA")


def _patch_bits(patches: Array) -> tuple[np.ndarray, str]:
    """float32, or the uint16 that hold half precision, which the kernel widens an image at a time; and the dtype."""
    if is_tensor(patches) and patches.element_size() == 2:
        import torch

        return patches.detach().contiguous().view(torch.int16).numpy().view(np.uint16), dtype_name(patches)
    if dtype_name(patches) == "float16":
        return np.require(patches, np.float16, "CA").view(np.uint16), "float16"
    return _to_float32(patches), "float32"
