"""The dual-view model: student, text banks, similarities and fusion (eqs 4, 5, 8, 9), and its weights file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hpdval_edge.atomic import write_file
from hpdval_edge.config import Config
from hpdval_edge.errors import BadData
from hpdval_edge.kernels.head import eager_scores
from hpdval_edge.training.prompts import PromptLearner, TextTower
from hpdval_edge.training.student import EncoderSpec, Student, build_encoder

LEARNED_SCALE_START = 20.0


@dataclass(frozen=True, slots=True)
class Views:
    """What one forward pass yields: cls [B, E], text banks [C, E], scores [B, C], patch_scores [B, N, C], float32."""

    cls: Tensor
    text_global: Tensor
    text_local: Tensor
    scores: Tensor
    patch_scores: Tensor


class DualView(nn.Module):
    """s = alpha cos(P^G, cls) + (1 - alpha) mean of the k largest cos(P^L, patch) per class and image.

    Args:
        text_global, text_local: banks [C, E] used while no prompts are learnt (P^H in stage 1).
        kind: ``cosine``, or ``l2class``, the authors' release (METHOD section 5): dot products, each view divided by
            its L2 norm over the classes of the image.
        logit_scale: positive number, or None to learn it from 20. It multiplies s for the loss only.
    """

    def __init__(
        self,
        student: Student,
        text_global: Tensor,
        text_local: Tensor,
        *,
        alpha: float,
        topk: int,
        kind: str = "cosine",
        logit_scale: float | None = 20.0,
    ) -> None:
        super().__init__()
        self.student = student
        self.alpha, self.topk, self.kind = alpha, topk, kind
        self.register_buffer("text_global", text_global.detach().clone())
        self.register_buffer("text_local", text_local.detach().clone())
        log_scale = torch.tensor(math.log(LEARNED_SCALE_START if logit_scale is None else logit_scale))
        self.log_scale = nn.Parameter(log_scale, requires_grad=logit_scale is None)
        self.residuals: nn.ParameterDict | None = None
        self.prompts: PromptLearner | None = None
        self.learns = (True, True)
        self._tower: tuple[TextTower, ...] = ()

    @property
    def logit_scale(self) -> Tensor:
        """Scalar that multiplies s in front of the loss."""
        return self.log_scale.exp()

    def attach_prompts(self, prompts: PromptLearner, tower: TextTower, *, learns: tuple[bool, bool]) -> None:
        """Let ``prompts`` make the banks from now on; ``learns`` says for (global, local) whether they do.

        The tower stays outside the module tree: it is frozen and belongs to the teacher.
        """
        self.prompts, self._tower, self.learns = prompts, (tower,), learns

    def attach_residuals(self) -> None:
        """Let every label learn a vector of its own, added to its text embedding in either view, zero at first.

        Not of the paper, whose contexts are shared by all labels; the deployed banks hold the sum, at no cost.
        """
        zeros = {view: nn.Parameter(torch.zeros_like(self.text_global)) for view in ("text_global", "text_local")}
        self.residuals = nn.ParameterDict(zeros)

    def residual_parameters(self) -> list[nn.Parameter]:
        """The residuals of both views, [C, E] each; none where labels do not learn them."""
        return [] if self.residuals is None else list(self.residuals.parameters())

    def prompted(self) -> tuple[Tensor, Tensor]:
        """Text embeddings P (global) and P' (local) without residuals, float32 [C, E]; differentiable in the contexts.

        float64 where the text tower is float64.
        """
        if self.prompts is None:
            return self.text_global, self.text_local
        return prompted_banks((self.text_global, self.text_local), self.prompts, self._tower[0], self.learns)

    def banks(self, prompted: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Text banks of the two views, [C, E]: ``prompted`` plus, where labels learn them, their residuals."""
        banks = prompted or self.prompted()
        if self.residuals is None:
            return banks
        return banks[0] + self.residuals["text_global"], banks[1] + self.residuals["text_local"]

    def score(self, cls: Tensor, patches: Tensor, text_global: Tensor, text_local: Tensor) -> tuple[Tensor, Tensor]:
        """cls [B, E], patches [B, N, E], banks [C, E] -> scores [B, C], patch scores [B, N, C].

        Computed and returned in float32, or in float64 where the inputs are.
        """
        cls, patches = at_least_float32(cls), at_least_float32(patches)
        if self.kind == "cosine":
            return eager_scores(cls, patches, text_global, text_local, k=self.topk, alpha=self.alpha)
        patch_scores = patches @ text_local.T
        pooled = patch_scores.topk(min(self.topk, patches.shape[1]), dim=1).values.mean(dim=1)
        views = [nn.functional.normalize(view, dim=1, eps=1e-12) for view in (cls @ text_global.T, pooled)]
        return self.alpha * views[0] + (1 - self.alpha) * views[1], patch_scores

    def forward(self, images: Tensor) -> Views:
        """Images float [B, 3, S, S] in [0, 1] -> Views."""
        cls, patches = self.student(images)
        banks = self.banks()
        return Views(cls.float(), *banks, *self.score(cls, patches, *banks))


def prompted_banks(
    fixed: tuple[Tensor, Tensor], prompts: PromptLearner | None, tower: TextTower, learns: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Text embeddings P (global) and P' (local) [C, E], at least float32: of the contexts where a view ``learns``.

    Args:
        fixed: both views' embeddings [C, E] without learning. prompts: of the same labels; None before stage 2.
    """
    if prompts is None:
        return fixed
    contexts = (prompts.global_context, prompts.local_context)
    made = [
        prompts(tower, context) if learn else bank for bank, context, learn in zip(fixed, contexts, learns, strict=True)
    ]
    return at_least_float32(made[0]), at_least_float32(made[1])


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or in its own type where that is wider: float64 shows an error that rounding would hide."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def make_model(config: Config, student: Student, fixed: Tensor) -> DualView:
    """DualView of stage 1: both banks are the fixed prompts' embeddings P^H [C, E]."""
    scale = None if config.sim.logit_scale == "learn" else float(config.sim.logit_scale)
    model = DualView(
        student,
        fixed,
        fixed,
        alpha=config.fuse.alpha,
        topk=config.fuse.topk,
        kind=config.sim.kind,
        logit_scale=scale,
    )
    if config.prompt.residual:
        model.attach_residuals()
    return model


def save_weights(
    path: Path,
    model: DualView,
    *,
    labels: Sequence[str],
    class_counts: Sequence[int],
    config: Config,
    notes: Mapping[str, str],
) -> None:
    """Write one safetensors file that is enough to evaluate or export: no teacher, no config needed beside it.

    Tensors: ``student.*``, ``text_global`` and ``text_local`` [C, E] with all that was learnt in them, ``log_scale``,
    and, where they exist, the contexts ``prompts.global_context`` / ``prompts.local_context`` [M, W] and the labels'
    ``residuals.text_global`` / ``residuals.text_local`` [C, E].
    """
    with torch.no_grad():
        banks = model.banks()
    tensors = {f"student.{name}": value for name, value in model.student.state_dict().items()}
    tensors |= {"text_global": banks[0], "text_local": banks[1], "log_scale": model.log_scale}
    for part in ("prompts", "residuals"):
        if module := getattr(model, part):
            tensors |= {f"{part}.{name}": value for name, value in module.named_parameters()}
    metadata = {
        "labels": json.dumps(list(labels)),
        "class_counts": json.dumps([int(count) for count in class_counts]),
        "encoder": model.student.spec.to_json(),
        "embed": config.student.embed,
        "embed_act": config.student.embed_act,
        "alpha": repr(model.alpha),
        "topk": str(model.topk),
        "kind": model.kind,
        **notes,
    }
    # Clones, because safetensors refuses the memory shared by a shared embedding layer.
    content = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_file(path, lambda partial: save_file(content, partial, metadata=metadata))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a weights file; BadData if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadData(f"{path} is not a readable weights file: {error}; train again or pass another run.") from error


def load_model(path: Path) -> tuple[DualView, tuple[str, ...], dict[str, str]]:
    """Restore a trained model for evaluation or export.

    Returns:
        The DualView in eval mode on the CPU, the labels in order, the file's metadata.
    """
    tensors, metadata = read_weights(path)
    try:
        spec = EncoderSpec.from_json(metadata["encoder"])
        student = Student(
            spec,
            build_encoder(spec),
            embed=metadata["embed"],
            embed_act=metadata["embed_act"],
            embed_dim=tensors["text_global"].shape[1],
        )
        model = DualView(
            student,
            tensors["text_global"],
            tensors["text_local"],
            alpha=float(metadata["alpha"]),
            topk=int(metadata["topk"]),
            kind=metadata["kind"],
        )
        model.log_scale.data.copy_(tensors["log_scale"])
        load_student(model.student, tensors)
        labels = tuple(json.loads(metadata["labels"]))
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise BadData(f"{path} was not written by this version of hpedge: {error}.") from error
    return model.eval(), labels, metadata


@torch.no_grad()
def restore_trained(model: DualView, tensors: Mapping[str, Tensor]) -> None:
    """Put what training changes from a weights file into a model that goes on; RuntimeError names what does not fit."""
    load_student(model.student, tensors)
    model.log_scale.copy_(tensors["log_scale"])
    for part in ("prompts", "residuals"):
        if module := getattr(model, part):
            for name, value in module.named_parameters():
                value.copy_(tensors[f"{part}.{name}"])


def load_student(student: Student, tensors: Mapping[str, Tensor]) -> None:
    """Put the ``student.*`` tensors of a weights file into ``student``; RuntimeError names what does not fit."""
    prefix = "student."
    student.load_state_dict({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})
