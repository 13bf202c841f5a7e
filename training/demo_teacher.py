"""Train the built-in demo teacher, a tiny CLIP, from drawn pictures and their captions.

    python -m hpdval_edge.training.demo_teacher OUT_DIR --seed 0

It sees only ``web`` scenes (training/scenes.py): plainer than the demo set, with captions that leave things out, so
that like CLIP it knows every label and masters none on the target pictures.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from hpdval_edge.atomic import write_file
from hpdval_edge.progress import progress, say
from hpdval_edge.training.precision import autocast, choose_device, cpu_count
from hpdval_edge.training.scenes import KINDS, caption, draw_scene
from hpdval_edge.training.schedule import learning_rate_factor
from hpdval_edge.training.teacher import ASSETS, OPENAI_MEAN, OPENAI_STD

CONFIG = "demo_teacher.json"
WEIGHTS = "demo_teacher.safetensors"
MOST_OBJECTS = 3
CROP = 8
# A purpose apart from the demo set's own pictures, which are seeded [seed, split, index].
STREAM = 7


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyper-parameters of the contrastive training."""

    pictures: int = 12000
    epochs: int = 16
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.1
    # Half of the patches are dropped while training (arXiv:2212.00794), which halves its time.
    patch_dropout: float = 0.5
    seed: int = 0


def draw_picture(seed: int, index: int) -> tuple[np.ndarray, list[int]]:
    """Picture ``index`` of the teacher's corpus: uint8 [S, S, 3] and the kinds in it, uniformly drawn."""
    rng = np.random.default_rng([seed, STREAM, index])
    count = int(rng.integers(1, MOST_OBJECTS + 1))
    kinds = rng.choice(len(KINDS), size=count, replace=False).tolist()
    return draw_scene(kinds, rng=rng, style="web"), kinds


def _draw_block(block: tuple[int, int, int]) -> tuple[np.ndarray, list[list[int]]]:
    seed, start, stop = block
    drawn = [draw_picture(seed, index) for index in range(start, stop)]
    return np.stack([picture for picture, _ in drawn]), [kinds for _, kinds in drawn]


def draw_corpus(recipe: Recipe, block: int = 100) -> tuple[np.ndarray, list[list[int]]]:
    """All pictures uint8 [n, S, S, 3] and their kinds, drawn by as many processes as there are cores."""
    blocks = [(recipe.seed, start, min(start + block, recipe.pictures)) for start in range(0, recipe.pictures, block)]
    pictures, kinds = [], []
    with ProcessPoolExecutor(cpu_count()) as pool, progress("drawing", recipe.pictures) as update:
        for drawn, listed in pool.map(_draw_block, blocks):
            pictures.append(drawn)
            kinds.extend(listed)
            update(len(kinds), recipe.pictures)
    return np.concatenate(pictures), kinds


def shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random shift of up to CROP pixels and horizontal flip, float [B, 3, S, S]."""
    padded = torch.nn.functional.pad(images, (CROP, CROP, CROP, CROP), mode="reflect")
    top, left = torch.randint(0, 2 * CROP + 1, (2,), generator=generator).tolist()
    size = images.shape[-1]
    images = padded[..., top : top + size, left : left + size]
    flip = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)


def train_teacher(recipe: Recipe, config: dict, device: torch.device) -> torch.nn.Module:
    """Contrastive training (open_clip's ClipLoss) of the model that ``config`` describes."""
    pictures, kinds = draw_corpus(recipe)
    torch.manual_seed(recipe.seed)
    vision = {**config["vision_cfg"], "patch_dropout": recipe.patch_dropout}
    clip = open_clip.CLIP(**{**config, "vision_cfg": vision}).to(device)
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    loss_function = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(clip.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = len(pictures) // recipe.batch
    for epoch in range(recipe.epochs):
        rng = np.random.default_rng([recipe.seed, STREAM, recipe.pictures + epoch])
        order, total = rng.permutation(len(pictures)), 0.0
        for step in range(steps):
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            done = epoch * steps + step
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * learning_rate_factor(done, steps * recipe.epochs, "onecycle")
            images = torch.from_numpy(pictures[rows]).to(device).permute(0, 3, 1, 2).float() / 255
            ids = tokenizer([caption(kinds[row], rng) for row in rows]).to(device)
            with autocast(device, "auto"):
                features = clip((shift_and_flip(images, generator) - mean) / std, ids)
            loss = loss_function(*(value.float() for value in features[:3]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                clip.logit_scale.clamp_(max=np.log(100))
            total += loss.item()
        say(f"epoch {epoch + 1}/{recipe.epochs}  contrastive loss {total / steps:.3f}")
    return clip


def compact_state(clip: torch.nn.Module, tokenizer) -> dict[str, Tensor]:
    """float16 weights; the embeddings of tokens that no caption holds are zero, so that the file packs well."""
    state = {name: value.detach().cpu().half().contiguous() for name, value in clip.state_dict().items()}
    sentences = [f"a photo of a {kind}." for kind in KINDS] + ["X", "a picture, snapshot of an image with and"]
    used = tokenizer(sentences).unique()
    embedding = torch.zeros_like(state["token_embedding.weight"])
    embedding[used] = state["token_embedding.weight"][used]
    return {**state, "token_embedding.weight": embedding}


def main() -> None:
    """Parse, train, write ``OUT_DIR/demo_teacher.safetensors`` and a copy of its configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--pictures", type=int, default=Recipe().pictures)
    parser.add_argument("--epochs", type=int, default=Recipe().epochs)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    recipe = Recipe(seed=options.seed, pictures=options.pictures, epochs=options.epochs)
    config = json.loads((ASSETS / CONFIG).read_text(encoding="utf-8"))
    started = time.monotonic()
    clip = train_teacher(recipe, config, choose_device(options.device))
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    state = compact_state(clip, tokenizer)
    write_file(options.out / WEIGHTS, lambda path: save_file(state, path))
    (options.out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    say(f"{options.out / WEIGHTS}: {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
