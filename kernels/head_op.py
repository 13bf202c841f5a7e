"""The dual-view head as one operator of torch, so that autograd, torch.compile and torch.export see one node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hpdval_edge.kernels import head

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

    The shapes and dtypes are those of `dual_view_scores`; float64 as well, which only the backend "eager" takes. The
    gradient reaches, per image and label, the k patches that torch.topk chooses; among equal cosines it may choose any.
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


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *arrays, ctx.k, ctx.alpha, _, ctx.want_patches = inputs
    ctx.save_for_backward(*arrays)


def _backward(ctx: Any, grad_scores: Tensor, grad_patch_scores: Tensor) -> tuple[Tensor | None, ...]:
    """Recomputes the cosines [B, N, C] and sends each score's gradient to its k chosen patches."""
    arrays = ctx.saved_tensors
    wide = _wide(arrays)
    cls, patches, text_global, text_local = (normalize(x.to(wide), dim=-1, eps=head.EPS) for x in arrays)
    chosen = (patches @ text_local.T).topk(ctx.k, dim=1).indices
    share = grad_scores * ((1 - ctx.alpha) / ctx.k)
    grad_cosines = patches.new_zeros(patches.shape[0], patches.shape[1], text_local.shape[0])
    grad_cosines = grad_cosines.scatter(1, chosen, share[:, None].expand_as(chosen))
    if ctx.want_patches:
        grad_cosines = grad_cosines + grad_patch_scores
    grad_whole = ctx.alpha * grad_scores
    grads = (
        grad_whole @ text_global,
        grad_cosines @ text_local,
        grad_whole.T @ cls,
        torch.einsum("bnc,bne->ce", grad_cosines, patches),
    )
    units = (cls, patches, text_global, text_local)
    through = (_normalize_backward(x, y, g) for x, y, g in zip(arrays, units, grads, strict=True))
    return (*through, None, None, None, None)


def _normalize_backward(x: Tensor, unit: Tensor, grad: Tensor) -> Tensor:
    """Gradient of y = x / max(||x||, EPS) at ``x``, from the gradient at y = ``unit``; all [..., E]."""
    norm = torch.linalg.vector_norm(x.to(unit.dtype), dim=-1, keepdim=True)
    along = unit * (grad * unit).sum(dim=-1, keepdim=True)
    return ((grad - torch.where(norm > head.EPS, along, 0)) / norm.clamp_min(head.EPS)).to(x.dtype)


dual_view_op.register_autograd(_backward, setup_context=_save)
