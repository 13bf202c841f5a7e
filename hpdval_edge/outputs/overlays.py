"""Results as pictures with heat map and scores, one PNG each in a folder."""

from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from hpdval_edge.outputs.output import Result
from hpdval_edge.overlay import draw_overlay, save_overlay


class PngNames:
    """A PNG path in ``folder`` for each picture: its stem, with a number where two pictures share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[str] = set()

    def __call__(self, picture: PurePath) -> Path:
        name, number = picture.stem, 1
        while name.lower() in self.taken:
            number += 1
            name = f"{picture.stem}-{number}"
        self.taken.add(name.lower())
        return self.folder / f"{name}.png"


class Overlays:
    """Writes what `draw_overlay` draws; thresholds: float32 [C]."""

    pictures = True

    def __init__(self, folder: Path, labels: tuple[str, ...], thresholds: np.ndarray) -> None:
        self.names = PngNames(folder)
        self.labels = labels
        self.thresholds = thresholds

    def write(self, result: Result) -> None:
        """Draw and save one picture."""
        picture = result.picture
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        path = PurePath(result.frame.name)
        page = draw_overlay(picture, result.prediction, self.labels, self.thresholds, title=path.name)
        save_overlay(self.names(path), page)

    def close(self) -> None:
        """Each picture was whole when it was written."""
