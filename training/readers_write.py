"""The other direction: pictures and labels written as a list or a CSV table that the readers take back unchanged."""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpdval_edge.atomic import write_text
from hpdval_edge.errors import UsageError
from hpdval_edge.training.dataset import LabelledImages
from hpdval_edge.training.readers_csv import read_csv
from hpdval_edge.training.readers_list import read_list

LABELS = "labels.txt"


def list_text(data: LabelledImages) -> str:
    """Lines ``path id id ...``."""
    rows = zip(data.paths, data.targets, strict=True)
    return "".join(" ".join([path, *map(str, np.flatnonzero(row))]) + "\n" for path, row in rows)


def csv_text(data: LabelledImages) -> str:
    """A table ``path,labels`` with ``;`` between the names; UsageError for a name that holds one."""
    broken = next((name for name in data.labels if ";" in name), None)
    if broken is not None:
        raise UsageError(f"the label {broken!r} holds a ';', which separates labels in a CSV; write --to list.")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "labels"])
    for path, row in zip(data.paths, data.targets, strict=True):
        writer.writerow([path, ";".join(data.labels[column] for column in np.flatnonzero(row))])
    return text.getvalue()


def labels_text(data: LabelledImages) -> str:
    """Lines ``name id``; the numbers keep a name that itself ends in one from being misread."""
    return "".join(f"{name} {number}\n" for number, name in enumerate(data.labels))


WRITERS: dict[str, tuple[str, Callable[[LabelledImages], str]]] = {
    "csv": (".csv", csv_text),
    "list": (".txt", list_text),
}


def write_parts(folder: Path, parts: dict[str, LabelledImages], format: str) -> list[Path]:
    """Write ``<part>.csv`` or ``<part>.txt`` and ``labels.txt`` with the order of the labels; read each back.

    Args:
        folder: Where to; the paths in the files start there.
        parts: By name (``train``, ``val``, ``test``), with the same labels.
        format: ``csv`` or ``list``.

    Returns:
        The files.

    Raises:
        UsageError: a file is there already, a format or a path that the format cannot hold.
        MissingDependency: no space, or no permission to write.
    """
    if format not in WRITERS:
        raise UsageError(f"--to {format!r} is not one of {', '.join(WRITERS)}.")
    suffix, text_of = WRITERS[format]
    texts = {folder / f"{name}{suffix}": text_of(rebased(data, folder)) for name, data in parts.items()}
    files = [*texts, folder / LABELS]
    for file in files:
        if file.exists():
            raise UsageError(f"{file} is there already; choose another --out or remove it.")
    write_text(folder / LABELS, labels_text(next(iter(parts.values()))))
    for file, data in zip(texts, parts.values(), strict=True):
        write_text(file, texts[file])
        _check(file, rebased(data, folder), read_csv if format == "csv" else read_list)
    return files


def rebased(data: LabelledImages, folder: Path) -> LabelledImages:
    """The same pictures with paths that start from ``folder``."""
    start = folder.absolute()
    paths = (Path(os.path.relpath(data.absolute(index).absolute(), start)).as_posix() for index in range(len(data)))
    return LabelledImages(folder, tuple(paths), data.targets, data.labels)


def _check(file: Path, data: LabelledImages, read: Callable[..., LabelledImages]) -> None:
    again = read(file, labels=data.labels)
    for index, (wrote, found) in enumerate(zip(data.paths, again.paths, strict=True)):
        if wrote != found or (data.targets[index] != again.targets[index]).any():
            raise UsageError(
                f"{file}: {wrote!r} reads back as {found!r}; rename that picture or write the other format."
            )
