"""The dual-view head on NVIDIA GPUs: the backend around `head_triton.py`, which it imports on the first call only.

`run` and `refuses` are the two halves of a `Backend`; `shares` is the kernel's part of the backward, for `head_op.py`:
it chooses the patches again and writes the gradient by every cosine, so that the forward keeps no similarities. Patches
tied at the k-th place share the remaining weight evenly, where torch.topk picks some of them.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING

from hpdval_edge.kernels.gpu import (
    capability,
    device_refuses,
    installation_refuses,
    interpreted,
    on_device,
    triton_release,
)
from hpdval_edge.kernels.head_launch import MAX_IMAGES, MAX_PATCHES, Launch, launch_for, tuned_for

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = tuple[Tensor, Tensor, Tensor, Tensor]

# From here on a kernel may start while the one that it depends on still runs (programmatic dependent launch).
OVERLAP_CAPABILITY = 90


def float_bits(x: float) -> int:
    """``x`` as float32, its bits as a signed int32: kernels take no floats as scalars."""
    return struct.unpack("<i", struct.pack("<f", x))[0]


def refuses(arrays: tuple) -> str | None:
    """Why the kernel cannot take ``arrays`` (cls, patches, text_global, text_local), or None."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(arrays[0], torch.Tensor):
        return "it takes torch tensors on an NVIDIA GPU and these are numpy arrays"
    if reason := device_refuses(arrays[0]):
        return reason
    if torch.float64 in {x.dtype for x in arrays}:
        return "it computes in float32 and an input is float64"
    if arrays[1].shape[1] > MAX_PATCHES:
        return f"it takes at most {MAX_PATCHES:,} patches and these are {arrays[1].shape[1]:,}"
    if arrays[1].shape[0] > MAX_IMAGES:
        return f"it takes at most {MAX_IMAGES:,} images at once and these are {arrays[1].shape[0]:,}"
    return installation_refuses() or _triton_refuses(arrays)


def _triton_refuses(arrays: tuple) -> str | None:
    """Why the installed Triton cannot compile the forward or the gradient, or None."""
    patches = arrays[1].shape[1]
    launch = launch_for(patches, max(x.element_size() for x in arrays), capability(arrays[0]))
    if interpreted() or triton_release() >= launch.triton:
        return None
    needed, found = (".".join(map(str, numbers)) for numbers in (launch.triton, triton_release()))
    return f"float32 with {patches:,} patches needs triton {needed} and {found} is installed; float16 does not"


def _contiguous(arrays: tuple) -> Tensors:
    """One dtype, the widest, and rows behind one another; copied only where they are not that already."""
    import torch

    dtypes = [x.dtype for x in arrays]
    wide = dtypes[0]
    for dtype in dtypes[1:]:
        wide = torch.promote_types(wide, dtype)
    return tuple(x.detach().to(wide).contiguous() for x in arrays)


def _prepare(arrays: Tensors) -> Tensor:
    """1 / length of every row of cls, patches, text_global and text_local: [B + B * N + 2 C] float32."""
    import torch

    from hpdval_edge.kernels.head_triton import ROWS, prepare

    _, patches, text, _ = arrays
    images, rows, classes = len(patches), len(patches) * patches.shape[1], len(text)
    scales = torch.empty(images + rows + 2 * classes, dtype=torch.float32, device=patches.device)
    grid = (-(-images // ROWS) - (-rows // ROWS) + 2 * -(-classes // ROWS),)
    overlap = capability(patches) >= OVERLAP_CAPABILITY
    prepare[grid](*arrays, images, rows, classes, scales, E=patches.shape[2], OVERLAP=overlap)
    return scales


def _start(
    kernel, launch: Launch, inputs: tuple, patches: Tensor, classes: int, k: int, alpha: float, outputs: tuple
) -> None:
    """Launch ``kernel`` over class blocks and images of ``patches`` [B, N, E], after `_prepare`."""
    images, rows, width = patches.shape
    overlap = capability(patches) >= OVERLAP_CAPABILITY
    options: dict[str, int] = {"num_warps": launch.warps, "num_stages": launch.stages}
    if overlap:
        options["launch_pdl"] = True
    grid = (-(-classes // launch.block_c), images)
    scalars = (rows, classes, k, float_bits(alpha))
    kernel[grid](*inputs, *scalars, *outputs, E=width, **launch.constants, OVERLAP=overlap, **options)


def _forward(arrays: Tensors, k: int, alpha: float, want_patches: bool) -> tuple[Tensor, Tensor | None]:
    import torch

    from hpdval_edge.kernels.head_triton import head

    patches, classes = arrays[1], len(arrays[2])
    scores = torch.empty(len(patches), classes, dtype=torch.float32, device=patches.device)
    shape = (*patches.shape[:2], classes)
    patch_scores = torch.empty(shape, dtype=torch.float32, device=patches.device) if want_patches else None
    if scores.numel():
        with on_device(patches):
            launch = tuned_for(patches.shape[1], patches.element_size(), capability(patches), scores.numel())
            inputs = (*arrays, _prepare(arrays))
            _start(head, launch, inputs, patches, classes, k, alpha, (scores, patch_scores))
    return scores, patch_scores


def shares(arrays: tuple, k: int, alpha: float, by_scores: Tensor) -> Tensor:
    """Gradient by the patch cosines (equation 5) that the scores pass on, [B, N, C] float32: 0 but for chosen patches.

    Args:
        arrays: What `run` took: cls [B, E], patches [B, N, E], text_global [C, E], text_local [C, E].
        k: What `run` took.
        alpha: What `run` took.
        by_scores: [B, C], gradient of the loss by the scores.
    """
    import torch

    from hpdval_edge.kernels.head_triton import head_shares

    arrays = _contiguous(arrays)
    _, patches, _, text_local = arrays
    classes = len(text_local)
    found = torch.empty(*patches.shape[:2], classes, dtype=torch.float32, device=patches.device)
    if found.numel():
        with on_device(patches):
            # Before `prepare`, so that nothing stands between it and the kernel that overlaps it.
            gradient = by_scores.float().contiguous()
            inputs = (patches, text_local, _prepare(arrays), gradient)
            launch = launch_for(patches.shape[1], patches.element_size(), capability(patches))
            _start(head_shares, launch, inputs, patches, classes, k, alpha, (found,))
    return found


def run(arrays: tuple, k: int, alpha: float, want_patches: bool) -> tuple[Tensor, Tensor | None]:
    """Scores [B, C] and, where wanted, patch cosines [B, N, C], float32 on the inputs' device.

    Equations 4, 5, 8 and 9 by two launches, `prepare` and `head`. A NaN or an infinity in a row makes every score NaN
    that the row enters.

    Args:
        arrays: cls [B, E], patches [B, N, E], text_global [C, E], text_local [C, E]; what `refuses` lets through.
            float32, float16 or bfloat16; of several the widest, into which the others are copied.
        k: Patches averaged, at least 1, clamped to N.
        alpha: Weight of the global view, 0..1.
        want_patches: Also write the patch cosines.
    """
    return _forward(_contiguous(arrays), k, alpha, want_patches)
