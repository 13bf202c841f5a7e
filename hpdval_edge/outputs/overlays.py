"""Results as pictures with heat map and scores: a PNG a picture, a film a film."""

from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from hpdval_edge.outputs.film import Film
from hpdval_edge.outputs.names import FileNames
from hpdval_edge.outputs.output import ModelInfo, Result
from hpdval_edge.overlay import draw_frame, draw_overlay, save_overlay
from hpdval_edge.sources.frame import Pixels


def as_image(picture: Pixels) -> Image.Image:
    """A picture as a source gives it, as an RGB image."""
    return Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture


class Overlays:
    """Writes what `draw_overlay` draws as ``NAME.png``, and each film, camera or stream as ``NAME.mp4``.

    Args:
        folder: where they go. label: of the heat map; None is a picture's best one, and no heat map in films, where it
            would flicker. keep: whether what lies in the folder stays.
    """

    pictures = True

    def __init__(self, folder: Path, model: ModelInfo, label: str | None = None, *, keep: bool = False) -> None:
        self.names = FileNames(folder, keep=keep)
        self.model = model
        self.label = label
        # The last film's source, and what is made of it.
        self.film: tuple[str, Film] | None = None

    def write(self, result: Result) -> None:
        """Draw and save one picture, or add one frame to its film."""
        frame, prediction, picture = result.frame, result.prediction, as_image(result.picture)
        model = self.model.at(prediction)
        column = model.labels.index(self.label) if self.label in model.labels else None
        unfitted = model.unfitted or frozenset()
        if frame.index is not None:
            page = draw_frame(picture, prediction, model.labels, column, unfitted=unfitted)
            self._film(frame.source).add(page, frame.index, frame.time)
            return
        title = PurePath(frame.source).name
        page = draw_overlay(
            picture, prediction, model.labels, model.thresholds, title=title, column=column, unfitted=unfitted
        )
        path = self.names(frame.source)
        save_overlay(path.with_name(f"{path.name}.png"), page)

    def _film(self, source: str) -> Film:
        """The film of ``source``; one of another source is finished, for each open one holds a file and an encoder."""
        if self.film is None or self.film[0] != source:
            self.close()
            path = self.names(source)
            self.film = source, Film(path.with_name(f"{path.name}.mp4"))
        return self.film[1]

    def close(self) -> None:
        """Finish the film; those before it, and each picture, are whole."""
        last, self.film = self.film, None
        if last:
            last[1].close()
