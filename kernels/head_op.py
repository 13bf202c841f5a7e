"""The dual-view head as one operator of torch, so that autograd, torch.compile and torch.export see one node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hpdval_edge.kernels import head, head_gpu

PLAIN = (Tensor, torch.nn.Parameter)


@torch.library.custom_op("hpdval_edge::dual_view_scores", mutates_args=())
def dual_view_op(
    cls: Tensor,
    patches: Tensor,
    text_global: Tensor,
    text_local: Tensor,
    k: int,
    alpha: float,
    backend: str,
    want_patches: bool,
) -> tuple[Tensor, Tensor]:
    """`dual_view_scores` on checked inputs: scores [B, C], and patch cosines [B, N, C], or [0] when not wanted.

    The shapes and dtypes are those of `dual_view_scores`; float64 as well, which only the backend "eager" takes.
    """
    arrays = (cls, patches, text_global, text_local)
    scores, patch_scores = head.choose(arrays, backend).run(arrays, k, alpha, want_patches)
    return scores, scores.new_empty(0) if patch_scores is None else patch_scores


def call(
    arrays: tuple[Tensor, ...], k: int, alpha: float, backend: str, want_patches: bool
) -> tuple[Tensor, Tensor | None]:
    """The operator, or the backend itself where nobody records: that saves the operator's 20 microseconds a call."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing() or any(type(x) not in PLAIN for x in arrays)
    if not recorded and not (torch.is_grad_enabled() and any(x.requires_grad for x in arrays)):
        return head.choose(arrays, backend).run(arrays, k, alpha, want_patches)
    scores, patch_scores = dual_view_op(*arrays, k, alpha, backend, want_patches)
    return scores, patch_scores if want_patches else None


@dual_view_op.register_fake
def _fake(
    cls: Tensor,
    patches: Tensor,
    text_global: Tensor,
    text_local: Tensor,
    k: int,
    alpha: float,
    backend: str,
    want_patches: bool,
) -> tuple[Tensor, Tensor]:
    wide = _wide((cls, patches, text_global, text_local))
    classes = text_global.shape[0]
    shape = (patches.shape[0], patches.shape[1], classes) if want_patches else (0,)
    return cls.new_empty((cls.shape[0], classes), dtype=wide), cls.new_empty(shape, dtype=wide)


def _wide(arrays: tuple[Tensor, ...]) -> torch.dtype:
    return torch.float64 if torch.float64 in {x.dtype for x in arrays} else torch.float32


@torch.library.custom_op("hpdval_edge::dual_view_gradients", mutates_args=())
def gradients_op(
    cls: Tensor,
    patches: Tensor,
    text_global: Tensor,
    text_local: Tensor,
    by_scores: Tensor,
    by_patch_scores: Tensor | None,
    k: int,
    alpha: float,
    backend: str,
    needed: list[bool],
) -> list[Tensor]:
    """Gradients by the four inputs, each in its shape and dtype, or [0] where not needed.

    The scores' gradient reaches, per image and label, the k chosen patches. Among cosines tied at the k-th place the
    backend "triton" shares it evenly; otherwise torch.topk chooses.

    Args:
        by_scores: [B, C], gradient of the loss by the scores.
        by_patch_scores: [B, N, C], by the patch cosines; None where they were not asked for.
    """
    arrays = (cls, patches, text_global, text_local)
    with torch.autocast(cls.device.type, enabled=False):
        by_cosines = None
        if needed[1] or needed[3]:
            choose_shares = head_gpu.shares if head.choose(arrays, backend).name == "triton" else _shares
            by_cosines = choose_shares(arrays, k, alpha, by_scores)
            if by_patch_scores is not None:
                by_cosines += by_patch_scores
        found = _gradients(arrays, alpha * by_scores, by_cosines, needed)
    return [x.new_empty(0) if grad is None else grad for x, grad in zip(arrays, found, strict=True)]


@gradients_op.register_fake
def _fake_gradients(
    cls: Tensor,
    patches: Tensor,
    text_global: Tensor,
    text_local: Tensor,
    by_scores: Tensor,
    by_patch_scores: Tensor | None,
    k: int,
    alpha: float,
    backend: str,
    needed: list[bool],
) -> list[Tensor]:
    arrays = (cls, patches, text_global, text_local)
    return [torch.empty_like(x) if wanted else x.new_empty(0) for x, wanted in zip(arrays, needed, strict=True)]


def _shares(arrays: tuple[Tensor, ...], k: int, alpha: float, by_scores: Tensor) -> Tensor:
    """As `head_gpu.shares`, in torch: recomputes the cosines [B, N, C]."""
    patches, text_local = _units((arrays[1], arrays[3]))
    cosines = patches @ text_local.T
    chosen = cosines.topk(k, dim=1).indices
    return torch.zeros_like(cosines).scatter_(1, chosen, ((1 - alpha) / k * by_scores)[:, None].expand_as(chosen))


def _gradients(
    arrays: tuple[Tensor, ...], by_whole: Tensor, by_cosines: Tensor | None, needed: list[bool]
) -> list[Tensor | None]:
    """The chain rule from both views' cosines, ``by_whole`` [B, C] and ``by_cosines`` [B, N, C], to the inputs."""
    cls, patches, text_global, text_local = units = _units(arrays)
    by_unit = (
        lambda: by_whole @ text_global,
        lambda: by_cosines @ text_local,
        lambda: by_whole.T @ cls,
        lambda: by_cosines.flatten(0, 1).T @ patches.flatten(0, 1),
    )
    return [
        _normalize_backward(x, unit, product()) if wanted else None
        for x, unit, product, wanted in zip(arrays, units, by_unit, needed, strict=True)
    ]


def _units(arrays: tuple[Tensor, ...]) -> list[Tensor]:
    return [normalize(x.to(_wide(arrays)), dim=-1, eps=head.EPS) for x in arrays]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *arrays, ctx.k, ctx.alpha, ctx.backend, ctx.want_patches = inputs
    ctx.save_for_backward(*arrays)


def _backward(ctx: Any, by_scores: Tensor, by_patch_scores: Tensor) -> tuple[Tensor | None, ...]:
    by_patches = by_patch_scores if ctx.want_patches else None
    needed = list(ctx.needs_input_grad[:4])
    grads = gradients_op(*ctx.saved_tensors, by_scores, by_patches, ctx.k, ctx.alpha, ctx.backend, needed)
    return (*(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True)), None, None, None, None)


def _normalize_backward(x: Tensor, unit: Tensor, grad: Tensor) -> Tensor:
    """Gradient of y = x / max(||x||, EPS) at ``x``, from the gradient at y = ``unit``; all [..., E]."""
    norm = torch.linalg.vector_norm(x.to(unit.dtype), dim=-1, keepdim=True)
    along = unit * (grad * unit).sum(dim=-1, keepdim=True)
    return ((grad - torch.where(norm > head.EPS, along, 0)) / norm.clamp_min(head.EPS)).to(x.dtype)


dual_view_op.register_autograd(_backward, setup_context=_save)
