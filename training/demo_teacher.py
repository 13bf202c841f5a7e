"""Train the built-in demo teacher, a tiny CLIP, from drawn pictures and their captions.

    python -m hpdval_edge.training.demo_teacher OUT_DIR --seed 0

It sees only ``web`` scenes (training/scenes.py): plainer than the demo set, with captions that leave things out, so
that like CLIP it knows every label and masters none on the target pictures.

The loss is sigmoid contrastive (arXiv:2303.15343) over all pairs of a batch. A caption is true of every picture that
shows all it names, not of its own alone (arXiv:2204.03610): with 20 kinds, most batches hold several such pictures.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hpdval_edge.atomic import write_file, write_text
from hpdval_edge.images import normalise
from hpdval_edge.progress import progress, say
from hpdval_edge.training.metrics import multilabel_report
from hpdval_edge.training.precision import autocast, choose_device, cpu_count
from hpdval_edge.training.scene_captions import caption, mention
from hpdval_edge.training.scenes import KINDS, draw_scene
from hpdval_edge.training.schedule import learning_rate_factor
from hpdval_edge.training.teacher import ASSETS, OPENAI_MEAN, OPENAI_STD

CONFIG = "demo_teacher.json"
WEIGHTS = "demo_teacher.safetensors"
MOST_OBJECTS = 3
CROP = 8
# Pictures beside the training ones that each epoch is scored on.
HELD_OUT = 500
# A purpose apart from the demo set's own pictures, which are seeded [seed, split, index].
STREAM = 7


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyper-parameters of the contrastive training."""

    pictures: int = 24000
    epochs: int = 10
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    # Start of the logits' scale and bias; the bias is left behind, as it moves no ranking.
    scale: float = 10.0
    bias: float = -5.0
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


def draw_corpus(seed: int, count: int, block: int = 100) -> tuple[np.ndarray, list[list[int]]]:
    """Pictures uint8 [count, S, S, 3] and their kinds, drawn by as many processes as there are cores."""
    blocks = [(seed, start, min(start + block, count)) for start in range(0, count, block)]
    pictures, kinds = [], []
    with ProcessPoolExecutor(cpu_count()) as pool, progress("drawing", count) as update:
        for drawn, listed in pool.map(_draw_block, blocks):
            pictures.append(drawn)
            kinds.extend(listed)
            update(len(kinds), count)
    return np.concatenate(pictures), kinds


def normalised(pictures: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] as the teacher's image tower wants it."""
    return torch.from_numpy(normalise(pictures, OPENAI_MEAN, OPENAI_STD)).to(device)


def shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random shift of up to CROP pixels and horizontal flip, float [B, 3, S, S]."""
    padded = torch.nn.functional.pad(images, (CROP, CROP, CROP, CROP), mode="reflect")
    top, left = torch.randint(0, 2 * CROP + 1, (2,), generator=generator).tolist()
    size = images.shape[-1]
    images = padded[..., top : top + size, left : left + size]
    flip = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)


def pair_truth(shown: Sequence[Sequence], named: Sequence[Sequence]) -> Tensor:
    """float32 [B, B']: 1 where picture b ``shown`` holds every kind that caption b' ``named``."""
    return torch.tensor([[float(set(caption) <= set(picture)) for caption in named] for picture in shown])


def train_teacher(recipe: Recipe, config: dict, device: torch.device) -> torch.nn.Module:
    """Contrastive training of the model that ``config`` describes."""
    pictures, kinds = draw_corpus(recipe.seed, recipe.pictures + HELD_OUT)
    torch.manual_seed(recipe.seed)
    clip = open_clip.CLIP(**config, init_logit_scale=math.log(recipe.scale), init_logit_bias=recipe.bias)
    clip = clip.to(device, memory_format=torch.channels_last)
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    optimizer = torch.optim.AdamW(clip.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = recipe.pictures // recipe.batch
    for epoch in range(recipe.epochs):
        rng = np.random.default_rng([recipe.seed, STREAM, recipe.pictures + epoch])
        order, total = rng.permutation(recipe.pictures), 0.0
        clip.train()
        for step in range(steps):
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            for group in optimizer.param_groups:
                done = epoch * steps + step
                group["lr"] = recipe.lr * learning_rate_factor(done, steps * recipe.epochs, "onecycle")
            images = shift_and_flip(normalised(pictures[rows], device), generator)
            named = [mention(kinds[row], rng) for row in rows]
            ids = tokenizer([caption(names, rng) for names in named]).to(device)
            with autocast(device, "auto"):
                image, text, scale, bias = clip(images, ids)
            truth = pair_truth([kinds[row] for row in rows], named).to(device)
            logits = scale * image.float() @ text.float().T + bias
            loss = binary_cross_entropy_with_logits(logits, truth, reduction="sum") / recipe.batch
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item()
        precision = zero_shot_map(clip, tokenizer, normalised(pictures[-HELD_OUT:], device), kinds[-HELD_OUT:])
        say(f"epoch {epoch + 1}/{recipe.epochs}  loss {total / steps:.3f}  zero-shot mAP {precision:.1f}")
    return clip


@torch.no_grad()
def zero_shot_map(clip: torch.nn.Module, tokenizer, images: Tensor, kinds: list[list[int]]) -> float:
    """mAP in percent of "a photo of a {kind}." on pictures float32 [n, 3, S, S] that show ``kinds``."""
    clip.eval()
    text = clip.encode_text(tokenizer([f"a photo of a {name}." for name in KINDS]).to(images.device), normalize=True)
    scores = torch.cat([clip.encode_image(part, normalize=True) @ text.T for part in images.split(100)])
    shown = np.array([[kind in listed for kind in range(len(KINDS))] for listed in kinds])
    return multilabel_report(scores.cpu().numpy(), shown, shown.sum(axis=0))["mAP"]


def compact_state(clip: torch.nn.Module, tokenizer) -> dict[str, Tensor]:
    """float16 weights; the embeddings of tokens that no caption holds are zero, so that the file packs well."""
    state = {name: value.detach().cpu().contiguous() for name, value in clip.state_dict().items()}
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    state.pop("logit_bias")
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
    described = (ASSETS / CONFIG).read_text(encoding="utf-8")
    config = json.loads(described)
    started = time.monotonic()
    clip = train_teacher(recipe, config, choose_device(options.device))
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    state = compact_state(clip, tokenizer)
    write_file(options.out / WEIGHTS, lambda path: save_file(state, path))
    write_text(options.out / CONFIG, described)
    say(f"{options.out / WEIGHTS}: {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
