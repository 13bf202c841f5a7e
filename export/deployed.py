"""The deployed model as an ordinary module: image and text banks in, scores out (DESIGN section 4)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hpdval_edge.errors import UsageError
from hpdval_edge.export.fold import fold_batch_norms
from hpdval_edge.training.model import DualView
from hpdval_edge.training.student import tokens

EPS = 1e-12


class Deployed(nn.Module):
    """Student and dual-view head without anything that only training needs.

    forward: image as `images.INPUTS` has it for ``image_dtype``; text_global and text_local float32 [C, E], any C >= 1
    -> scores float32 [B, C], patch cosines float32 [B, N, C] (eqs 4, 5, 8, 9).

    The model given is used up: its batch norms are folded, and with ``half`` it is rounded, in place.
    With ``half`` the encoder and the embedding layer hold and compute float16; the L2 norms (1e-12 is 0 in float16),
    the similarities and everything after them stay float32.
    """

    def __init__(self, model: DualView, *, half: bool, image_dtype: str = "float32") -> None:
        super().__init__()
        self.image_dtype = image_dtype
        if model.kind != "cosine":
            raise UsageError(
                f"this run scores with sim.kind={model.kind}, the deployed head is cosine; train with sim.kind=cosine."
            )
        student = model.student
        self.encoder = student.encoder.eval()
        size = student.spec.image_size
        fold_batch_norms(self.encoder, torch.zeros(1, 3, size, size, device=student.mean.device))
        self.embed_cls, self.embed_patches = student.embed_cls, student.embed_patches
        self.alpha, self.topk = model.alpha, min(model.topk, student.num_patches)
        self.dtype = torch.float16 if half else torch.float32
        mean, std = torch.tensor(student.spec.mean), torch.tensor(student.spec.std)
        self.to(self.dtype).eval().requires_grad_(False)
        for module in self.modules():
            if hasattr(module, "fused_attn"):
                # Explicit attention with one scale, on q: TensorRT 10.7 gave wrong outputs on SDPA's own export.
                module.fused_attn = False
        # After the rounding to half: levels of 0 to 255 are normalised in float32.
        self.register_buffer("level_mean", (255 * mean).view(3, 1, 1), persistent=False)
        self.register_buffer("level_std", (255 * std).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor, text_global: Tensor, text_local: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(*self.embed(image), text_global, text_local)

    def embed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The head's own inputs: [B, E] of the whole image and [B, N, E] of its patches, at the model's precision."""
        if self.image_dtype == "uint8":
            image = (image.permute(0, 3, 1, 2).float() - self.level_mean) / self.level_std
        cls, patches = tokens(self.encoder, image.to(self.dtype))
        return self.embed_cls(cls), self.embed_patches(patches)

    def score(self, cls: Tensor, patches: Tensor, text_global: Tensor, text_local: Tensor) -> tuple[Tensor, Tensor]:
        """The dual-view head in plain operators, float32 whatever it is given."""
        whole = unit(cls.float()) @ unit(text_global).T
        patch_scores = unit(patches.float()) @ unit(text_local).T
        best = patch_scores.topk(self.topk, dim=1).values.mean(dim=1)
        return self.alpha * whole + (1 - self.alpha) * best, patch_scores


def unit(rows: Tensor) -> Tensor:
    """Rows of [..., E] scaled to length 1."""
    return normalize(rows, dim=-1, eps=EPS)
