"""The built-in demo data set ``scenes-lt``: drawn pictures of everyday things, several labels each, with a long tail.

Nothing is downloaded: each picture is drawn from a seed with Pillow and numpy. Two styles exist. ``full`` is the domain
the student learns: textured places, occlusion, a poor camera. ``web`` is plainer, with few and large objects: the
pictures that the tiny demo teacher is trained on, together with scene_captions.py.
"""

import csv
import json
import math
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from hpdval_edge.atomic import disk_errors
from hpdval_edge.errors import BadData
from hpdval_edge.training import scene_painting as painting
from hpdval_edge.training.scene_objects import DRAWINGS
from hpdval_edge.training.scene_painting import SIZE, stamp

KINDS: tuple[str, ...] = tuple(DRAWINGS)
STYLES = ("full", "web")
# Raised whenever the same seed would give other pictures or labels than before.
VERSION = 1
SPLITS = {"train": 600, "val": 200, "test": 400}
JPEG_QUALITY = 90
# Training pictures that show each kind: six kinds of the head (>= 100), seven medium, seven of the tail (< 20).
TRAIN_COUNTS = {
    "person": 250, "tree": 215, "car": 180, "house": 150, "flower": 120, "chair": 105,
    "dog": 90, "bicycle": 72, "cup": 58, "bird": 46, "cat": 36, "bus": 29, "lamp": 23,
    "boat": 18, "pear": 15, "clock": 12, "truck": 10, "plane": 8, "traffic light": 6, "mushroom": 4,
}  # fmt: skip
# Kinds seen together more often than chance.
COMPANIONS = (
    ("car", "traffic light"), ("car", "bus"), ("car", "truck"), ("bus", "traffic light"), ("person", "bicycle"),
    ("person", "dog"), ("tree", "house"), ("tree", "bird"), ("tree", "mushroom"), ("flower", "house"),
    ("chair", "lamp"), ("chair", "cat"), ("cup", "pear"), ("cup", "clock"), ("lamp", "clock"), ("boat", "bird"),
)  # fmt: skip
# The places where a kind is at home; pictures are taken there more often than elsewhere.
HOMES = {
    "room": ("chair", "clock", "cup", "lamp", "cat", "dog", "person"),
    "kitchen": ("cup", "pear", "clock", "chair", "cat"),
    "table": ("cup", "pear", "clock", "flower", "mushroom"),
    "street": ("car", "bus", "truck", "traffic light", "bicycle", "person"),
    "yard": ("bicycle", "person", "car", "chair", "dog", "truck"),
    "meadow": ("tree", "house", "flower", "dog", "person", "bird", "mushroom", "plane"),
    "garden": ("flower", "tree", "bird", "mushroom", "cat", "chair"),
    "beach": ("boat", "person", "dog", "bird"),
    "lake": ("boat", "bird"),
    "air": ("plane", "bird"),
}
# Seen above the horizon.
ALOFT = ("bird", "clock", "plane")
INDOORS = ("chair", "lamp", "clock", "cup", "pear", "cat")
# Standard deviation of the turn in radians, where it is not 0.05.
TURNS = {"pear": 0.4, "plane": 0.22, "flower": 0.14, "clock": 0.12, "bird": 0.12, "mushroom": 0.12, "cup": 0.08}
GROWTH = {"house": 1.2, "tree": 1.2, "bus": 1.2, "truck": 1.1, "bicycle": 1.1, "pear": 0.8, "mushroom": 0.8, "cup": 0.8}
# Longest side of an object in pixels, by style and by the number of objects (the last entry: that many or more).
LENGTHS = {
    "full": ((30, 70), (22, 64), (18, 56), (16, 50), (14, 44)),
    "web": ((58, 92), (44, 62), (36, 52), (30, 44), (24, 36)),
}
SMALLEST = 14.0
# The fraction of its own pixels that each object keeps, whatever hides it, the frame included.
MIN_VISIBLE = {"full": 0.4, "web": 0.75}
MOST_KINDS = 5
STAMP = "scenes.json"


@dataclass(frozen=True, slots=True)
class Sprite:
    """One object of a scene: its kind, float32 [h, w, 4] pixels in 0..1, and where its corner lies."""

    kind: int
    pixels: np.ndarray
    left: int
    top: int


@dataclass(slots=True)
class Scene:
    """A scene before the camera: ``background`` float32 [SIZE, SIZE, 3], and the sprites from back to front."""

    background: np.ndarray
    horizon: float
    style: str
    camera_seed: int
    sprites: list[Sprite] = field(default_factory=list)
    # Per sprite: the alpha no later sprite hides, float32 [SIZE, SIZE], and all of its alpha, outside the frame too.
    open_alpha: list[np.ndarray] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)

    def visible(self) -> list[float]:
        """Return per sprite the fraction of its own pixels that can be seen."""
        return [float(alpha.sum()) / area for alpha, area in zip(self.open_alpha, self.areas, strict=True)]

    def add(self, sprite: Sprite) -> bool:
        """Put ``sprite`` in front; False, and nothing changes, if it or a sprite behind it would be hidden too much."""
        alpha = stamp(np.zeros((SIZE, SIZE, 3), np.float32), sprite.pixels, sprite.left, sprite.top)
        seen = [*(rest * (1 - alpha) for rest in self.open_alpha), alpha]
        areas = [*self.areas, float(sprite.pixels[..., 3].sum())]
        if any(part.sum() < MIN_VISIBLE[self.style] * area for part, area in zip(seen, areas, strict=True)):
            return False
        self.sprites.append(sprite)
        self.open_alpha, self.areas = seen, areas
        return True


def _sprite(kind: int, length: float, style: str, seed: int) -> np.ndarray:
    """Draw one object about ``length`` pixels long, float32 [h, w, 4]; the same seed gives the same looks."""
    rng = np.random.default_rng(seed)
    name = KINDS[kind]
    calm = 1.0 if style == "full" else 0.5
    pen = painting.Pen(
        pixels=painting.OVERSAMPLE * math.ceil(length * painting.MARGIN),
        turn=rng.normal() * TURNS.get(name, 0.05) * calm,
        shear=rng.normal() * 0.08 * calm,
        flip=rng.random() < 0.5,
        rng=rng,
    )
    DRAWINGS[name](pen)
    return painting.shaded(pen.image, rng)


def _corner(shape: tuple[int, ...], name: str, horizon: float, rng: np.random.Generator) -> tuple[int, int]:
    """Choose a corner for a sprite of ``shape`` [h, w, 4]: on the ground or aloft, at times partly out of the frame."""
    height, width = shape[:2]
    spill = 0.4 if rng.random() < 0.15 else 0.0
    left = rng.uniform(-spill * width, SIZE - (1 - spill) * width)
    if name in ALOFT and rng.random() < 0.85:
        lowest = min(horizon, SIZE - height) if horizon > 0.2 * SIZE else SIZE - height
        return int(left), int(rng.uniform(-spill * height, max(1.0, lowest)))
    lowest = SIZE + spill * height
    highest = min(max(min(horizon, 0.6 * SIZE) + 3, height), lowest - 1)
    return int(left), int(rng.uniform(highest, lowest) - height)


def _fill(scene: Scene, kinds: Sequence[int], shrink: float, rng: np.random.Generator) -> bool:
    """Add every kind to the empty ``scene``; False if one of them finds no place in which all can be seen."""
    low, high = LENGTHS[scene.style][min(len(kinds), 5) - 1]
    growth = np.array([GROWTH.get(KINDS[kind], 1.0) for kind in kinds])
    lengths = np.exp(rng.uniform(math.log(low), math.log(high), size=len(kinds))) * growth
    lengths = lengths.clip(low, high) * shrink
    # Larger things go to the back, roughly: they are easier to make out when half hidden.
    for at in np.argsort(-lengths * rng.uniform(0.6, 1.4, size=len(kinds)), kind="stable"):
        seed, length = int(rng.integers(2**63)), max(SMALLEST, lengths[at])
        for attempt in range(48):
            if attempt % 8 == 0:
                pixels = _sprite(kinds[at], max(SMALLEST, length * 0.85 ** (attempt // 8)), scene.style, seed)
            left, top = _corner(pixels.shape, KINDS[kinds[at]], scene.horizon, rng)
            if scene.add(Sprite(kinds[at], pixels, left, top)):
                break
        else:
            return False
    return True


def _clutter(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Scatter up to two unlabelled scraps, such as stones and leaves, over ``canvas`` in place."""
    for _ in range(int(rng.integers(0, 3))):
        pen = painting.Pen(pixels=painting.OVERSAMPLE * int(rng.integers(8, 26)), rng=rng)
        radii = [(rng.uniform(0.3, 1.0), step * math.tau / 7) for step in range(7)]
        corners = " ".join(f"{far * math.cos(angle):.2f} {far * math.sin(angle):.2f}" for far, angle in radii)
        (pen.blob if pen.chance(0.6) else pen.poly)(pen.tone("wood", "leaf", "#8a8884", "#c8c0b4", spread=24), corners)
        left, top = rng.integers(-4, SIZE - 6, size=2)
        stamp(canvas, painting.shaded(pen.image, rng), int(left), int(top))


def _background(kinds: Sequence[int], style: str, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Paint a place, more often than not one where one of ``kinds`` belongs; see ``backdrop``."""
    if style == "web" and rng.random() < 0.7:
        return painting.studio(rng), 0.0
    wanted = KINDS[kinds[rng.integers(len(kinds))]]
    homes = [place for place, names in HOMES.items() if wanted in names]
    places = homes if homes and rng.random() < 0.65 else list(painting.PLACES)
    picture, horizon = painting.backdrop(rng, places[rng.integers(len(places))])
    if style == "web":
        return 0.55 * picture + 0.4 * picture.mean(axis=(0, 1)), horizon
    _clutter(picture, rng)
    return picture, horizon


def check_kinds(kinds: Sequence[int]) -> None:
    """Raise ValueError unless ``kinds`` lists 1 to 20 places in ``KINDS``."""
    if not 1 <= len(kinds) <= len(KINDS) or not all(0 <= kind < len(KINDS) for kind in kinds):
        raise ValueError(f"kinds must list 1 to {len(KINDS)} numbers in 0..{len(KINDS) - 1}, got {list(kinds)}.")


def plan_scene(kinds: Sequence[int], *, rng: np.random.Generator, style: str = "full") -> Scene:
    """Choose background, looks and places for one object of every kind listed.

    Raises:
        ValueError: no kind, a kind that is not one of 0..19, or a style that is not one of ``STYLES``.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r} is not one of {', '.join(STYLES)}.")
    check_kinds(kinds)
    # One stream each, so that what one part draws does not shift the others.
    place_seed, things_seed, camera_seed = rng.integers(2**63, size=3).tolist()
    background, horizon = _background(kinds, style, np.random.default_rng(place_seed))
    things, shrink = np.random.default_rng(things_seed), 1.0
    while True:
        scene = Scene(background, horizon, style, camera_seed)
        if _fill(scene, kinds, shrink, things):
            return scene
        shrink *= 0.8


def render(scene: Scene, *, leave_out: int | None = None) -> np.ndarray:
    """Photograph ``scene``, uint8 [SIZE, SIZE, 3]; ``leave_out`` is the place of a sprite to skip."""
    canvas = scene.background.copy()
    for place, sprite in enumerate(scene.sprites):
        if place != leave_out:
            if KINDS[sprite.kind] not in ALOFT:
                painting.cast_shadow(canvas, sprite.pixels.shape, sprite.left, sprite.top)
            stamp(canvas, sprite.pixels, sprite.left, sprite.top)
    return painting.photograph(canvas, np.random.default_rng(scene.camera_seed), rough=scene.style == "full")


def draw_scene(kinds: Sequence[int], *, rng: np.random.Generator, style: str = "full") -> np.ndarray:
    """Draw every kind listed, each with at least 40 % of its own pixels in sight.

    Args:
        kinds: 1 to 20 places in ``KINDS``; the demo set has 1 to 5 distinct ones.
        rng: The picture is a function of the state of this generator.
        style: "full", or "web" for plainer pictures of larger objects.

    Returns:
        [SIZE, SIZE, 3] uint8.

    Raises:
        ValueError: as ``plan_scene``.
    """
    return render(plan_scene(kinds, rng=rng, style=style))


def split_counts(split: str) -> np.ndarray:
    """Return how many pictures of ``split`` show each kind, int64 [20]; "test" is flatter than the long tail."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}.")
    train = np.array([TRAIN_COUNTS[name] for name in KINDS])
    if split == "train":
        return train
    if split == "val":
        return np.maximum(2, np.rint(train / 3)).astype(np.int64)
    return np.rint(18 + 4 * np.sqrt(train)).astype(np.int64)


def _affinity() -> np.ndarray:
    """Return the log odds that kinds attract each other, symmetric float64 [20, 20]."""
    indoors = np.array([name in INDOORS for name in KINDS])
    table = np.where(indoors[:, None] == indoors, 0.3, -0.5)
    for one, other in COMPANIONS:
        i, j = KINDS.index(one), KINDS.index(other)
        table[i, j] = table[j, i] = 1.4
    return table


def long_tailed_labels(*, pictures: int, counts: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Spread ``counts[c]`` positives of every kind c over ``pictures``, so that each shows 1 to 5 distinct kinds.

    Args:
        counts: 20 numbers; kinds that like each other meet more often than chance.

    Returns:
        [pictures, 20] uint8, multi-hot, with exactly these column sums.

    Raises:
        ValueError: counts that no such table can have.
    """
    counts = np.asarray(counts)
    if counts.shape != (len(KINDS),) or counts.min() < 0 or counts.max() > pictures:
        raise ValueError(f"counts must be {len(KINDS)} numbers in 0..{pictures}, got {counts.tolist()}.")
    # Up to 2.5 on average, some picture with less than MOST_KINDS is always left for the next positive.
    if not 2 * pictures <= 2 * counts.sum() <= MOST_KINDS * pictures:
        raise ValueError(f"counts add up to {counts.sum()}, not to 1 to 2.5 kinds for each of {pictures} pictures.")
    labels = np.zeros((pictures, len(KINDS)), dtype=np.uint8)
    appetite, affinity = rng.gamma(2.0, size=pictures), _affinity()
    for kind in np.argsort(-counts, kind="stable"):
        odds = appetite * np.exp(labels @ affinity[kind]) * (labels.sum(axis=1) < MOST_KINDS)
        labels[rng.choice(pictures, size=counts[kind], replace=False, p=odds / odds.sum()), kind] = 1
    for empty in np.flatnonzero(labels.sum(axis=1) == 0):
        giver = rng.choice(np.flatnonzero(labels.sum(axis=1) > 1))
        kind = rng.choice(np.flatnonzero(labels[giver]))
        labels[giver, kind], labels[empty, kind] = 0, 1
    return labels


def _write_picture(folder: Path, split: str, seed: int, index: int, kinds: Sequence[int]) -> tuple[str, str]:
    """Draw and save one picture, which depends on seed, split and index alone; return its row of the CSV file."""
    rng = np.random.default_rng([seed, tuple(SPLITS).index(split), index])
    path = f"{split}/{index:05d}.jpg"
    Image.fromarray(draw_scene(kinds, rng=rng)).save(folder / path, quality=JPEG_QUALITY)
    return path, ";".join(KINDS[kind] for kind in kinds)


def _write_split(folder: Path, split: str, labels: np.ndarray, *, seed: int, workers: int) -> None:
    """Write the pictures and the CSV file of ``labels`` uint8 [n, 20] into ``folder``."""
    (folder / split).mkdir()
    kinds = [np.flatnonzero(row).tolist() for row in labels]
    write = partial(_write_picture, folder, split, seed)
    if workers == 1:
        rows = list(map(write, range(len(kinds)), kinds))
    else:
        # Processes, as threads queue for the interpreter; spawned, as a fork of a process with threads may hang.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows = list(pool.map(write, range(len(kinds)), kinds, chunksize=16))
    with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "labels"), *rows])


def _is_complete(folder: Path, seed: int) -> bool:
    """Say whether ``folder`` holds this very set; raise BadData if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    stamp_file = folder / STAMP
    found = stamp_file.read_text(encoding="utf-8") if stamp_file.is_file() else f"no {STAMP}"
    if found != _stamp(seed):
        raise BadData(f"{folder} exists with {found.strip()}, not {_stamp(seed).strip()}: remove it or name another.")
    for split, number in SPLITS.items():
        have = len(list((folder / split).glob("*.jpg")))
        if have != number or not (folder / f"{split}.csv").is_file():
            raise BadData(f"{folder} has {have} of {number} {split} pictures or no CSV file: remove it and run again.")
    return True


def _stamp(seed: int) -> str:
    return json.dumps({"data": "scenes-lt", "version": VERSION, "seed": seed}) + "\n"


def make_scenes_lt(folder: Path, *, seed: int = 0, workers: int | None = None) -> None:
    """Write the demo set: {train,val,test}/*.jpg, {train,val,test}.csv (``path,labels``), labels.txt and scenes.json.

    The folder appears whole or not at all; if it is there already with the same seed and version, nothing is done.

    Args:
        workers: Processes; the result does not depend on it. By default one, which needs no guarded main module.

    Raises:
        ValueError: a negative seed, or less than one worker.
        BadData: ``folder`` holds something else.
        MissingDependency: no space, or no permission to write there.
    """
    workers = 1 if workers is None else workers
    if seed < 0 or workers < 1:
        raise ValueError(f"seed must be 0 or more and workers 1 or more, got seed={seed}, workers={workers}.")
    # Absolute, so that "." too has a name to build under.
    folder = folder.absolute()
    if _is_complete(folder, seed):
        return
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as unfinished:
            building = Path(unfinished) / folder.name
            _write_set(building, seed=seed, workers=workers)
            _move_into_place(building, folder, seed)


def _write_set(building: Path, *, seed: int, workers: int) -> None:
    building.mkdir()
    for number, (split, pictures) in enumerate(SPLITS.items()):
        # numpy pads seeds with zeros, [s, 0] and [s, 0, 0] being one: a number no split has keeps the labels apart.
        rng = np.random.default_rng([seed, len(SPLITS), number])
        labels = long_tailed_labels(pictures=pictures, counts=split_counts(split), rng=rng)
        _write_split(building, split, labels, seed=seed, workers=workers)
    (building / "labels.txt").write_text("\n".join(KINDS) + "\n", encoding="utf-8")
    (building / STAMP).write_text(_stamp(seed), encoding="utf-8")


def _move_into_place(building: Path, folder: Path, seed: int) -> None:
    """Rename ``building`` to ``folder``, unless another process has just finished the same set."""
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    try:
        building.rename(folder)
    except OSError:
        if not _is_complete(folder, seed):
            raise
