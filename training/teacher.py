"""The frozen CLIP teacher: loading, text path, image embeddings cached on disk (METHOD sections 4 and 6)."""

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hpdval_edge.atomic import write_file
from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.images import normalise
from hpdval_edge.presets import DEMO
from hpdval_edge.progress import say
from hpdval_edge.training.downloads import downloading
from hpdval_edge.training.image_store import ImageStore, cache_key
from hpdval_edge.training.precision import autocast
from hpdval_edge.training.prompts import TextTower

ASSETS = files("hpdval_edge.training") / "assets"
OPENAI_MEAN = open_clip.OPENAI_DATASET_MEAN
OPENAI_STD = open_clip.OPENAI_DATASET_STD
UNREADABLE = (SafetensorError, pickle.UnpicklingError, RuntimeError, KeyError, EOFError, ValueError, OSError)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen open_clip model with what belongs to it.

    clip: in eval mode, no parameter requires gradients, tensors of its own. size: pixels a side. mean, std: of its
    preprocessing. fingerprint: sha256 over its weights, activations and preprocessing.
    """

    clip: nn.Module
    text: TextTower
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str

    @property
    def embed_dim(self) -> int:
        """Width E of the joint space."""
        with torch.no_grad():
            return self.text.encode_prompts(["a"]).shape[1]

    @torch.no_grad()
    def encode(self, pixels: np.ndarray, *, device: torch.device, amp: str, space: str = "embed") -> Tensor:
        """Image embeddings, not normalised (eq. 2).

        Args:
            pixels: uint8 [B, size, size, 3].
            space: ``embed``: after CLIP's projection, float32 [B, E]; ``hidden``: the class token before it, [B, D].
        """
        images = torch.from_numpy(normalise(pixels, self.mean, self.std)).to(device)
        with autocast(device, amp):
            if space == "embed":
                return self.clip.encode_image(images).float()
            return self._hidden(images).float()

    def _hidden(self, images: Tensor) -> Tensor:
        visual = self.clip.visual
        if not isinstance(visual, open_clip.transformer.VisionTransformer):
            raise UsageError(
                "kd.space=hidden needs a teacher whose image tower is open_clip's ViT; use kd.space=embed."
            )
        projection, visual.proj = visual.proj, None
        try:
            return visual(images)
        finally:
            visual.proj = projection


def load_teacher(spec: str, device: torch.device) -> Teacher:
    """Load ``demo``, ``NAME:TAG``, ``NAME:FILE`` or ``CONFIG.json:FILE``.

    Raises:
        UsageError: the spec names no known model, tag or file.
        BadData: the file does not hold weights of that model.
        MissingDependency: the weights had to be downloaded and could not.
    """
    if spec == DEMO:
        spec = f"{ASSETS / 'demo_teacher.json'}:{ASSETS / 'demo_teacher.safetensors'}"
    name, colon, weights = spec.partition(":")
    if not colon or not weights:
        raise UsageError(
            f"--teacher {spec!r} is none of demo, NAME:TAG, NAME:FILE, CONFIG.json:FILE; try ViT-B-16-quickgelu:openai."
        )
    if name.endswith(".json"):
        clip, tokenizer, preprocess = _from_config(Path(name), weights)
    else:
        clip, tokenizer, preprocess = _from_name(name, weights)
    clip = clip.float().eval().requires_grad_(False).to(device)
    size = clip.visual.image_size
    mean, std = (tuple(preprocess.get(key) or own) for key, own in (("mean", OPENAI_MEAN), ("std", OPENAI_STD)))
    return Teacher(
        clip=clip,
        text=TextTower(clip, tokenizer).to(device),
        size=size[0] if isinstance(size, (tuple, list)) else size,
        mean=mean,
        std=std,
        fingerprint=fingerprint(clip, mean, std),
    )


def _from_name(name: str, weights: str) -> tuple[nn.Module, Callable, dict]:
    if name not in open_clip.list_models():
        raise UsageError(
            f"teacher {name!r} is no model of open_clip {open_clip.__version__}; see open_clip.list_models()."
        )
    tags, twin = open_clip.list_pretrained_tags_by_model(name), f"{name}-quickgelu"
    if weights in tags:
        if twin in open_clip.list_models() and open_clip.get_pretrained_cfg(name, weights).get("quick_gelu"):
            raise UsageError(f"the weights {weights!r} were trained with QuickGELU; use --teacher {twin}:{weights}.")
        remedy = f"copy the file here and pass --teacher {name}:/path/to/weights"
        with downloading(f"the weights {weights!r} of {name}", remedy=remedy):
            clip = open_clip.create_model(name, pretrained=weights)
        return clip, open_clip.get_tokenizer(name), open_clip.get_model_preprocess_cfg(clip)
    if not Path(weights).is_file():
        raise UsageError(
            f"teacher {name}:{weights}: no such file, and the tags of {name} are {', '.join(tags) or 'none'}."
        )
    if twin in open_clip.list_models():
        say(f"note: {name} computes GELU; weights that OpenAI published need --teacher {twin}:{weights}")
    try:
        clip = open_clip.create_model(name, pretrained=weights)
    except UNREADABLE as error:
        raise BadData(f"{weights} does not hold weights of {name}: {_first_line(error)}.") from error
    return clip, open_clip.get_tokenizer(name), open_clip.get_model_preprocess_cfg(clip)


def _from_config(config: Path, weights: str) -> tuple[nn.Module, Callable, dict]:
    """A model of its own: a JSON with open_clip's ``model_cfg`` (and ``preprocess_cfg``), or the bare ``model_cfg``."""
    for path in (config, Path(weights)):
        if not path.is_file():
            raise UsageError(f"teacher file {path} does not exist.")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        architecture = dict(content.get("model_cfg", content))
        if "timm_model_name" in architecture["vision_cfg"]:
            architecture["vision_cfg"] = {**architecture["vision_cfg"], "timm_model_pretrained": False}
        context = architecture["text_cfg"].get("context_length", 77)
        kind = open_clip.CustomTextCLIP if architecture.pop("custom_text", False) else open_clip.CLIP
        clip = kind(**architecture)
        if hasattr(clip.visual, "set_input_size"):
            clip.visual.set_input_size(architecture["vision_cfg"].get("image_size", 224))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise BadData(f"{config} is not an open_clip model configuration: {_first_line(error)}.") from error
    try:
        open_clip.load_checkpoint(clip, weights)
    except UNREADABLE as error:
        raise BadData(f"{weights} does not hold weights of {config}: {_first_line(error)}.") from error
    return clip, open_clip.SimpleTokenizer(context_length=context), content.get("preprocess_cfg", {})


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[:2]) or type(error).__name__)[:300].rstrip(".:")


def fingerprint(module: nn.Module, *settings: object) -> str:
    """sha256 over what decides a module's output: its layers as they print, its weights, and other ``settings``."""
    # Layers without weights, such as the activation, show in the print alone.
    digest = hashlib.sha256(f"{module} {settings}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cached_embeddings(
    teacher: Teacher,
    store: ImageStore,
    *,
    cache: Path,
    device: torch.device,
    amp: str,
    space: str,
    batch: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Teacher embeddings of every picture, computed once and kept in ``cache``.

    Args:
        store: an ImageStore at ``teacher.size``; its pictures and the weights' fingerprint name the cache file.

    Returns:
        float32 [n, E] (or [n, D] for ``hidden``).
    """
    pictures = cache_key(store.data, store.size)
    key = hashlib.sha256(f"{teacher.fingerprint} {pictures} {space} {amp} {device.type}".encode()).hexdigest()[:24]
    path = cache / f"teacher-{key}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    parts = []
    for start in range(0, len(store), batch):
        rows = np.arange(start, min(start + batch, len(store)))
        parts.append(teacher.encode(store[rows], device=device, amp=amp, space=space).cpu().numpy())
        if on_progress:
            on_progress(int(rows[-1]) + 1, len(store))
    embeddings = np.concatenate(parts) if parts else np.zeros((0, teacher.embed_dim), np.float32)

    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, embeddings)

    write_file(path, save)
    return embeddings
