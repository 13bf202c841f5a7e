"""What decoding large JPEG files at a fraction of their size changes in a bundle's scores.

    python benchmarks/scaled_decode.py BUNDLE PHOTOS [--pictures 100]

Photos are tiled to 4 and 8 times the model's side, so that they hold detail at every scale, and saved at quality 90.
Beside the scaled decode stands what a change of another kind does: the same pictures saved at quality 85.
"""

import argparse
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from hpdval_edge.images import open_rgb, resize_squash, walk_images
from hpdval_edge.predictor import Predictor


def tiles(photos: list[Path], width: int, height: int) -> Iterator[Image.Image]:
    """Endless pictures, each of other photos beside one another."""
    start = 0
    while True:
        canvas, number = Image.new("RGB", (width, height)), start
        top = 0
        while top < height:
            left = row = 0
            while left < width:
                photo = open_rgb(photos[number % len(photos)])
                canvas.paste(photo, (left, top))
                left, row, number = left + photo.width, max(row, photo.height), number + 1
            top += row
        yield canvas
        start += 1


class Differences:
    """Of levels, scores and chosen labels, between pairs of pictures."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.levels: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        self.flips = 0

    def add(self, pair: tuple[Image.Image, Image.Image]) -> None:
        """Compare one pair."""
        size = self.predictor.bundle.manifest.image_size
        first, second = (resize_squash(picture, size).astype(int) for picture in pair)
        self.levels.append(abs(first - second))
        images = self.predictor.prepare(pair)
        one, other = self.predictor.predict_images(images, patch_scores=False)
        self.scores.append(abs(one.scores - other.scores))
        self.flips += len({*one.labels} ^ {*other.labels})

    def __str__(self) -> str:
        levels, scores = np.array(self.levels), np.array(self.scores)
        return (
            f"levels {levels.mean():.2f} in the mean, {levels.max()} at most; scores {scores.mean():.1e}, 99 % within "
            f"{np.quantile(scores, 0.99):.1e}; {self.flips} of {scores.size} labels change"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--pictures", type=int, default=100)
    arguments = parser.parse_args()
    predictor = Predictor(arguments.bundle, "onnxruntime")
    size, photos = predictor.bundle.manifest.image_size, list(walk_images(arguments.photos))
    photos = photos[:: max(1, len(photos) // arguments.pictures)]
    print(f"{predictor.bundle.manifest.precision}, {size} px, {len(predictor.labels)} labels")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jpg"
        for factor in (4, 8):
            scaled, saved = Differences(predictor), Differences(predictor)
            for picture in islice(tiles(photos, factor * size * 3 // 2, factor * size), arguments.pictures):
                picture.save(path, quality=90)
                exact = open_rgb(path)
                scaled.add((exact, open_rgb(path, 2 * size)))
                picture.save(path, quality=85)
                saved.add((exact, open_rgb(path)))
            print(f"{picture.width} x {picture.height}, scaled decode: {scaled}")
            print(f"{picture.width} x {picture.height}, quality 85: {saved}", flush=True)


if __name__ == "__main__":
    main()
