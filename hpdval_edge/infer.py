"""``hpedge infer``: pictures through a Predictor to a table, JSONL or CSV, and overlays."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from PIL import Image

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.images import find_images, open_rgb
from hpdval_edge.overlay import draw_overlay, save_overlay
from hpdval_edge.predictor import Prediction, Predictor
from hpdval_edge.progress import say

FORMATS = ("table", "jsonl", "csv")
LAST_EXPORT = Path("runs") / "last-export"


def last_export() -> Path:
    """The bundle that the last ``hpedge export`` in this folder wrote."""
    if not LAST_EXPORT.is_file():
        raise UsageError(
            f"there is no bundle here yet ({LAST_EXPORT} is missing); run `hpedge export` or pass --model."
        )
    return Path(LAST_EXPORT.read_text(encoding="utf-8").strip())


def infer(predictor: Predictor, sources: Sequence[str], *, format_: str, overlay: Path | None, batch: int) -> int:
    """Write one result a picture to stdout, in order; return how many pictures could not be read.

    Args:
        sources: files, folders, globs. overlay: folder for PNG pictures, named after their sources.
    """
    paths = find_images(sources)
    targets = overlay_names(paths, overlay) if overlay else {}
    write = _writer(format_, predictor.labels, sys.stdout)
    failed = 0
    for group in _batches(paths, batch):
        readable: list[tuple[Path, Image.Image]] = []
        for path in group:
            try:
                readable.append((path, open_rgb(path)))
            except BadData as error:
                failed += 1
                say(f"hpedge: {error}")
        if not readable:
            continue
        prepared = predictor.prepare([picture for _, picture in readable])
        for (path, picture), prediction in zip(readable, predictor.predict_images(prepared), strict=True):
            write(path, prediction)
            if overlay:
                page = draw_overlay(picture, prediction, predictor.labels, predictor.thresholds, title=path.name)
                save_overlay(targets[path], page)
    summary = f"{len(paths) - failed} of {len(paths)} pictures"
    say(f"{summary}, overlays in {overlay}/" if overlay else summary)
    return failed


def _batches(paths: list[Path], size: int) -> Iterator[list[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def overlay_names(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A PNG path for each picture: its stem, with a number where two pictures share it."""
    names: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.lower())
        names[path] = folder / f"{name}.png"
    return names


def _writer(format_: str, labels: tuple[str, ...], stream: TextIO) -> Callable[[Path, Prediction], None]:
    if format_ == "jsonl":
        return lambda path, prediction: _write_json(path, prediction, labels, stream)
    if format_ == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "labels", *labels])
        return lambda path, prediction: writer.writerow(
            [path.as_posix(), ";".join(prediction.labels), *(f"{score:.6f}" for score in prediction.scores)]
        )
    return lambda path, prediction: print(_table_row(path, prediction, labels), file=stream, flush=True)


def _write_json(path: Path, prediction: Prediction, labels: tuple[str, ...], stream: TextIO) -> None:
    scores = {label: round(float(score), 6) for label, score in zip(labels, prediction.scores, strict=True)}
    line = {"path": path.as_posix(), "labels": list(prediction.labels), "scores": scores}
    print(json.dumps(line), file=stream, flush=True)


def _table_row(path: Path, prediction: Prediction, labels: tuple[str, ...]) -> str:
    chosen = [f"{label} {prediction.scores[labels.index(label)]:.3f}" for label in prediction.labels]
    return f"{path.as_posix()}  {', '.join(chosen) or '-'}"
