"""Where the local view sees chosen labels: heat maps as PNG, and the raw maps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpdval_edge.atomic import write_file
from hpdval_edge.errors import UsageError
from hpdval_edge.outputs.names import FileNames, safe
from hpdval_edge.outputs.output import ModelInfo, Result
from hpdval_edge.outputs.overlays import as_image
from hpdval_edge.overlay import save_overlay, warm


def check_labels(wanted: Sequence[str], labels: tuple[str, ...]) -> None:
    """UsageError for a label that ``--map-label`` names and the model does not know."""
    for label in wanted:
        if label not in labels:
            known = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
            raise UsageError(f"--map-label {label!r} is no label of the model; it has {known}.")


class HeatMaps:
    """Writes ``NAME.LABEL.png``, the picture under the map of each label that is wanted, into ``folder``.

    raw: also ``NAME.npz`` with ``labels``, n names, and ``maps``, float32 [n, rows, columns], the cosine of each patch
    with each. keep: whether what lies in the folder stays. Where none is wanted, the map is that of the picture's best
    label. A label that is gone from a bundle when it is loaded again is left out.
    """

    pictures = True

    def __init__(self, folder: Path, model: ModelInfo, wanted: Sequence[str], *, raw: bool, keep: bool = False) -> None:
        self.names = FileNames(folder, keep=keep)
        self.model = model
        self.wanted = wanted
        self.raw = raw
        taken = [safe(label).lower() for label in wanted]
        # Two labels may differ only in signs that file names do not take.
        self.twins = {label for place, label in enumerate(wanted) if taken[place] in taken[:place]}

    def write(self, result: Result) -> None:
        """Write the maps of one picture."""
        prediction, picture = result.prediction, as_image(result.picture)
        labels = self.model.at(prediction).labels
        best = int(np.argmax(prediction.scores))
        columns = [labels.index(label) for label in self.wanted if label in labels] if self.wanted else [best]
        base = self.names.of_frame(result.frame)
        for column in columns:
            name = safe(labels[column]) + (f"-{column}" if labels[column] in self.twins else "")
            path = base.with_name(f"{base.name}.{name}.png")
            save_overlay(path, warm(picture, prediction.patch_scores[:, :, column]))
        if self.raw:
            maps = np.moveaxis(prediction.patch_scores[:, :, columns], 2, 0).astype(np.float32)
            names = np.array([labels[column] for column in columns])
            write_file(base.with_name(base.name + ".npz"), lambda partial: _save(partial, names, maps))

    def close(self) -> None:
        """Each file was whole when it was written."""


def _save(path: Path, labels: np.ndarray, maps: np.ndarray) -> None:
    # Of an open file: a name that does not end in .npz would get a second ending.
    with path.open("wb") as file:
        np.savez_compressed(file, labels=labels, maps=maps)
