"""A stand-in CLIP for Corel5k: a frozen DINOv2 ViT-S/14 aligned with a small text tower on the training captions.

    python benchmarks/corel5k/teacher.py DATA --vit DINOV2.safetensors --out OUT_DIR

DATA holds corel5k_lt_train.txt, corel5k_lt_labels.txt and images/. Writes OUT_DIR/teacher.json and teacher.safetensors,
which ``--teacher OUT_DIR/teacher.json:OUT_DIR/teacher.safetensors`` loads. Only captions made of the training
split's own words are used ("a photo of sky, jet and plane"), so that its zero-shot test scores are honest. The loss is
that of the demo teacher: sigmoid contrastive, a caption being true of every picture that has all its words.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from hpdval_edge.images import normalise
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.demo_teacher import pair_truth
from hpdval_edge.training.image_store import ImageStore
from hpdval_edge.training.precision import autocast, choose_device
from hpdval_edge.training.readers import load_splits
from hpdval_edge.training.schedule import learning_rate_factor
from hpdval_edge.training.student import load_encoder_file

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODEL = {
    "embed_dim": 256,
    "vision_cfg": {
        "timm_model_name": "vit_small_patch14_dinov2",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 140,
    },
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4},
}


def mention(words: list[str], rng: np.random.Generator) -> list[str]:
    """The words that a caption names, in random order: each with probability 1/2, but always one of them."""
    kept = [word for word in words if rng.random() < 0.5] or [words[rng.integers(len(words))]]
    return [kept[i] for i in rng.permutation(len(kept))]


def caption(words: list[str]) -> str:
    """ "a photo of sky, jet and plane"."""
    listed = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return f"a photo of {listed}."


@torch.no_grad()
def trunk_features(clip: torch.nn.Module, store: ImageStore, device: torch.device) -> torch.Tensor:
    """Pooled features of the locked trunk, float32 [n, D], computed once."""
    parts = []
    for start in range(0, len(store), 64):
        pixels = store[np.arange(start, min(start + 64, len(store)))]
        images = torch.from_numpy(normalise(pixels, MEAN, STD)).to(device)
        with autocast(device, "auto"):
            parts.append(clip.visual.trunk(images).float())
    return torch.cat(parts)


def align(clip: torch.nn.Module, features: torch.Tensor, data: LabelledImages, options: argparse.Namespace) -> None:
    """Train the image projection and the text tower; the trunk stays as it is."""
    device = features.device
    words = [[data.labels[i].replace("_", " ") for i in np.flatnonzero(row)] for row in data.targets]
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
    trained = [value for name, value in clip.named_parameters() if not name.startswith("visual.trunk")]
    optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=0.2, betas=(0.9, 0.98))
    steps = len(words) // options.batch
    for epoch in range(options.epochs):
        rng = np.random.default_rng([options.seed, epoch])
        order, total = rng.permutation(len(words)), 0.0
        for step in range(steps):
            for group in optimizer.param_groups:
                factor = learning_rate_factor(epoch * steps + step, steps * options.epochs, "onecycle")
                group["lr"] = options.lr * factor
            rows = order[step * options.batch : (step + 1) * options.batch]
            image = clip.visual.head(features[torch.from_numpy(rows).to(device)])
            named = [mention(words[row], rng) for row in rows]
            with autocast(device, "auto"):
                text = clip.encode_text(tokenizer([caption(names) for names in named]).to(device))
            image, text = (torch.nn.functional.normalize(value.float(), dim=1) for value in (image, text))
            truth = pair_truth([words[row] for row in rows], named).to(device)
            logits = clip.logit_scale.exp() * image @ text.T + clip.logit_bias
            loss = binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{options.epochs}  loss {total / steps:.3f}", flush=True)


def main() -> None:
    """Parse, align, write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--vit", type=Path, required=True, help="timm weights of vit_small_patch14_dinov2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device, started = choose_device(options.device), time.monotonic()
    splits = load_splits(
        options.data / "corel5k_lt_train.txt",
        labels=options.data / "corel5k_lt_labels.txt",
        test=options.data / "corel5k_lt_test.txt",
        val_fraction=0.15,
        seed=0,
    )
    torch.manual_seed(options.seed)
    clip = open_clip.CLIP(**MODEL, init_logit_scale=math.log(10), init_logit_bias=-5.0)
    clip.visual.set_input_size(MODEL["vision_cfg"]["image_size"])
    load_encoder_file(clip.visual.trunk, options.vit, "vit_small_patch14_dinov2")
    clip.lock_image_tower()
    clip.visual.head.requires_grad_(True)
    clip = clip.to(device).eval()
    store = ImageStore(splits.train, size=MODEL["vision_cfg"]["image_size"], cache=None)
    align(clip, trunk_features(clip, store, device), splits.train, options)
    options.out.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (options.out / "teacher.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: value.detach().cpu().half().contiguous() for name, value in clip.state_dict().items()}
    # It moves no ranking, and a CLIP that is built without one could not load it.
    state.pop("logit_bias")
    save_file(state, options.out / "teacher.safetensors")
    print(f"{options.out / 'teacher.safetensors'}: {time.monotonic() - started:.0f} s on {device}")


if __name__ == "__main__":
    main()
