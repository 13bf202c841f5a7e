"""The dual-view head: how well an image fits each label, seen as a whole and through its best patches.

    s[b,c] = alpha * cos(G_c, cls_b) + (1 - alpha) * mean(k largest over n of cos(L_c, patch_bn))

Paper equations 4, 5, 8 and 9. `eager_scores` (torch) and `numpy_scores` (float64) are the specification; every other
backend must agree with them. A NaN or an infinity in a row makes every score NaN that the row enters, whatever alpha.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpdval_edge.kernels import head_cpu, head_gpu
from hpdval_edge.kernels.arguments import check_arrays, check_options, is_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from hpdval_edge.kernels.arguments import Array

EPS = 1e-12


def eager_scores(
    cls: Tensor, patches: Tensor, text_global: Tensor, text_local: Tensor, *, k: int, alpha: float
) -> tuple[Tensor, Tensor]:
    """The specification in torch; gradients flow, through the local view to the k chosen patches only.

    Args:
        cls: [B, E], any float; the image as a whole. Computed in float32, or float64 when an input is float64.
        patches: [B, N, E], N >= 1.
        text_global: [C, E], the label's text for the whole image.
        text_local: [C, E], the label's text for a patch.
        k: Patches averaged per image and label, clamped to N.
        alpha: Weight of the global view, 0..1.

    Returns:
        scores [B, C] and patch cosines [B, N, C], float32 or float64, also under autocast.
    """
    import torch
    from torch.nn.functional import normalize

    arrays = (cls, patches, text_global, text_local)
    wide = torch.float64 if torch.float64 in {x.dtype for x in arrays} else torch.float32
    device = cls.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        unit_cls, unit_patches, unit_global, unit_local = (normalize(x.to(wide), dim=-1, eps=EPS) for x in arrays)
        whole = unit_cls @ unit_global.T
        patch_scores = unit_patches @ unit_local.T
        best = patch_scores.topk(min(k, patches.shape[1]), dim=1).values.mean(dim=1)
        return alpha * whole + (1 - alpha) * best, patch_scores


def numpy_scores(
    cls: np.ndarray, patches: np.ndarray, text_global: np.ndarray, text_local: np.ndarray, *, k: int, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """The specification in NumPy: shapes of `eager_scores`, any float in, float64 inside and out."""

    def unit(x: np.ndarray) -> np.ndarray:
        wide = x.astype(np.float64)
        return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), EPS)

    with np.errstate(invalid="ignore"):
        whole = unit(cls) @ unit(text_global).T
        patch_scores = unit(patches) @ unit(text_local).T
    others = max(patches.shape[1] - k, 0)
    best = np.partition(patch_scores, others, axis=1)[:, others:].mean(axis=1)
    return alpha * whole + (1 - alpha) * best, patch_scores


def _run_numpy(arrays: tuple[Array, ...], k: int, alpha: float, want_patches: bool) -> tuple[Array, Array | None]:
    scores, patch_scores = numpy_scores(*arrays, k=k, alpha=alpha)
    return scores.astype(np.float32), patch_scores.astype(np.float32) if want_patches else None


def _numpy_refuses(arrays: tuple[Array, ...]) -> str | None:
    return "it takes numpy arrays and these are torch tensors" if is_tensor(arrays[0]) else None


def _run_eager(arrays: tuple[Array, ...], k: int, alpha: float, want_patches: bool) -> tuple[Array, Array | None]:
    if is_tensor(arrays[0]):
        scores, patch_scores = eager_scores(*arrays, k=k, alpha=alpha)
        return scores, patch_scores if want_patches else None
    import torch

    # torch warns about an array that it could not write to, hence W.
    tensors = (torch.from_numpy(np.require(x, np.float32, "CAEW")) for x in arrays)
    scores, patch_scores = eager_scores(*tensors, k=k, alpha=alpha)
    return scores.numpy(), patch_scores.numpy() if want_patches else None


def _eager_refuses(arrays: tuple[Array, ...]) -> str | None:
    return None if importlib.util.find_spec("torch") else "torch is not installed; install 'hpdval-edge[train]'"


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation: ``run(arrays, k, alpha, want_patches)`` gives scores and patch cosines (or None) in the
    caller's kind of array; ``refuses(arrays)`` says why it cannot take the arrays, or None."""

    name: str
    run: Callable[[tuple[Array, ...], int, float, bool], tuple[Array, Array | None]]
    refuses: Callable[[tuple[Array, ...]], str | None]


BACKENDS = (  # in order of preference; eager, which accepts everything, last
    Backend("triton", head_gpu.run, head_gpu.refuses),
    Backend("cpu", head_cpu.run, head_cpu.refuses),
    Backend("numpy", _run_numpy, _numpy_refuses),
    Backend("eager", _run_eager, _eager_refuses),
)


def choose(arrays: tuple[Array, ...], backend: str) -> Backend:
    """The first backend that takes ``arrays`` (valid inputs of `dual_view_scores`); a named one is never replaced.

    Raises:
        ValueError: The named backend refuses, the message gives its reason; or HPEDGE_ISA asks for a compiled kernel
            that is not there.
    """
    reasons = []
    for candidate in BACKENDS:
        if backend in ("auto", candidate.name):
            reason = candidate.refuses(arrays)
            if reason is None:
                return candidate
            reasons.append(f"{candidate.name}: {reason}")
    raise ValueError(f"backend {backend!r} cannot take these inputs ({'; '.join(reasons)})")


def dual_view_scores(
    cls: Array,
    patches: Array,
    text_global: Array,
    text_local: Array,
    k: int = 32,
    alpha: float = 0.4,
    backend: str = "auto",
    return_patch_scores: bool = False,
) -> Array | tuple[Array, Array]:
    """Score every image against every label (equations 4, 5, 8, 9; the formula is at the top of this module).

    Every row is scaled to unit length first, y = x / max(||x||, 1e-12), so a zero row scores 0. The k largest cosines
    are chosen exactly, per image and label; ties do not change the result. float32 in and inside, except the "numpy"
    backend, which computes in float64; float16 and bfloat16 (torch only) are widened first. float32 rows must be
    shorter than 1.8e19, where their squared length overflows. Inputs are not changed and need not be contiguous. Torch
    tensors get gradients whichever backend computes; among equal cosines, any k of the largest get the gradient.

    Args:
        cls: [B, E], numpy or torch, float32, float16 or bfloat16; all four inputs of one kind, on one device.
        patches: [B, N, E], N >= 1.
        text_global: [C, E], text for the whole image.
        text_local: [C, E], text for a patch.
        k: Patches averaged, at least 1, clamped to N.
        alpha: Weight of the global view, 0..1.
        backend: "auto" (the first of `BACKENDS` that can), "triton" (NVIDIA GPUs), "cpu" (C++), "numpy", or "eager"
            (torch).
        return_patch_scores: Also return the patch cosines.

    Returns:
        scores [B, C] float32, of the inputs' kind; with ``return_patch_scores`` also the patch cosines [B, N, C]
        float32. B = 0 or C = 0 gives an empty result.

    Raises:
        TypeError: An input is neither a numpy array nor a torch tensor.
        ValueError: A shape, a dtype, k, alpha or the backend is not as above, the named backend cannot run, or
            HPEDGE_ISA names what this machine cannot run, see `compiled.instruction_set`.
    """
    check_arrays({"cls": cls, "patches": patches, "text_global": text_global, "text_local": text_local})
    check_options(k, alpha)
    names = ("auto", *(b.name for b in BACKENDS))
    if backend not in names:
        raise ValueError(f"backend must be one of {', '.join(names)}, got {backend!r}")
    arrays = (cls, patches, text_global, text_local)
    k, alpha = min(int(k), patches.shape[1]), float(alpha)
    if is_tensor(cls):
        from hpdval_edge.kernels.head_op import call

        scores, patch_scores = call(arrays, k, alpha, backend, return_patch_scores)
    else:
        scores, patch_scores = choose(arrays, backend).run(arrays, k, alpha, return_patch_scores)
    return (scores, patch_scores) if return_patch_scores else scores
