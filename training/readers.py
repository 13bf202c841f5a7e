"""The front door of the data layer: the readers by name, and ``load_splits``, which finds out which one to use."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpdval_edge.errors import BadData, UsageError
from hpdval_edge.training.dataset import LabelledImages, Splits
from hpdval_edge.training.readers_coco import read_coco
from hpdval_edge.training.readers_csv import read_csv
from hpdval_edge.training.readers_folders import read_folders
from hpdval_edge.training.readers_layout import FORMATS, Layout, file_layout, folder_layout
from hpdval_edge.training.readers_list import read_label_names, read_list
from hpdval_edge.training.readers_voc import read_voc
from hpdval_edge.training.splits import describe_split, name_some, split_keeping_labels

__all__ = ["load_splits", "read_coco", "read_csv", "read_folders", "read_label_names", "read_list", "read_voc"]


def load_splits(
    data: str | Path,
    *,
    format: str = "auto",
    images: str | Path | None = None,
    labels: str | Path | Sequence[str] | None = None,
    train: str | Path | None = None,
    val: str | Path | None = None,
    test: str | Path | None = None,
    val_fraction: float = 0.15,
    seed: int = 0,
) -> Splits:
    """Read a data set and make its validation split when it brings none.

    Args:
        data: A training file (.txt list, .csv, .json COCO), or a folder in one of the layouts of docs/data.md.
        format: "auto", "list", "csv", "coco", "voc" or "folders".
        images: Folder that picture paths start from, where it is not the one the reader expects.
        labels: File of label names, or the names in column order; default: as the reader says.
        train, val, test: Files (image set names for "voc", folders for "folders") that replace what would be found in
            the folder; names are looked up below ``data`` first.
        val_fraction: Share of the training pictures taken for validation when there is no validation part.
        seed: Decides that split.

    Raises:
        UsageError: arguments that do not fit what is there; candidates are named.
        BadData: contents that cannot be read or contradict themselves, with file and line.
    """
    if format not in FORMATS:
        raise UsageError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    if not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}, expected a number between 0 and 1, both excluded")
    data = Path(data)
    if not data.exists():
        raise UsageError(f"{data}: there is no such file or folder")
    # Configuration files say "not given" with an empty text.
    given = {part: name or None for part, name in (("train", train), ("val", val), ("test", test))}
    layout = (folder_layout if data.is_dir() else file_layout)(data, format, given)
    names = layout.labels if labels is None or labels == "" else labels
    return _read_layout(layout, images or None, names, (val_fraction, seed))


def _read_layout(
    layout: Layout,
    images: str | Path | None,
    labels: str | Path | Sequence[str] | None,
    fraction_and_seed: tuple[float, int],
) -> Splits:
    names = read_label_names(labels) if isinstance(labels, (str, Path)) else labels
    whole = layout.train(images=images, labels=names)
    tests = layout.test(images=images, labels=whole.labels) if layout.test else None
    if layout.val:
        training, validation = whole, layout.val(images=images, labels=whole.labels)
        notes = _notes_on_given(training, validation)
    else:
        training, validation, notes = _split(whole, *fraction_and_seed)
    if tests is not None:
        notes += _notes_on_overlap("test", tests, training, validation)
    return Splits(training, validation, tests, (*layout.notes, *notes), held_out=layout.val is None)


def _split(whole: LabelledImages, fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages, list[str]]:
    try:
        train_idx, val_idx = split_keeping_labels(whole.targets, fraction, seed)
    except BadData as error:
        raise BadData(f"{whole.root}: {error}") from error
    notes = [f"validation: {len(val_idx)} of the {len(whole)} training pictures, chosen with seed {seed}"]
    notes += describe_split(whole.targets, whole.labels, train_idx, val_idx)
    return whole.subset(train_idx), whole.subset(val_idx), notes


def _notes_on_given(training: LabelledImages, validation: LabelledImages) -> list[str]:
    notes = []
    for part, name in ((training, "training"), (validation, "validation")):
        absent = np.flatnonzero(part.class_counts == 0)
        if absent.size:
            notes.append(f"{name_some(part.labels, absent)}: no positive in {name}")
    return notes + _notes_on_overlap("validation", validation, training)


def _notes_on_overlap(name: str, part: LabelledImages, *others: LabelledImages) -> list[str]:
    known = {other.root.absolute() / path for other in others for path in other.paths}
    shared = [path for path in part.paths if part.root.absolute() / path in known]
    if not shared:
        return []
    where = "training" if len(others) == 1 else "training or validation"
    return [f"{len(shared)} of the {len(part)} {name} pictures are in {where} too (first {shared[0]}), results flatter"]
