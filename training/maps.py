"""``hpedge maps``: where a run, and plain CLIP beside it, see a label in a picture (Figs 6 and 7 of the paper)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hpdval_edge.config import Config, StudentConfig
from hpdval_edge.errors import HpedgeError, UsageError
from hpdval_edge.images import resize_squash
from hpdval_edge.training.model import DualView, load_model, make_model
from hpdval_edge.training.precision import choose_device
from hpdval_edge.training.prompts import class_texts, fixed_embeddings
from hpdval_edge.training.report.facts import RunFacts, read_facts
from hpdval_edge.training.run_folder import RunFolder
from hpdval_edge.training.student import Student, make_student
from hpdval_edge.training.teacher import load_teacher

RUN, CLIP = "this run", "plain CLIP"
VIEWS = ("local", "global")


@dataclass(frozen=True, slots=True)
class LabelMaps:
    """How one model sees one label in one picture.

    kind: ``sim.kind``. local: similarity of every patch with P^L by that kind, float32 [rows, columns]. effect: what
    every patch adds to the class token's cosine with P^G, see ``global_effect``, float32 [rows, columns], None where
    nobody asked for it. score: the fused s. cosine: cos(P^G, cls).
    """

    kind: str
    local: np.ndarray
    effect: np.ndarray | None
    score: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Viewers:
    """The models that look: the run's own, and its teacher as it came; without the latter, the reason.

    threshold: of the run, for the label. column: the label's.
    """

    run: DualView
    clip: DualView | None
    why_no_clip: str
    device: torch.device
    column: int
    threshold: float


def find_label(label: str, labels: Sequence[str]) -> int:
    """Column of ``label``; UsageError lists close names."""
    if label in labels:
        return list(labels).index(label)
    close = get_close_matches(label, labels, n=5, cutoff=0.5) or list(labels)[:5]
    raise UsageError(f"--class {label!r} is none of the {len(labels)} labels of the run; close: {', '.join(close)}.")


def slug(label: str) -> str:
    """``label`` as a part of a file name."""
    return re.sub(r"[^\w-]+", "-", label).strip("-") or "label"


def load_viewers(run: RunFolder, label: str) -> Viewers:
    """Load the run's reported weights and, where it can be had, its teacher as a dual-view model of its own.

    Raises:
        UsageError: unknown label, or no finished stage. BadData: the run is damaged.
    """
    facts = read_facts(run)
    column = find_label(label, facts.labels)
    device = choose_device("auto")
    model = load_model(facts.weights)[0].to(device).requires_grad_(False)
    clip, reason = None, ""
    try:
        clip = plain_clip(facts.config, facts, device)
    except HpedgeError as error:
        reason = str(error).splitlines()[0]
    return Viewers(model, clip, reason, device, column, float(facts.thresholds["values"][column]))


def plain_clip(config: Config, facts: RunFacts, device: torch.device) -> DualView:
    """The run's teacher before any training: its own tower, patches through its own projection, fixed prompts P^H.

    Raises:
        UsageError, BadData, MissingDependency: the teacher cannot be loaded, or its tower yields no patches.
    """
    teacher = load_teacher(config.teacher.spec, device)
    student, _ = make_student(StudentConfig(init="clip"), teacher)
    texts = class_texts(facts.labels, config.data.class_names)
    with torch.no_grad():
        fixed = fixed_embeddings(teacher.text, texts, period=config.prompt.period).cpu()
    return make_model(config, student, fixed).to(device).eval().requires_grad_(False)


def look(
    model: DualView, picture: Image.Image, column: int, device: torch.device, views: Sequence[str] = VIEWS
) -> LabelMaps:
    """The asked ``views`` of the label in ``column`` on an RGB picture of any size.

    Raises:
        UsageError: the global view was asked for and cannot be shown, see ``global_effect``.
    """
    size, grid = model.student.spec.image_size, model.student.grid
    pixels = torch.from_numpy(resize_squash(picture, size)).to(device)
    images = pixels.permute(2, 0, 1)[None].float() / 255
    effect = None
    if "global" in views:
        effect, cls, patches = global_effect(model.student, images, model.text_global[column])
        effect = effect.reshape(grid).cpu().numpy()
    with torch.no_grad():
        if effect is None:
            cls, patches = model.student(images)
        scores, patch_scores = model.score(cls, patches, model.text_global, model.text_local)
        cosine = torch.nn.functional.cosine_similarity(cls[0].float(), model.text_global[column], dim=0)
    return LabelMaps(
        kind=model.kind,
        local=patch_scores[0, :, column].reshape(grid).cpu().numpy(),
        effect=effect,
        score=float(scores[0, column]),
        cosine=float(cosine),
    )


def global_effect(student: Student, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient times activation of cos(text, cls), summed over the width: what each patch adds to it, to first order.

        effect_j = sum_d h_jd * d cos(text, cls) / d h_jd

    h are the last patches that the class token is made of: in a ViT the tokens that enter the last block, where the
    class token reads them for the last time; where the class token is the mean of the final map, as in a CNN, that map.
    The cosine does not change with the length of cls, so under a layer without bias the effects of a CNN add up to 0:
    a positive one raises the cosine above what an average patch would give.

    Args:
        images: float [1, 3, S, S] in [0, 1]. text: [E].

    Returns:
        effect float32 [N]; cls [1, E] and patches [1, N, E], embedded and without gradient.

    Raises:
        UsageError: an encoder with a class token whose blocks are not known.
    """
    encoder = student.encoder
    prefix, blocks = getattr(encoder, "num_prefix_tokens", 0), getattr(encoder, "blocks", None)
    entered: list[Tensor] = []

    def keep(block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entered.append(inputs[0].detach().requires_grad_())
        return (entered[0], *inputs[1:])

    by_attention = prefix > 0
    if by_attention and blocks is None:
        raise UsageError(
            f"the global view of {student.spec.name} cannot be shown: it has a class token and no list of blocks; use "
            "--view local."
        )
    handle = blocks[-1].register_forward_pre_hook(keep) if by_attention else None
    try:
        hidden_cls, hidden_patches = student.hidden(images if by_attention else images.clone().requires_grad_())
    finally:
        if handle:
            handle.remove()
    cls, patches = student.embed(hidden_cls, hidden_patches)
    cosine = torch.nn.functional.cosine_similarity(cls[0].float(), text, dim=0)
    source = entered[0] if by_attention else hidden_patches
    (gradient,) = torch.autograd.grad(cosine, source)
    effect = (gradient * source.detach())[0].sum(dim=1)
    return (effect[prefix:] if by_attention else effect).float(), cls.detach(), patches.detach()
