"""The student: an image encoder and an embedding layer that puts class token and patches beside the text (eq. 1)."""

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hpdval_edge.config import StudentConfig
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.downloads import downloading
from hpdval_edge.training.teacher import Teacher

CLIP_VIT = "clip-vit"
DEFAULT_TIMM = "vit_base_patch16_224.augreg_in1k"
ACTIVATIONS = {"tanh": nn.Tanh, "gelu": nn.GELU, "none": nn.Identity}


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """All it takes to build the encoder again without its weights; stored beside them.

    name: a timm model, or ``clip-vit`` for the geometry of a CLIP image tower. The geometry fields serve the latter.
    """

    name: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int = 0
    width: int = 0
    depth: int = 0
    heads: int = 0
    mlp_ratio: float = 4.0
    quick_gelu: bool = False

    @property
    def fixed_size(self) -> bool:
        """Whether trained weights fit one picture size only, as position embeddings do; a CNN's fit any."""
        return self.name == CLIP_VIT or hasattr(timm.create_model(self.name, num_classes=0), "set_input_size")

    def to_json(self) -> str:
        """One line for the weights file's metadata."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "EncoderSpec":
        """Inverse of ``to_json``."""
        values = json.loads(text)
        return EncoderSpec(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


class Student(nn.Module):
    """Image -> class token and patches in the joint space.

    forward: float [B, 3, S, S] in [0, 1] -> (cls [B, E], patches [B, N, E]); the encoder's own mean and std are applied
    inside, so student and teacher share one picture (METHOD section 3).
    """

    def __init__(self, spec: EncoderSpec, encoder: nn.Module, *, embed: str, embed_act: str, embed_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = encoder
        self.embed_dim = embed_dim
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)
        self.grid, self.width = probe(encoder, spec.image_size)
        activation = ACTIVATIONS[embed_act]

        def mlp() -> nn.Module:
            return nn.Sequential(nn.Linear(self.width, embed_dim), activation(), nn.Linear(embed_dim, embed_dim))

        shared = embed != "mlp2_local"
        self.embed_patches = nn.Linear(self.width, embed_dim, bias=False) if embed == "clip_proj" else mlp()
        self.embed_cls = self.embed_patches if shared else nn.Linear(self.width, embed_dim, bias=False)

    @property
    def num_patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    def hidden(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[0, 1] images -> the encoder's class token [B, D] and patches [B, N, D], after its final norm."""
        return tokens(self.encoder, (images - self.mean) / self.std)

    def embed(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding layer of section III-A: [B, D], [B, N, D] -> [B, E], [B, N, E]."""
        return self.embed_cls(cls), self.embed_patches(patches)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(*self.hidden(images))

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Parameters of the embedding layer, which ``train.stage1.head_lr_mult`` speeds up."""
        return list(nn.ModuleList([self.embed_cls, self.embed_patches]).parameters())


def tokens(encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run a timm encoder: ViTs give their tokens, CNNs their last feature map with its mean as class token."""
    features = encoder.forward_features(images)
    if features.ndim == 4:
        if features.shape[1] != encoder.num_features:
            features = features.permute(0, 3, 1, 2)
        patches = features.flatten(2).transpose(1, 2)
        return patches.mean(dim=1), patches
    # A ViT that pools by average leaves its final norm to the classifier.
    if isinstance(encoder.norm, nn.Identity):
        features = encoder.fc_norm(features)
    patches = features[:, encoder.num_prefix_tokens :]
    # Prefix tokens may be registers alone.
    has_class = getattr(encoder, "cls_token", None) is not None
    return (features[:, 0] if has_class else patches.mean(dim=1)), patches


@torch.no_grad()
def probe(encoder: nn.Module, size: int) -> tuple[tuple[int, int], int]:
    """Grid of patches (rows, columns) and width D at ``size`` pixels; UsageError if the encoder cannot take it."""
    training = encoder.training
    encoder.eval()
    try:
        features = encoder.forward_features(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f"the student cannot take {size} px pictures: {error}; set student.image_size.") from None
    encoder.train(training)
    if features.ndim == 4:
        channels_first = features.shape[1] == encoder.num_features
        grid = features.shape[2:] if channels_first else features.shape[1:3]
    else:
        side = round((features.shape[1] - encoder.num_prefix_tokens) ** 0.5)
        grid = (side, side)
    return (int(grid[0]), int(grid[1])), int(encoder.num_features)


def build_encoder(spec: EncoderSpec, *, pretrained: bool = False) -> nn.Module:
    """The encoder of ``spec``; its weights are random unless ``pretrained`` asks timm for the published ones."""
    if spec.name != CLIP_VIT:
        encoder = timm.create_model(spec.name, pretrained=pretrained, num_classes=0)
        if hasattr(encoder, "set_input_size"):
            encoder.set_input_size(img_size=spec.image_size)
        # Convolutions on a CPU run faster so.
        return encoder.to(memory_format=torch.channels_last)
    return VisionTransformer(
        img_size=spec.image_size,
        patch_size=spec.patch_size,
        embed_dim=spec.width,
        depth=spec.depth,
        num_heads=spec.heads,
        mlp_ratio=spec.mlp_ratio,
        num_classes=0,
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        act_layer="quick_gelu" if spec.quick_gelu else "gelu",
    )


def spec_of_clip(teacher: Teacher) -> EncoderSpec | None:
    """The teacher's image tower as an encoder: a plain CLIP ViT, or a timm model under one linear layer; else None."""
    visual = teacher.clip.visual
    if isinstance(visual, TimmModel):
        return _spec_of_timm_tower(teacher)
    plain = isinstance(visual, open_clip.transformer.VisionTransformer) and visual.pool_type == "tok"
    if not plain or visual.attn_pool is not None or isinstance(visual.ln_pre, nn.Identity):
        return None
    block = visual.transformer.resblocks[0]
    return EncoderSpec(
        name=CLIP_VIT,
        image_size=teacher.size,
        mean=teacher.mean,
        std=teacher.std,
        patch_size=visual.patch_size[0],
        width=visual.class_embedding.shape[0],
        depth=len(visual.transformer.resblocks),
        heads=block.attn.num_heads,
        mlp_ratio=block.mlp.c_fc.out_features / block.mlp.c_fc.in_features,
        quick_gelu=isinstance(block.mlp.gelu, open_clip.transformer.QuickGELU),
    )


@torch.no_grad()
def _spec_of_timm_tower(teacher: Teacher) -> EncoderSpec | None:
    trunk, head = teacher.clip.visual.trunk, teacher.clip.visual.head
    if [name for name, _ in head.named_parameters()] != ["proj.weight"]:
        return None
    # A trunk may pool in a way of its own: it will do only if its output is the class token that the method reads.
    images = torch.rand(1, 3, teacher.size, teacher.size, generator=torch.Generator().manual_seed(0))
    images = images.to(next(trunk.parameters()).device)
    if not torch.allclose(tokens(trunk, images)[0], trunk(images), atol=1e-4, rtol=1e-3):
        return None
    return EncoderSpec(trunk.pretrained_cfg["architecture"], teacher.size, teacher.mean, teacher.std)


def clip_projection(visual: nn.Module) -> Tensor:
    """The image tower's last layer, float32 [E, D], a copy."""
    weight = visual.head.proj.weight if isinstance(visual, TimmModel) else visual.proj.T
    return weight.detach().clone()


def clip_state(visual: nn.Module) -> dict[str, Tensor]:
    """The image tower's weights under timm's names, copies that share no memory with it (METHOD section 15, row 8)."""
    if isinstance(visual, TimmModel):
        return {name: value.detach().clone() for name, value in visual.trunk.state_dict().items()}
    renames = (
        ("conv1", "patch_embed.proj"),
        ("transformer.resblocks.", "blocks."),
        ("ln_pre", "norm_pre"),
        ("ln_post", "norm"),
        ("ln_1", "norm1"),
        ("ln_2", "norm2"),
        ("in_proj_", "qkv."),
        ("out_proj", "proj"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    )
    state = {}
    for name, value in visual.state_dict().items():
        if name == "proj":
            continue
        for old, new in renames:
            name = name.replace(old, new)
        state[name] = value.detach().clone()
    state["cls_token"] = state.pop("class_embedding").view(1, 1, -1)
    state["pos_embed"] = state.pop("positional_embedding").unsqueeze(0)
    return state


def load_encoder_file(encoder: nn.Module, path: Path, name: str) -> None:
    """Load timm weights from a file (no pickled code); classifier weights are left aside.

    Raises:
        UsageError: no such file. BadData: it does not hold every weight of the encoder.
    """
    if not path.is_file():
        raise UsageError(f"student weights {path} do not exist.")
    try:
        state = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise BadData(f"{path} is not a weights file that can be read without running code: {error}.") from error
    module = __import__(type(encoder).__module__, fromlist=["checkpoint_filter_fn"])
    adapt: Callable | None = getattr(module, "checkpoint_filter_fn", None)
    state = adapt(state, encoder) if adapt else state
    try:
        loaded = encoder.load_state_dict(state, strict=False)
        missing = [key for key in loaded.missing_keys if not key.endswith("num_batches_tracked")]
    except RuntimeError as error:
        raise BadData(f"{path} does not fit {name}: {str(error).splitlines()[-1].strip()}.") from error
    if missing:
        raise BadData(f"{path} lacks {len(missing)} weights of {name}, the first is {missing[0]!r}.")


def pretrained_encoder(spec: EncoderSpec) -> nn.Module:
    """The timm encoder with its published weights, downloaded by timm; MissingDependency when that fails."""
    remedy = f"copy the file here and pass --student {spec.name}:/path/to/weights, or set student.init=random"
    with downloading(f"the ImageNet weights of {spec.name}", remedy=remedy):
        return build_encoder(spec, pretrained=True)


def clip_student(teacher: Teacher) -> Student:
    """The teacher's image tower as a student: class token and patches after CLIP's projection, weights of its own.

    Raises:
        UsageError: the tower cannot be read that way.
    """
    spec = _student_spec("auto", "clip", 0, spec_of_clip(teacher))
    encoder = _initial_encoder(spec, "clip", "", teacher)
    student = Student(spec, encoder, embed="clip_proj", embed_act="none", embed_dim=teacher.embed_dim)
    student.embed_patches.weight.data.copy_(clip_projection(teacher.clip.visual))
    return student.requires_grad_(False).eval()


def make_student(config: StudentConfig, teacher: Teacher) -> tuple[Student, StudentConfig]:
    """Build the student and return it with its configuration, every ``auto`` resolved.

    ``auto`` takes the teacher's own architecture and weights where ``spec_of_clip`` finds them, else ImageNet's
    ViT-B/16 (METHOD section 13). The embedding layer is CLIP's projection where the weights are CLIP's, else the MLP.
    """
    clip_spec = spec_of_clip(teacher)
    name, init = config.name, config.init
    if name == "auto":
        from_clip = clip_spec is not None and (init == "clip" or (init == "auto" and not config.weights))
        name = clip_spec.name if from_clip else DEFAULT_TIMM
    if init == "auto":
        own = clip_spec is not None and name == clip_spec.name and not config.weights
        init = "clip" if own or name == CLIP_VIT else "imagenet"
    embed = config.embed if config.embed != "auto" else ("clip_proj" if init == "clip" else "mlp2")
    spec = _student_spec(name, init, config.image_size, clip_spec)
    encoder = _initial_encoder(spec, init, config.weights, teacher)
    student = Student(spec, encoder, embed=embed, embed_act=config.embed_act, embed_dim=teacher.embed_dim)
    if init == "clip":
        projection = clip_projection(teacher.clip.visual)
        for layer in (student.embed_cls, student.embed_patches):
            if isinstance(layer, nn.Linear):
                layer.weight.data.copy_(projection)
    resolved = replace(config, name=name, init=init, embed=embed, image_size=spec.image_size)
    return student, resolved


def _student_spec(name: str, init: str, size: int, clip_spec: EncoderSpec | None) -> EncoderSpec:
    if init == "clip" or name == CLIP_VIT:
        if clip_spec is None:
            raise UsageError(
                "student.init=clip needs a teacher whose image tower is a plain CLIP ViT, or a timm model under one "
                "linear layer; name a timm student, e.g. --student vit_base_patch16_224 --set student.init=imagenet."
            )
        if name not in ("auto", clip_spec.name):
            raise UsageError(
                f"student.init={init} takes the teacher's architecture, {clip_spec.name}; "
                f"student.name={name!r} must be that or auto."
            )
        if size not in (0, clip_spec.image_size) and clip_spec.fixed_size:
            raise UsageError(
                f"student.image_size={size}, but the teacher's architecture takes {clip_spec.image_size} px pictures."
            )
        return replace(clip_spec, image_size=size or clip_spec.image_size)
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:5]) or "see timm.list_models()"
        raise UsageError(f"student {name!r} is no model of timm {timm.__version__}; close: {close}.")
    default = timm.get_pretrained_cfg(name)
    return EncoderSpec(name, size or default.input_size[-1], tuple(default.mean), tuple(default.std))


def _initial_encoder(spec: EncoderSpec, init: str, weights: str, teacher: Teacher) -> nn.Module:
    if init == "clip":
        encoder = build_encoder(spec)
        encoder.load_state_dict(clip_state(teacher.clip.visual))
        return encoder
    if weights:
        encoder = build_encoder(spec)
        load_encoder_file(encoder, Path(weights), spec.name)
        return encoder
    return build_encoder(spec) if init == "random" else pretrained_encoder(spec)
